"""The layers of Qwen3.5-MoE, one idea a file."""
