"""A process group of this process alone, for what is written for many: any number of times in one process."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed.comm
import torch.distributed as dist


@contextmanager
def alone() -> Iterator[None]:
    """Be rank 0 of 1 inside, by gloo."""
    os.environ.setdefault("LOCAL_RANK", "0")
    with tempfile.TemporaryDirectory() as meeting:
        dist.init_process_group("gloo", init_method=f"file://{meeting}/meeting", rank=0, world_size=1)
        try:
            yield
        finally:
            # Through DeepSpeed (0.19), which remembers groups by itself: those of a group that torch alone has destroyed, too.
            (deepspeed.comm if deepspeed.comm.is_initialized() else dist).destroy_process_group()
