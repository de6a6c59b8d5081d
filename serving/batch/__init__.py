"""``splitrank generate``: answers a file of OpenAI batch lines; a run can be continued."""
