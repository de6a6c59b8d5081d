"""A rank process: its rows, its work, its sampling. The only room with torch."""
