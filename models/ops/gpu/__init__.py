"""Operations on NVIDIA and AMD GPUs, in Triton: one source for both. Imported where a rank has a GPU, and by tests."""
