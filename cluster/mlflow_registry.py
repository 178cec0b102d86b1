"""The same registry where people look: versions and the alias `champion` in MLflow's model registry.

Weights, versions and the history of champions lie in a folder, as without MLflow, whose store has no compare-and-set. MLflow
shows them, and its alias says who is champion: somebody who moves it by hand is believed.
"""

import json
import time
from typing import Any

from cluster.registry import Change, Registry, Version
from cluster.sinks import mlflow_client, said, without_credentials
from pipeline.errors import InputError

ALIAS = "champion"
NUMBER, FACTS, REASON = "terraloom.number", "terraloom.facts", "terraloom.reason"
"""Tags of a version in MLflow; its own numbers begin with 1 and are MLflow's."""


class MlflowRegistry(Registry):
    """The registered model `name` of the server or database at `uri`, its weights and history in folder `url`."""

    def __init__(self, name: str, uri: str, url: str):
        super().__init__(url)
        self.name = name
        try:
            self._client = mlflow_client(uri)
            if not self._client.search_registered_models(f"name = '{name}'"):
                self._client.create_registered_model(name)
        except Exception as error:  # from whatever store MLflow has for this URI
            where = without_credentials(uri)
            raise InputError(f"no model registry of MLflow at '{where}' ({said(error)}); start it, or use a folder") from None

    def register(self, model_url: str, facts: dict[str, Any]) -> Version:
        version = super().register(model_url, facts)
        self._shown(version.number)
        return version

    def champion(self) -> Version | None:
        """Return the version that has the alias, None before the first."""
        self._finish()
        number = self._aliased()
        return None if number is None else self.version(number)

    def history(self) -> list[Change]:
        """Return all champions in order; one that was made by hand is the last."""
        self._finish()
        changes, number = super().history(), self._aliased()
        last = changes[-1].number if changes else None
        if number is None or number == last:
            return changes
        return [*changes, Change(number, last, time.time(), "MLflow", f"the alias '{ALIAS}' was moved in MLflow")]

    def promote(self, number: int, over: int | None, reason: str) -> Change:
        self._take_over()
        change = super().promote(number, over, reason)
        self._finish()
        return change

    def _take_over(self) -> None:
        """Write down a champion that was made by hand: what follows is compared with it."""
        changes = self.history()
        if len(changes) > len(super().history()):
            super().promote(changes[-1].number, changes[-1].over, changes[-1].reason)

    def _finish(self) -> None:
        """Move the alias where the last change was written down and not shown yet: whoever wrote it was killed."""
        changes = super().history()
        if changes and self._client.get_registered_model(self.name).tags.get(NUMBER) != str(len(changes)):
            shown = self._shown(changes[-1].number)
            self._client.set_registered_model_alias(self.name, ALIAS, shown)
            self._client.set_model_version_tag(self.name, shown, REASON, changes[-1].reason[:5000])
            self._client.set_registered_model_tag(self.name, NUMBER, str(len(changes)))

    def _aliased(self) -> int | None:
        aliases = self._client.get_registered_model(self.name).aliases
        if ALIAS not in aliases:
            return None
        found = self._client.get_model_version(self.name, aliases[ALIAS]).tags.get(NUMBER)
        if found is None:
            raise InputError(
                f"'{ALIAS}' of MLflow's '{self.name}' is its version {aliases[ALIAS]}, which Terraloom did not register; "
                "give the alias to another version"
            )
        return int(found)

    def _shown(self, number: int) -> str:
        """Return MLflow's number of a version, which it is told of where it does not know it."""
        for found in self._client.search_model_versions(f"name = '{self.name}'"):
            if found.tags.get(NUMBER) == str(number):
                return str(found.version)
        version = super().version(number)
        tags = {NUMBER: str(number), FACTS: json.dumps(version.facts, default=str)[:5000]}
        return str(self._client.create_model_version(self.name, version.model, tags=tags).version)
