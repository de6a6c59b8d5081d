"""Text in, text out: tokenizer, template, detokenizer, stop strings."""
