"""The compiled extension of csrc/: built, found and loaded."""
