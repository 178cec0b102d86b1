"""A sweep's folder is its ledger: a cell is done when its summary is there, and failed when a reason is.

RUN/cells/<key>/  train/ (the run), answers.npz, failed.json or summary.json, which is written last and whole.
"""

from dataclasses import asdict
from typing import Any

from jobs.sweeping.cell import Cell
from jobs.sweeping.quiz import Answers, from_bytes, to_bytes
from pipeline import storage

FOLDER, SUMMARY, FAILED, ANSWERS, TRAINING = "cells", "summary.json", "failed.json", "answers.npz", "train"


class Ledger:
    """The cells below the run folder at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def path(self, key: str, *parts: str) -> str:
        return storage.join(self.url, FOLDER, key, *parts)

    def is_done(self, key: str) -> bool:
        return storage.exists(self.path(key, SUMMARY))

    def finish(self, cell: Cell, facts: dict[str, Any], answers: dict[str, Answers]) -> None:
        """Write a cell's answers, then its summary; a reason why it failed before is no longer true."""
        storage.write_bytes(self.path(cell.key, ANSWERS), to_bytes(answers))
        storage.write_json(self.path(cell.key, SUMMARY), {"cell": asdict(cell), **facts})
        if storage.exists(self.path(cell.key, FAILED)):
            storage.remove(self.path(cell.key, FAILED))

    def fail(self, cell: Cell, reason: str) -> None:
        storage.write_json(self.path(cell.key, FAILED), {"cell": asdict(cell), "reason": reason})

    def failure(self, key: str) -> str:
        """Return why a cell failed; empty where it did not."""
        return storage.read_json(self.path(key, FAILED))["reason"] if storage.exists(self.path(key, FAILED)) else ""

    def summary(self, key: str) -> dict[str, Any]:
        return storage.read_json(self.path(key, SUMMARY))

    def answers(self, key: str) -> dict[str, Answers]:
        return from_bytes(storage.read_bytes(self.path(key, ANSWERS)))
