"""``splitrank generate``: OpenAI batch lines in, results out, resumable."""
