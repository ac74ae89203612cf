"""Answers against what is right: words, choices, sentences and captions."""
