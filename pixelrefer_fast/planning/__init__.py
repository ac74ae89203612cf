"""Integers only: from regions bound to pixels to the views, the feature rows and the context of every object."""
