"""What `pretrain --start-from SOURCE` begins with: the weights of a run, of what `retrain` registered, or of a model alone."""

from typing import Any

from torch import Tensor

from cluster.checkpoints import checkpoint_url
from cluster.consolidate import consolidate
from cluster.run import Run
from cluster.start import ENCODER, FOLDER, WEIGHTS, load_weights, write_start
from jobs.distill import load_encoder, model_folder
from jobs.export import job_of
from models.encoder import Encoder
from pipeline import storage


def start_of(run: Run, source: str) -> str:
    """Put the weights of `source` into the run's folder, once; return where they are."""
    url = run.path(FOLDER)
    if not storage.exists(storage.join(url, WEIGHTS)):
        write_start(url, *weights_of(source), source)
    return url


def weights_of(source: str) -> tuple[Encoder, dict[str, Tensor]]:
    """Return the encoder of `source` and, by the objective's names, all weights that there are.

    Of a pretrain run all that its last whole checkpoint holds, whether it has finished or not; of a model its encoder's.
    """
    url = storage.absolute(source)
    if storage.exists(storage.join(url, WEIGHTS)):
        return load_encoder(model_folder(url)), load_weights(url)
    run = Run(url, "pretrain")
    if _config(run).get("job") == "pretrain" and storage.names(run.path("checkpoints")):
        trained, _ = consolidate(job_of(run), checkpoint_url(run, None))
        return trained.encoder, trained.state_dict()
    encoder = load_encoder(model_folder(url))
    return encoder, {f"{ENCODER}{name}": tensor for name, tensor in encoder.state_dict().items()}


def _config(run: Run) -> dict[str, Any]:
    return storage.read_json(run.path("config.json")) if storage.exists(run.path("config.json")) else {}
