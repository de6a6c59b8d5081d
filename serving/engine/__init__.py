"""The engine process: who is computed when. No torch."""
