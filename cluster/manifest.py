"""Manifests for Kubernetes: a job, a schedule or a standing cluster as YAML that KubeRay's operator takes.

Decides what every cluster of ours has: two pools that grow and shrink, token authentication, a network policy, secrets by
reference only. What the objects look like stands in `kuberay/*.yaml`, in which `$name` is one of the typed values made here.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import ray
import yaml

from cluster.forwarded import forwarded, require_no_password
from pipeline.errors import InputError

Kind = Literal["RayJob", "RayCronJob", "CronJob", "RayCluster"]
TEMPLATES = Path(__file__).parent / "kuberay"
STORAGE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
TRACKING_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
PORTS = {"gcs": 6379, "dashboard": 8265, "metrics": 8080}
MAX_NAME = 40
"""Characters: KubeRay adds up to 23 of its own, and Kubernetes takes 63."""


@dataclass(frozen=True)
class ManifestConfig:
    """How a manifest is made; the job's own options stand beside these."""

    kind: Kind = "RayJob"
    """RayJob: a cluster for this one job; RayCronJob: one at each time of the schedule; RayCluster: one that stands; CronJob:

    a standing cluster and Kubernetes' own schedule for it, where KubeRay has none.
    """
    image: str = f"terraloom:{version('terraloom')}"
    """Made of cluster/Dockerfile, from a registry that the nodes reach."""
    name: str | None = None
    """Of the object; default: terraloom-JOB, or terraloom for a cluster."""
    namespace: str = "default"
    schedule: str | None = None
    """When, as cron says it: '0 3 * * 1' is every Monday at 3."""
    time_zone: str = "Etc/UTC"
    cpu_nodes: int = 8
    """Most nodes of the CPU pool, which co-registers and decodes; it shrinks to none."""
    cpu_node_cpus: int = 16
    cpu_node_memory_gib: int = 64
    gpu_nodes: int = 1
    """Most nodes of the GPU pool, which trains; 0: no such pool."""
    gpu_node_gpus: int = 8
    gpu_node_cpus: int = 64
    gpu_node_memory_gib: int = 512
    gpu_product: str | None = None
    """Only nodes whose label nvidia.com/gpu.product says this, such as NVIDIA-H200."""
    head_cpus: int = 4
    head_memory_gib: int = 16
    """Jobs' own processes live on the head."""
    service_account: str | None = None
    """Whose role in the cloud reads and writes the buckets; the better way of the two."""
    secret: str | None = None
    """A Secret that has AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and MLFLOW_TRACKING_PASSWORD where needed."""
    token_secret: str | None = None
    """A Secret with the cluster's token as auth_token; default: the operator makes one, named as the cluster."""
    redis: str | None = None
    """Where the head keeps its tables, host:port; default: on a volume of a standing cluster, nowhere for a cluster of one job."""
    redis_secret: str | None = None
    """A Secret that has Redis' password as password."""
    monitoring: str = "monitoring"
    """Namespace of Prometheus."""
    retries: int = 2
    """How often a job is begun again when its cluster was lost; it goes on where it was."""
    deadline_h: int = 168
    """Hours after which a job is ended whatever it does."""

    def __post_init__(self) -> None:
        least = {"cpu_nodes": 1, "cpu_node_cpus": 1, "cpu_node_memory_gib": 1, "gpu_nodes": 0, "gpu_node_gpus": 1}
        least |= {"gpu_node_cpus": 1, "gpu_node_memory_gib": 1, "head_cpus": 1, "head_memory_gib": 1, "retries": 0, "deadline_h": 1}
        for field, limit in least.items():
            if getattr(self, field) < limit:
                raise InputError(f"{field} is {getattr(self, field)}, expected at least {limit}")
        if self.name is not None and not (re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name) and len(self.name) <= MAX_NAME):
            raise InputError(
                f"name is '{self.name}', expected at most {MAX_NAME} small letters, digits and '-', a letter first; choose another"
            )
        if (self.schedule is None) == (self.kind in ("RayCronJob", "CronJob")):
            wanted = "give --schedule '0 3 * * 1'" if self.schedule is None else "leave --schedule out or choose --kind RayCronJob"
            raise InputError(f"kind {self.kind} {'needs a' if self.schedule is None else 'has no'} schedule; {wanted}")
        if self.schedule is not None and len(self.schedule.split()) != 5:
            raise InputError(f"schedule is '{self.schedule}', expected five fields such as '0 3 * * 1'")
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise InputError(f"time_zone is '{self.time_zone}', expected one such as Europe/Rome or Etc/UTC") from None
        require_no_password("image", self.image)
        require_no_password("redis", self.redis or "")


def manifest(config: ManifestConfig, arguments: list[str]) -> str:
    """Return the YAML of `terraloom *arguments` on Kubernetes; the job may be left out for a RayCluster."""
    if not arguments and config.kind != "RayCluster":
        raise InputError(f"a {config.kind} runs a job; give one with its arguments, or --kind RayCluster")
    for argument in arguments:
        require_no_password("argument", argument)
    objects = _objects(config, arguments)
    head = f"# terraloom {version('terraloom')}, Ray {ray.__version__}: kubectl apply -f FILE\n"
    if config.kind == "RayCluster":
        job = shlex.join(arguments) or "JOB ..."
        head += f"# terraloom submit --address http://{_name(config, arguments)}-head-svc:8265 {job}\n"
    return head + "---\n".join(yaml.safe_dump(found, sort_keys=False, width=120) for found in objects)


def _objects(config: ManifestConfig, arguments: list[str]) -> Iterator[dict[str, Any]]:
    name, is_standing = _name(config, arguments), config.kind in ("RayCluster", "CronJob")
    labels = {"app.kubernetes.io/name": "terraloom", "app.kubernetes.io/instance": name}
    common = {"namespace": config.namespace, "labels": labels}
    entrypoint = shlex.join(["terraloom", *arguments])
    cluster = _cluster(config, labels, is_standing)
    about = {"schedule": config.schedule, "time_zone": config.time_zone, "retries": config.retries}
    about["deadline_s"] = config.deadline_h * 3600
    if is_standing:
        yield _filled("raycluster", name=name, cluster=cluster, **common)
    if config.kind == "CronJob":
        token = {"name": config.token_secret or name, "key": "auth_token"}
        environment: list[dict[str, Any]] = [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": token}},
            {"name": "RAY_API_SERVER_ADDRESS", "value": f"http://{name}-head-svc:8265"},
        ]
        submitter = _pod(config, labels, "submitter", 1, 2, environment=environment, restart_policy="Never")
        submitter["spec"]["containers"][0]["command"] = ["terraloom", "submit", *arguments]
        yield _filled("cronjob", name=name, submitter_pod=submitter, **common, **about)
    elif not is_standing:
        submitter = _pod(config, labels, "submitter", 1, 2, environment=[], restart_policy="Never")
        job = _filled("job", entrypoint=entrypoint, job_name=arguments[0], cluster=cluster, submitter_pod=submitter, **about)
        yield _filled(config.kind.lower(), name=name, job=job, **common, **about)
    yield _filled("networkpolicy", name=name, selector=labels, monitoring=config.monitoring, **common)


def _name(config: ManifestConfig, arguments: list[str]) -> str:
    return config.name or (f"terraloom-{arguments[0]}" if arguments and config.kind != "RayCluster" else "terraloom")


def _cluster(config: ManifestConfig, labels: dict[str, str], is_standing: bool) -> dict[str, Any]:
    """Return the RayClusterSpec."""
    environment = list(_environment(config))
    pod: dict[str, Any] = {"environment": environment, "restart_policy": "Never"}
    gpus = {"nvidia.com/gpu": str(config.gpu_node_gpus)}
    cluster = _filled(
        "cluster",
        ray_version=ray.__version__,
        token_secret=config.token_secret,
        idle_s=300 if is_standing else 60,
        fault_tolerance=_fault_tolerance(config, is_standing),
        cpu_nodes=config.cpu_nodes,
        cpu_nodes_min=0,
        gpu_nodes=config.gpu_nodes,
        # The head of a cluster whose tables outlive it is restarted in its place.
        head_pod=_pod(
            config,
            labels,
            "ray-head",
            config.head_cpus,
            config.head_memory_gib,
            environment=environment,
            restart_policy="Always" if is_standing or config.redis else "Never",
            ports=[{"name": name, "containerPort": port} for name, port in PORTS.items()],
        ),
        cpu_pod=_pod(config, labels, "ray-worker", config.cpu_node_cpus, config.cpu_node_memory_gib, **pod),
        gpu_pod=_pod(
            config,
            labels,
            "ray-worker",
            config.gpu_node_cpus,
            config.gpu_node_memory_gib,
            gpus=gpus,
            node_selector={"nvidia.com/gpu.product": config.gpu_product} if config.gpu_product else None,
            tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            **pod,
        ),
    )
    if not config.gpu_nodes:
        cluster["workerGroupSpecs"].pop()
    return cluster


def _fault_tolerance(config: ManifestConfig, is_standing: bool) -> dict[str, Any] | None:
    """Return where the head keeps what must outlive it: a cluster of one job is made anew instead."""
    if config.redis:
        password = {"valueFrom": {"secretKeyRef": {"name": config.redis_secret, "key": "password"}}}
        options: dict[str, Any] = {"redisAddress": config.redis}
        return options | ({"redisPassword": password} if config.redis_secret else {})
    return {"backend": "rocksdb", "storage": {"size": "1Gi"}} if is_standing else None


def _pod(
    config: ManifestConfig,
    labels: dict[str, str],
    container: str,
    cpus: int,
    memory_gib: int,
    environment: list[dict[str, Any]],
    restart_policy: str,
    gpus: dict[str, str] | None = None,
    node_selector: dict[str, str] | None = None,
    tolerations: list[dict[str, str]] | None = None,
    ports: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return a PodTemplateSpec; what a pod asks for is what it may use."""
    return _filled(
        "pod",
        labels=labels,
        service_account=config.service_account,
        node_selector=node_selector,
        tolerations=tolerations,
        restart_policy=restart_policy,
        container=container,
        image=config.image,
        environment=environment or None,
        resources={"cpu": str(cpus), "memory": f"{memory_gib}Gi"} | (gpus or {}),
        ports=ports,
    )


def _environment(config: ManifestConfig) -> Iterator[dict[str, Any]]:
    """Yield the nodes' environment: what is no secret as it is here, what is one by reference."""
    for name, value in forwarded().items():
        yield {"name": name, "value": value}
    yield {"name": "TERRALOOM_NODE_WAIT_S", "value": "3600"}
    yield {"name": "THP_MEM_ALLOC_ENABLE", "value": "1"}
    if config.secret:
        for name in (*STORAGE_KEYS, *TRACKING_KEYS):
            reference = {"name": config.secret, "key": name, "optional": name not in STORAGE_KEYS[:2]}
            yield {"name": name, "valueFrom": {"secretKeyRef": reference}}


def _filled(template: str, **values: Any) -> dict[str, Any]:
    """Return a template with each `$name` replaced by the value of that name, of whatever type; None leaves its key out."""
    return _replaced(yaml.safe_load((TEMPLATES / f"{template}.yaml").read_text()), values)


def _replaced(node: Any, values: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        found = {key: _replaced(value, values) for key, value in node.items()}
        return {key: value for key, value in found.items() if value is not None}
    if isinstance(node, list):
        return [_replaced(value, values) for value in node]
    if isinstance(node, str) and node.startswith("$"):
        return values[node[1:]]
    return node
