"""``LLM``: answers prompts from Python."""
