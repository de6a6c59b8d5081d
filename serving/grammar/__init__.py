"""Grammars that hold an answer to a form: made and checked in the front, obeyed by the rank that samples."""
