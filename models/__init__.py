"""Qwen3.5-MoE, written here: its config, its split over ranks, its layers, its state and its loading."""
