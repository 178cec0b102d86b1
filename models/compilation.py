"""Compile a network's blocks with torch.compile, in place: parameter names and checkpoints stay as they are.

This file decides what is compiled: blocks, which are one graph each in training. What an objective does around them depends
on what is hidden and invalid in a batch, and would be compiled anew for each.
"""

import os
import shutil

import torch
from torch import nn

from models.errors import InputError
from models.swin import Block
from models.vit import VitBlock


def compile_blocks(module: nn.Module, backend: str = "inductor") -> int:
    """Have every transformer block in `module` compiled at its first call; return how many there are."""
    blocks = [part for part in module.modules() if isinstance(part, Block | VitBlock)]
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)


def require_compiler() -> None:
    """Raise InputError if torch.compile has nothing here to make programs for a CPU with."""
    named = os.environ.get("CXX")
    if not torch.cuda.is_available() and not any(map(shutil.which, [named] if named else ["g++", "clang++", "c++"])):
        raise InputError(
            f"compile needs a C++ compiler on every machine, found {named or 'neither g++ nor clang++'}; install one, name it in "
            f"CXX, or set compile to False"
        )
