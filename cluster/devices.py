"""What the accelerators that one can rent are capable of, by NVIDIA's data sheets, and what of that training reaches and takes."""

import resource
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """One processor that a rank has to itself.

    link_gb_per_second  to the others of its machine, one direction: NVLink, else PCIe
    host_gb_per_second  from the machine's memory, one direction: PCIe
    product_share       of the peak that a step's products reach; memory_share, of the memory's rate. Both assumed for cards,
                        1 for a device whose numbers were measured
    is_gpu              False: memory counts once it is touched, not once it is asked for
    """

    bf16_tflops: float
    memory_gib: float
    memory_gb_per_second: float
    link_gb_per_second: float
    host_gb_per_second: float
    product_share: float = 0.6
    memory_share: float = 0.8
    is_gpu: bool = True


DEVICES = {
    "b200": Device(2250.0, 178.0, 8000.0, 900.0, 64.0),
    "h200": Device(989.4, 139.0, 4800.0, 450.0, 64.0),
    "h100": Device(989.4, 79.0, 3350.0, 450.0, 64.0),
    "a100": Device(312.0, 79.0, 2039.0, 300.0, 32.0),
    "a100-40gb": Device(312.0, 39.0, 1555.0, 300.0, 32.0),
    "l40s": Device(362.0, 44.0, 864.0, 32.0, 32.0),
    "a10g": Device(70.0, 22.0, 600.0, 32.0, 32.0),
    "l4": Device(121.0, 22.0, 300.0, 32.0, 32.0),
}
"""Products dense, without sparsity; of cards in several forms the one on a board with NVLink (SXM); memory as drivers report it.

Data sheets: HGX B200 (NVLink 5, 1.8 TB/s both ways), H200 and H100 SXM (NVLink 4, 900 GB/s), A100 SXM 80 and 40 GB (NVLink 3,
600 GB/s), L40S, A10G and L4 (PCIe 4, 16 lanes).
"""
OTHER_FORMS = {"pcie", "nvl"}
"""Slower cards of the same names; an A100 is as fast on either."""


def device_called(name: str) -> str | None:
    """Return the key in `DEVICES` of what a driver or Ray calls `name`, such as 'NVIDIA H200' or 'A100-40G'; None if unknown."""
    words = set(name.lower().replace("-", " ").split())
    known = words & set(DEVICES)
    if not known or (words & OTHER_FORMS and "a100" not in known):
        return None
    return "a100-40gb" if "a100" in known and words & {"40gb", "40g"} else known.pop()


def peak_bf16_tflops(name: str) -> float | None:
    """Return the peak of the device that a driver calls `name`, or None if it is not known."""
    known = device_called(name)
    return DEVICES[known].bf16_tflops if known else None


def peak_memory_gib(device: torch.device) -> float:
    """Return the most that this process has held so far: of a GPU's memory for tensors, else resident of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
