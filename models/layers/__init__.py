"""The layers of Qwen3.5-MoE, one kind in each file."""
