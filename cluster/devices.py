"""What devices are capable of, by NVIDIA's data sheets, and how much of their memory was used."""

import resource
import sys

import torch

PEAK_BF16_TFLOPS = {"b200": 2250.0, "h200": 989.4, "h100": 989.4, "a100": 312.0, "l40s": 362.0, "a10g": 70.0, "l4": 121.0}
"""Dense, without sparsity; of those that come in several forms, the one on a board with NVLink (SXM)."""
OTHER_FORMS = {"pcie", "nvl"}
"""Slower cards of the same names; an A100 is as fast on either."""


def peak_bf16_tflops(name: str) -> float | None:
    """Return the peak of the device that a driver calls `name`, such as 'NVIDIA H200', or None if it is not known."""
    words = set(name.lower().replace("-", " ").split())
    known = words & set(PEAK_BF16_TFLOPS)
    if not known or (words & OTHER_FORMS and "a100" not in known):
        return None
    return PEAK_BF16_TFLOPS[known.pop()]


def peak_memory_gib(device: torch.device) -> float:
    """Return the most that this process has held so far: of a GPU's memory for tensors, else resident of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
