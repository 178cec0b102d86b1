"""MLflow's registry behind the same few calls: versions, the alias, history; a hand that moves the alias; a writer that was killed."""

from pathlib import Path

import pytest

from cluster.mlflow_registry import ALIAS, NUMBER, MlflowRegistry
from cluster.registries import open_registry
from cluster.registry import Registry
from pipeline.errors import InputError


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return str(tmp_path / "model")


def test_the_alias_is_the_champion(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    folder = str(tmp_path / "registry")
    registry = open_registry("mlflow:land", folder)
    assert isinstance(registry, MlflowRegistry)
    assert registry.champion() is None
    for score in (0.1, 0.2, 0.3):
        registry.register(model, {"score": score})
    registry.promote(0, None, "the first")
    registry.promote(1, 0, "better on landcover")
    client = registry._client

    def aliased() -> str:
        return client.get_model_version_by_alias("land", ALIAS).tags[NUMBER]

    assert aliased() == "1"
    champion = registry.champion()
    assert champion
    assert (champion.facts, client.get_model_version_by_alias("land", ALIAS).source) == ({"score": 0.2}, champion.model)
    with pytest.raises(InputError, match="version 2 was compared with version 0, the champion is version 1"):
        registry.promote(2, 0, "a late one")

    client.set_registered_model_alias("land", ALIAS, "3")  # by hand; MLflow counts from 1
    found = registry.champion()
    assert found
    assert found.number == 2
    assert registry.history()[-1].reason == "the alias 'champion' was moved in MLflow"
    with pytest.raises(InputError, match="version 0 was compared with version 1, the champion is version 2"):
        registry.promote(0, 1, "compared before")
    assert registry.roll_back("was a mistake").number == 1
    assert aliased() == "1"
    assert [(change.number, change.over) for change in registry.history()] == [(0, None), (1, 0), (2, 1), (1, 2)]

    Registry(folder).promote(2, 1, "and then it was killed")  # before MLflow heard of it
    found = open_registry("mlflow:land", folder).champion()
    assert found
    assert (found.number, aliased()) == (2, "2")


def test_what_is_no_registry_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="registry 'mlflow:' names no model; expected mlflow:NAME"):
        open_registry("mlflow:", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://user:secret@host/x")
    with pytest.raises(InputError, match="no model registry of MLflow at 'nosuch://host/x'"):
        open_registry("mlflow:land", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    with pytest.raises(InputError, match="database cannot be in 's3://bucket/x'; set MLFLOW_TRACKING_URI"):
        open_registry("mlflow:land", "s3://bucket/x")
    assert type(open_registry(str(tmp_path), "")) is Registry
