"""Who is told of a run's metrics besides its own metrics.jsonl: Ray's metrics always, TensorBoard and MLflow if asked.

Decides where each of them writes and how none hears of a step twice when a run goes on. What is told, and what becomes of a
sink that fails, is decided by `telemetry.py`.
"""

import importlib.util
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol

import ray
from ray.util.metrics import Gauge

from cluster.run import Run
from pipeline import storage
from pipeline.errors import InputError

SinkName = Literal["tensorboard", "mlflow"]
Record = dict[str, Any]
"""A step's line of metrics.jsonl."""
EXPERIMENT, RUN_ID_FILE = "terraloom", "mlflow.json"
MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # else refused (3.17); the other local store would need SQLAlchemy
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password, if the URI has one
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nobody hears of a run who was not asked to
}
"""For those that the environment does not say; MLflow's own would wait for minutes for a service that is gone."""
METRICS_A_CALL, PARAMETERS_A_CALL, PARAMETER_LENGTH = 1000, 100, 6000
"""What MLflow's interface takes at most."""


class Sink(Protocol):
    """One place that is told of a run. Anything it raises means that it cannot be told any more."""

    def begin(self, start: int, earlier: Iterable[Record]) -> None:
        """Take up the run before step `start`; `earlier` are the records until then."""

    def tell(self, records: list[Record]) -> None: ...

    def end(self, is_finished: bool) -> None: ...


def require_sinks(names: tuple[SinkName, ...], run: Run) -> dict[SinkName, str]:
    """Return where each of the sinks writes, or raise InputError where a package, a place or a service is missing."""
    places: dict[SinkName, str] = {}
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"sink '{name}' needs a package that is missing; pip install 'terraloom[{name}]' or leave it out")
        places[name] = _place(name, run)
        if name == "mlflow":
            _require_mlflow(places[name])
    return places


def _place(name: SinkName, run: Run) -> str:
    """Return MLflow's URI if the environment says it, else a folder of the run's."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") if name == "mlflow" else None
    if uri:  # a folder is to be the same one in workers, which have a working directory of their own
        return uri if ":" in uri or uri == "databricks" else os.path.abspath(uri)
    if not storage.is_local(run.url):
        other = "or set MLFLOW_TRACKING_URI" if name == "mlflow" else "or leave the sink out"
        raise InputError(f"sink '{name}' writes files, run folder '{run.url}' is not a local one; give one that is, {other}")
    return storage.filesystem(run.path(name))[1]


def open_sinks(places: dict[SinkName, str], run: Run, recipe: str) -> dict[str, Sink]:
    """Return the sinks of a run by name; nothing is written or asked for before `begin`."""
    sinks: dict[str, Sink] = {"ray": RayMetrics(run, recipe)} if ray.is_initialized() else {}
    for name, place in places.items():
        sinks[name] = TensorBoard(place) if name == "tensorboard" else Mlflow(place, run, recipe)
    return sinks


def numbers(record: Record) -> Iterator[tuple[str, float]]:
    """Yield what can be drawn: names of sensor sets and lists, such as the experts' loads, are in metrics.jsonl alone."""
    yield from ((k, float(v)) for k, v in record.items() if k != "step" and isinstance(v, int | float))


class RayMetrics:
    """The latest numbers as gauges, which every Ray node exports for Prometheus, with the run and its recipe as tags.

    What metrics.jsonl has as `feature_std/dsm` is `ray_terraloom_feature_std` with the tag sensor="dsm" there.
    """

    def __init__(self, run: Run, recipe: str):
        self._tags = {"run": run.url, "recipe": recipe}
        self._gauges: dict[str, Gauge] = {}

    def begin(self, start: int, earlier: Iterable[Record]) -> None:
        pass  # the past is no measure of now

    def tell(self, records: list[Record]) -> None:
        latest: Record = {}
        for record in records:
            latest |= record
        for key, value in [("step", float(latest["step"])), *numbers(latest)]:
            name, _, sensor = key.partition("/")
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"terraloom_{name}", f"{name} in metrics.jsonl", ("run", "recipe", "sensor"))
            self._gauges[name].set(value, {**self._tags, "sensor": sensor})

    def end(self, is_finished: bool) -> None:
        pass


class TensorBoard:
    """Event files in a local folder, a scalar for each number."""

    def __init__(self, folder: str):
        self._folder = folder

    def begin(self, start: int, earlier: Iterable[Record]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        is_known = bool(storage.names(self._folder))
        # Readers drop what stands in earlier files of steps from purge_step on.
        self._writer = SummaryWriter(self._folder, purge_step=start if is_known else None)
        if not is_known:
            self.tell(earlier)

    def tell(self, records: Iterable[Record]) -> None:
        for record in records:
            for name, value in numbers(record):
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def end(self, is_finished: bool) -> None:
        self._writer.close()


class Mlflow:
    """A run of the experiment 'terraloom', told from a thread of its own.

    Its id stays in the run's folder. MLflow cannot take back what it was told, so a step that a restart does once more is not
    told again; what it missed is told from metrics.jsonl.
    """

    def __init__(self, uri: str, run: Run, recipe: str):
        self._uri, self._run, self._recipe = uri, run, recipe
        self._thread = ThreadPoolExecutor(1, "mlflow")
        self._calls: deque[Future[None]] = deque()
        self._told: dict[str, int] = {}

    def begin(self, start: int, earlier: Iterable[Record]) -> None:
        self._call(self._take_up)
        self._call(self._send, earlier)

    def tell(self, records: list[Record]) -> None:
        self._call(self._send, records)

    def end(self, is_finished: bool) -> None:
        self._call(lambda: self._client.set_terminated(self._id, "FINISHED" if is_finished else "FAILED"))
        self._raise_failure(waits=True)
        self._thread.shutdown()

    def _call(self, *action: Any) -> None:
        self._raise_failure()
        self._calls.append(self._thread.submit(*action))

    def _raise_failure(self, waits: bool = False) -> None:
        try:
            while self._calls and (waits or self._calls[0].done()):
                self._calls.popleft().result()
        except Exception:
            self._thread.shutdown(wait=False, cancel_futures=True)
            raise

    def _take_up(self) -> None:
        """Find the run that was begun earlier, and the last step of each metric that it was told, or begin one."""
        from mlflow import MlflowException

        self._client = mlflow_client(self._uri)
        path = self._run.path(RUN_ID_FILE)
        if storage.exists(path):
            self._id = storage.read_json(path)["run_id"]
            try:
                known = self._client.get_run(self._id).data.to_proto().metrics
                self._told = {metric.key: metric.step for metric in known}
                self._client.update_run(self._id, status="RUNNING")
                return
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # at another server a run begins anew
                    raise
        self._id = self._begin_run()
        storage.write_json(path, {"run_id": self._id})

    def _begin_run(self) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        tags = {"recipe": self._recipe, "run": self._run.url}
        begun = self._client.create_run(number, run_name=self._run.url.rstrip("/").rsplit("/", 1)[-1], tags=tags)
        settings = _flat(storage.read_json(self._run.path("config.json"))["config"])
        parameters = [Param(key, value[:PARAMETER_LENGTH]) for key, value in settings]
        for first in range(0, len(parameters), PARAMETERS_A_CALL):
            self._client.log_batch(begun.info.run_id, params=parameters[first : first + PARAMETERS_A_CALL])
        return begun.info.run_id

    def _send(self, records: Iterable[Record]) -> None:
        from mlflow.entities import Metric

        now, batch = int(time.time() * 1000), []
        for record in records:
            step = record["step"]
            named = ((key.replace("->", " to "), value) for key, value in numbers(record))  # MLflow refuses '>'
            batch += [Metric(key, value, now, step) for key, value in named if step > self._told.get(key, -1)]
            if len(batch) > METRICS_A_CALL // 2:
                self._client.log_batch(self._id, metrics=batch)
                batch = []
        if batch:
            self._client.log_batch(self._id, metrics=batch)


def mlflow_client(uri: str) -> Any:
    """Return a client of the server at `uri` or of the local folder `uri`."""
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _require_mlflow(uri: str) -> None:
    try:
        mlflow_client(uri).search_experiments(max_results=1)
    except Exception as error:  # from whatever store MLflow has for this URI
        raise InputError(f"no MLflow at MLFLOW_TRACKING_URI ({said(error)}); start it, set another or leave it out") from None


def said(error: Exception) -> str:
    """Return in a line what an error says, without the credentials that a URL in it may hold."""
    return f"{type(error).__name__}: {without_credentials(str(error))}"[:300]


def without_credentials(text: str) -> str:
    """Return a text in one line without what URLs in it say before their host."""
    return re.sub(r"//[^/\s]*@", "//", " ".join(text.split()))


def _flat(content: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield what settings hold as ('train.optimiser.learning_rate', '0.001')."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flat(value, f"{where}.{key}" if where else key)
    else:
        yield where, str(content)
