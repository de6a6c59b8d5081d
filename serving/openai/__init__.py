"""The OpenAI wire format: strict parsing, answers and streams; knows no HTTP."""
