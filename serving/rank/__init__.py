"""A rank process: its rows, its work, its sampling. No other room imports torch."""
