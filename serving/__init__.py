"""The API server, offline use, the engine, its ranks, and the command line."""
