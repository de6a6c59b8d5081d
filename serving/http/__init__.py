"""The HTTP server: routes, guards, metrics, signals."""
