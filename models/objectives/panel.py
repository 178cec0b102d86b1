"""What a masked objective shows people of its reconstructions. Legend: B samples, C channel, Y X pixels."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Panel:
    """One sensor of a reconstruction, in physical units: what was there, what was hidden, what was predicted.

    target, prediction (B, C, Y, X); is_hidden, is_valid (B, Y, X). If is_source, the input was the visible target.
    """

    is_source: bool
    target: Tensor
    prediction: Tensor
    is_hidden: Tensor
    is_valid: Tensor
