"""Where and how things run."""

import os

import torch

# DeepSpeed guesses the accelerator and warns when it finds none; say it.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
