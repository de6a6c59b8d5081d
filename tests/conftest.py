"""Set before anything imports transformers: a test never asks the network. And before anything imports Triton: without
a GPU its kernels are interpreted."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
