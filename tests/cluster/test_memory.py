"""Large tensors come in huge pages, in whatever imports this room before torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MADE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS = """
import cluster
import resource
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Fills 64 MiB; prints how often a page was not there: 16384 times in pages of 4 KiB, 32 in those of 2 MiB."""


def faults(asked: str | None) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if asked is None else {"THP_MEM_ALLOC_ENABLE": asked}
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(not MADE.is_file() or "[madvise]" not in MADE.read_text(), reason="needs huge pages for those that ask")
def test_large_tensors_come_in_huge_pages_unless_told_otherwise() -> None:
    assert faults(None) < 4000 < 16000 < faults("0")
