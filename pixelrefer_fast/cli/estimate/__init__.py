"""`estimate`."""
