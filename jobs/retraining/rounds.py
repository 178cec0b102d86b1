"""What is remembered of rounds: a folder each, a file for each stage that is done, so that a killed round goes on where it was.

FOLDER/
  suite.json                which suite all rounds use, by its digest
  lock/                     who is at it
  rounds/0001/round.json    the scenes it is about, the champion that it challenges, the schedule as it was
              extend.json drift.json train.json compare.json decide.json     what each stage found
              scenes.json run/ scores/     what its challenger was trained on, its run, the comparison
"""

import time
from dataclasses import dataclass
from typing import Any

from jobs.retraining.schedule import Schedule
from pipeline import storage
from pipeline.archive import open_archive
from pipeline.errors import InputError

STAGES = ("extend", "drift", "train", "compare", "decide")


@dataclass(frozen=True)
class Round:
    """The round in folder `url`."""

    number: int
    url: str
    about: dict[str, Any]

    def path(self, *parts: str) -> str:
        return storage.join(self.url, *parts)

    @property
    def scenes(self) -> dict[str, dict[str, str | None]]:
        """The scenes that it is about, with what tells their files from replaced ones."""
        return self.about["scenes"]

    def result(self, stage: str) -> dict[str, Any] | None:
        """Return what a stage found; None where it is not done."""
        url = self.path(f"{stage}.json")
        return storage.read_json(url) if storage.exists(url) else None

    def finish(self, stage: str, result: dict[str, Any]) -> None:
        """Write down what a stage found: from here on it is done."""
        storage.write_json(self.path(f"{stage}.json"), result)


class Rounds:
    """The rounds under a schedule's folder."""

    def __init__(self, schedule: Schedule):
        self._schedule, self._url = schedule, storage.join(schedule.folder, "rounds")

    def all(self) -> list[Round]:
        """Return the rounds that were begun, in order."""
        found = []
        for name in storage.names(self._url):
            about = storage.join(self._url, name, "round.json")
            if name.isdigit() and storage.exists(about):
                found.append(Round(int(name), storage.join(self._url, name), storage.read_json(about)))
        return found

    def unfinished(self) -> Round | None:
        """Return the round that was begun and has no end; InputError where the schedule has changed since."""
        rounds = self.all()
        if not rounds or rounds[-1].result("decide") is not None:
            return None
        last, now = rounds[-1], self._schedule.model_dump(mode="json")
        changed = [name for name, value in now.items() if last.about["schedule"].get(name) != value]
        if changed:
            before = last.about["schedule"].get(changed[0])
            raise InputError(
                f"round {last.number} was begun with {changed[0]} = {before!r}, the schedule now says {now[changed[0]]!r}; "
                f"let it end with what it was begun with, or remove '{last.url}'"
            )
        return last

    def begin(self, scenes: dict[str, dict[str, str | None]], champion: int) -> Round:
        """Begin the next round, about these scenes, against version `champion`."""
        rounds = self.all()
        number = rounds[-1].number + 1 if rounds else 1
        about = {"scenes": scenes, "champion": champion, "begun": time.time(), "schedule": self._schedule.model_dump(mode="json")}
        url = storage.join(self._url, f"{number:04}")
        storage.write_json(storage.join(url, "round.json"), about)
        return Round(number, url, about)

    def require_suite(self) -> None:
        """Raise InputError where the suite is not, tile by tile, the one of the first round."""
        url, suite = storage.join(self._schedule.folder, "suite.json"), self._schedule.suite.archive
        found = {"archive": suite, "digest": open_archive(suite).digest()}
        storage.create_bytes(url, storage.json_bytes(found))
        frozen = storage.read_json(url)
        if frozen["digest"] != found["digest"]:
            raise InputError(
                f"suite '{suite}' has digest {found['digest'][:12]}, that of the first round had {frozen['digest'][:12]}: scores "
                "would not be comparable; restore it, or begin anew with another folder"
            )
