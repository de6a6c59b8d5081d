"""Options, their bounds and sources; what people give in Python; the console."""
