"""Qwen3.5-MoE: its config, its split over ranks, its layers, its caches and the loading of its weights."""
