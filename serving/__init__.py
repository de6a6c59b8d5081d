"""The engine loop, the front doors and the command line."""
