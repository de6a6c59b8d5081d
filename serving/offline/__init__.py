"""``LLM``: prompts in, answers out, from Python."""
