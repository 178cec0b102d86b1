"""Which model is in use: versions that never change, and a history of which of them was the champion, and why.

A plain folder on any storage. A champion is made by writing the next record of the history, which only one of several can do:
who has compared with another champion than the present one is refused.
"""

import getpass
import time
from dataclasses import asdict, dataclass
from typing import Any

from cluster.sequence import Sequence
from pipeline import storage
from pipeline.errors import InputError


@dataclass(frozen=True)
class Version:
    """A model of the registry: its number, the URL of its own copy, and what is known of it."""

    number: int
    model: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Change:
    """That `number` became champion over `over` (None: the first), when, by whom and why."""

    number: int
    over: int | None
    time: float
    by: str
    reason: str


class Registry:
    """The registry in folder `url`."""

    def __init__(self, url: str):
        self.url = storage.absolute(url)
        self._versions, self._changes = (Sequence(storage.join(self.url, part)) for part in ("versions", "champions"))

    def register(self, model_url: str, facts: dict[str, Any]) -> Version:
        """Copy the model folder at `model_url` into the registry as a new version, with what is known of it."""
        own = storage.join(self.url, "models", f"{time.time_ns():x}")
        with storage.local_copy(model_url) as source, storage.staged_folder(own) as folder:
            for path in source.rglob("*"):
                if path.is_file():
                    target = folder / path.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())
        while True:
            number = self._versions.last()[0]
            if self._versions.append(number, {"model": own, "facts": facts}):
                return Version(number + 1, own, facts)

    def versions(self) -> list[Version]:
        """Return all versions in order."""
        return [Version(number, **self._versions.read(number)) for number in self._versions.numbers()]

    def version(self, number: int) -> Version:
        """Return a version; raise InputError, listing those there are, for another number."""
        known = self._versions.numbers()
        if number not in known:
            raise InputError(f"registry '{self.url}' has no version {number} (has {', '.join(map(str, known)) or 'none'})")
        return Version(number, **self._versions.read(number))

    def champion(self) -> Version | None:
        """Return the version in use, None before the first."""
        last = self._changes.last()[1]
        return self.version(last["number"]) if last else None

    def history(self) -> list[Change]:
        """Return all champions in order."""
        return [Change(**self._changes.read(number)) for number in self._changes.numbers()]

    def promote(self, number: int, over: int | None, reason: str) -> Change:
        """Make a version the champion in place of `over`; raise InputError if the champion is another by now."""
        self.version(number)
        place, last = self._changes.last()
        change = Change(number, over, time.time(), getpass.getuser(), reason)
        if (last["number"] if last else None) != over or not self._changes.append(place, asdict(change)):
            now = self._changes.last()[1]["number"]
            raise InputError(
                f"version {number} was compared with version {over}, the champion is version {now}; compare it with that"
            )
        return change

    def roll_back(self, reason: str) -> Change:
        """Make the version champion again that the present one was compared with when it became champion."""
        champion = self.champion()
        over = next((change.over for change in self.history() if champion and change.number == champion.number), None)
        if champion is None or over is None:
            raise InputError(f"registry '{self.url}' has no champion before the present one to go back to")
        return self.promote(over, champion.number, reason)

    def rolled_back(self) -> set[int]:
        """Return the versions that were champions until an earlier one was again."""
        return {change.over for change in self.history() if change.over is not None and change.number < change.over}
