"""Where and how things run."""

import os

# Torch (2.13) reads it when it is imported; workers of a Ray that is started here inherit it. Large tensors come in huge pages
# then: an eighth of a training step on a CPU was the kernel's, clearing small ones.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

# DeepSpeed guesses the accelerator and warns when it finds none; say it.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
