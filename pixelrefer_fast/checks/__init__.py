"""What users hand in is checked here: values, files, and how messages show both."""
