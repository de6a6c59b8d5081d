"""A rank process: its rows, its work, its sampling. No other package of serving imports torch."""
