"""Which registry a URL names: a folder on any storage, or a model of MLflow's registry."""

import os

from cluster.mlflow_registry import MlflowRegistry
from cluster.registry import Registry
from pipeline import storage
from pipeline.errors import InputError

MLFLOW = "mlflow:"
DATABASE = "mlflow.db"


def open_registry(url: str, folder: str) -> Registry:
    """Return the registry at `url`, or, for `mlflow:NAME`, that of MLflow with its weights in `folder`.

    MLflow's is at MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI, else in a database in `folder`, which then must be local.
    """
    if not url.startswith(MLFLOW):
        return Registry(url)
    name = url.removeprefix(MLFLOW)
    if not name or set(name) & set("/:'"):
        raise InputError(f"registry '{url}' names no model; expected mlflow:NAME with a name without / : and '")
    uri = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        if not storage.is_local(folder):
            raise InputError(f"MLflow's database cannot be in '{folder}'; set MLFLOW_TRACKING_URI to a server")
        os.makedirs(folder, exist_ok=True)
        uri = f"sqlite:///{storage.absolute(folder)}/{DATABASE}"
    return MlflowRegistry(name, uri, folder)
