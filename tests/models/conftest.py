"""One thread, as a rank of a small machine has: two threads on busy cores wait for each other most of the time."""

import torch

torch.set_num_threads(1)
