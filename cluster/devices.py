"""What the accelerators that one can rent are capable of, by their data sheets: for shares of a peak and for estimates."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator. Links count both directions, as sheets do; `node` is how many usually share a machine."""

    name: str
    bf16_tflops: float
    """Dense matrix products, without sparsity."""
    memory_gib: float
    memory_gb_per_second: float
    link_gb_per_second: float
    """Between the accelerators of a machine: NVLink, or PCIe where there is none."""
    node: int = 8


DEVICES = {
    device.name: device
    for device in (
        Device("b200", 2250.0, 178.0, 8000.0, 1800.0),
        Device("h200", 989.4, 139.8, 4800.0, 900.0),
        Device("h100", 989.4, 79.6, 3350.0, 900.0),
        Device("a100", 312.0, 79.3, 2039.0, 600.0),
        Device("a100-40gb", 312.0, 39.4, 1555.0, 600.0),
        Device("l40s", 362.0, 44.7, 864.0, 64.0),
        Device("a10g", 70.0, 22.5, 600.0, 64.0, 4),
        Device("l4", 121.0, 22.5, 300.0, 64.0, 4),
    )
}
"""NVIDIA's data sheets; memory as the driver reports it, which is less than the sheet's."""


def device_of(name: str) -> Device | None:
    """Return the device that a driver calls `name`, such as 'NVIDIA H200', or None."""
    words = name.lower().replace("-", " ").split()
    found = [device for device in DEVICES.values() if device.name.split("-")[0] in words]
    if "40gb" in words:
        found = [device for device in found if device.name.endswith("40gb")] or found
    return found[0] if found else None
