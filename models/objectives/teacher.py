"""A frozen encoder beside a module that is trained: who may teach whom, and that the teacher is no part of the pupil."""

from collections.abc import Sequence
from typing import Any, Self

from torch import nn

from models.encoder import Encoder
from models.errors import InputError
from models.sensor import SensorSpec


class Taught(nn.Module):
    """A module with a teacher that is no submodule: not trained, saved, counted or sharded.

    It follows `.to(...)`, itself, not a copy.
    """

    _teacher: tuple[Encoder]

    def take(self, teacher: Encoder, sensors: Sequence[SensorSpec]) -> None:
        """Freeze `teacher` and keep it; raise InputError unless it knows the student's `sensors` as the student does."""
        for spec in sensors:
            taught = teacher.spec(spec.name)
            if (taught.bands, taught.unit, taught.gsd_m) != (spec.bands, spec.unit, spec.gsd_m):
                raise InputError(f"student's sensor '{spec.name}' is {spec}, expected as in the teacher: {taught}")
        self._teacher = (teacher.eval().requires_grad_(False),)

    @property
    def teacher(self) -> Encoder:
        return self._teacher[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.teacher._apply(fn)
        return self
