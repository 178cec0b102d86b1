"""What every stage of a round is given; and which scenes are new to a champion, which are kept from training."""

from dataclasses import dataclass
from typing import Any

from cluster.registry import Registry, Version
from jobs.retraining.rounds import Round
from jobs.retraining.schedule import Schedule


@dataclass(frozen=True)
class Context:
    """A round, those before it, and the champion that it challenges."""

    schedule: Schedule
    registry: Registry
    champion: Version
    earlier: tuple[Round, ...]
    round: Round

    def done(self, stage: str) -> dict[str, Any]:
        """Return what an earlier stage found; empty where it was left out."""
        return self.round.result(stage) or {}

    def scenes(self) -> tuple[list[str], list[str]]:
        """Return the ids of scenes that are new to the champion, and of those that are kept from training.

        New: those of rounds that did not lead to this champion. Kept away: those of rounds whose challenger was worse, or was
        champion until it was rolled back; they are looked at again once their files are replaced.
        """
        led_here, suspect = self._rounds_of_champion(), self.suspect_rounds()
        last = {name: round.number for round in (*self.earlier, self.round) for name in round.scenes}
        new = [name for name, number in last.items() if number not in led_here | suspect]
        return sorted(new), sorted(name for name, number in last.items() if number in suspect)

    def suspect_rounds(self) -> set[int]:
        """Return the rounds whose scenes made a model worse."""
        rolled_back = {self.registry.version(number).facts.get("round") for number in self.registry.rolled_back()}
        declined = {round.number for round in self.earlier if (round.result("decide") or {}).get("is_suspect")}
        return declined | {number for number in rolled_back if number is not None}

    def _rounds_of_champion(self) -> set[int]:
        found, version = set(), self.champion
        while (number := version.facts.get("round")) is not None:
            found.add(int(number))
            version = self.registry.version(version.facts["started_from"])
        return found
