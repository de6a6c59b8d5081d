"""From a folder and options to running processes: checks, plans, start, watch, stop."""
