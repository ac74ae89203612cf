"""Answers drawn: regions outlined, numbered and captioned."""
