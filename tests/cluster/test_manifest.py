"""Manifests against KubeRay's and Kubernetes' own fields, and what stands in them; the VM cluster's against Ray's schema."""

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from cluster.manifest import ManifestConfig, manifest
from jobs.cli import JOBS, main
from pipeline.errors import InputError
from tests.cluster.crds import validate

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["pretrain", "mae_base", "s3://earth/archive", "s3://earth/runs/a b", "--num-steps", "1000"]
KINDS: list[dict[str, Any]] = [
    {"kind": "RayCluster"},
    {"kind": "RayJob"},
    {"kind": "RayCronJob", "schedule": "0 3 * * 1", "time_zone": "Europe/Rome"},
    {"kind": "CronJob", "schedule": "0 3 * * 1"},
]
FULL: dict[str, Any] = {
    "gpu_product": "NVIDIA-H200",
    "service_account": "earth",
    "secret": "earth-keys",
    "token_secret": "ray-token",
}
FULL |= {"redis": "redis.earth:6379", "redis_secret": "redis", "namespace": "earth", "name": "weekly"}


def objects(arguments: list[str] = ARGUMENTS, **settings: Any) -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all(manifest(ManifestConfig(**settings), arguments)))
    return {one["kind"]: one for one in found}


def cluster_of(found: dict[str, Any]) -> dict[str, Any]:
    spec = (found.get("RayCluster") or found.get("RayJob") or found["RayCronJob"])["spec"]
    spec = spec.get("jobTemplate", spec)
    return spec.get("rayClusterSpec", spec)


def pods(found: Any) -> Iterator[dict[str, Any]]:
    """Yield all pod specs."""
    if isinstance(found, dict):
        if "containers" in found:
            yield found
        for value in found.values():
            yield from pods(value)
    elif isinstance(found, list):
        for value in found:
            yield from pods(value)


@pytest.mark.parametrize("more", [{}, FULL], ids=["default", "full"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
def test_manifests_are_valid(kind: dict[str, Any], more: dict[str, Any]) -> None:
    found = objects(**kind, **more)
    assert kind["kind"] in found
    assert "NetworkPolicy" in found
    for one in found.values():
        validate(one)


@pytest.mark.parametrize("job", sorted({*JOBS, "sweep", "retrain"} - {"submit", "manifest"}))
def test_every_job_has_a_manifest(job: str) -> None:
    """Whatever its arguments are: the entrypoint is the command."""
    found = objects([job, "s3://earth/it's", "--option", "a b"])["RayJob"]
    validate(found)
    assert shlex.split(found["spec"]["entrypoint"]) == ["terraloom", job, "s3://earth/it's", "--option", "a b"]
    assert found["metadata"]["name"] == f"terraloom-{job}"


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every object whose fields have a schema; maps of strings may have any."""
    if isinstance(node, dict):
        if not path or path[-1] not in (
            "rayStartParams",
            "labels",
            "matchLabels",
            "requests",
            "limits",
            "nodeSelector",
            "metadata",
        ):
            yield path
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from places(value, (*path, number))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
def test_a_misspelt_field_fails_wherever_it_is(kind: dict[str, Any]) -> None:
    for one in objects(**kind, **FULL).values():
        for path in places(one):
            wrong = copy.deepcopy(one)
            inner: Any = wrong
            for step in path:
                inner = inner[step]
            inner["minReplica"] = 1
            with pytest.raises(jsonschema.ValidationError, match="minReplica"):
                validate(wrong)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "backoffLimit"), "2"),
        (("spec", "rayClusterSpec"), None),
    ],
)
def test_a_wrong_value_fails(path: tuple[str, ...], value: Any) -> None:
    found = objects()["RayJob"]
    inner = found
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(found)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
def test_what_every_cluster_has(kind: dict[str, Any]) -> None:
    found = objects(**kind, image="registry.example/terraloom:7")
    cluster = cluster_of(found)
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    pools = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert [pools[name]["minReplicas"] for name in ("cpu", "gpu")] == [0, 0]
    (cpu,), (gpu,) = (list(pods(pools[name])) for name in ("cpu", "gpu"))
    assert "nvidia.com/gpu" not in cpu["containers"][0]["resources"]["limits"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    selected = found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    for template in [cluster["headGroupSpec"]["template"], *(pool["template"] for pool in pools.values())]:
        assert selected.items() <= template["metadata"]["labels"].items()
    for pod in pods(found):
        (container,) = pod["containers"]
        assert container["image"] == "registry.example/terraloom:7"
        assert pod["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize(
    ("wanted", "pool"), [({"CPU": 1}, "cpu"), ({"CPU": 16}, "cpu"), ({"CPU": 17}, "gpu"), ({"CPU": 1, "GPU": 1}, "gpu")]
)
def test_the_autoscaler_starts_gpu_nodes_only_where_they_are_needed(wanted: dict[str, int], pool: str) -> None:
    """Ray's own, from the fields as they stand."""
    config = AutoscalingConfig(
        _derive_autoscaling_config_from_ray_cr(objects(kind="RayCluster")["RayCluster"]), skip_content_hash=True
    )
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(wanted)]),
    )
    assert [(node.instance_type, node.count) for node in ResourceDemandScheduler(None).schedule(request).to_launch] == [(pool, 1)]


def test_older_operators_know_every_field() -> None:
    """KubeRay before 1.7 has neither; Kubernetes refuses what it does not know."""
    for kind in KINDS:
        text = manifest(ManifestConfig(**kind, redis="redis:6379"), ARGUMENTS)
        assert "priority:" not in text
        assert "backend:" not in text


def test_tables_of_a_standing_cluster_outlive_its_head() -> None:
    standing, job = (cluster_of(objects(kind=kind)) for kind in ("RayCluster", "RayJob"))
    assert standing["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    assert "gcsFaultToleranceOptions" not in job
    with_redis = cluster_of(objects(redis="redis:6379", redis_secret="redis"))["gcsFaultToleranceOptions"]
    assert with_redis["redisAddress"] == "redis:6379"
    assert with_redis["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}


def test_a_job_is_begun_again_and_its_cluster_goes() -> None:
    spec = objects(retries=5, deadline_h=2)["RayJob"]["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["shutdownAfterJobFinishes"]) == (5, 7200, True)


def test_a_plain_schedule_submits_to_the_cluster_beside_it() -> None:
    found = objects(kind="CronJob", schedule="0 3 * * 1", name="weekly", time_zone="Europe/Rome")
    spec = found["CronJob"]["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("0 3 * * 1", "Europe/Rome", "Forbid")
    (pod,) = pods(spec)
    assert pod["containers"][0]["command"] == ["terraloom", "submit", *ARGUMENTS]
    environment = {one["name"]: one for one in pod["containers"][0]["env"]}
    assert environment["RAY_API_SERVER_ADDRESS"]["value"] == f"http://{found['RayCluster']['metadata']['name']}-head-svc:8265"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "weekly", "key": "auth_token"}


def test_secrets_are_references(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example")
    for kind in KINDS:
        text = manifest(ManifestConfig(**kind, **FULL), ARGUMENTS)
        assert "planted" not in text
        assert "https://store.example" in text
        for pod in pods(list(yaml.safe_load_all(text))):
            for one in pod["containers"][0].get("env", ()):
                if re.search("KEY|TOKEN$|PASSWORD", one["name"]):
                    assert set(one) == {"name", "valueFrom"}


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"kind": "RayCronJob"}, ARGUMENTS, "kind RayCronJob needs a schedule; give --schedule"),
        ({"schedule": "0 3 * * 1"}, ARGUMENTS, "kind RayJob has no schedule; leave --schedule out"),
        ({"kind": "CronJob", "schedule": "monday"}, ARGUMENTS, "schedule is 'monday', expected five fields"),
        ({"kind": "CronJob", "schedule": "0 3 * * 1", "time_zone": "Rome"}, ARGUMENTS, "time_zone is 'Rome'"),
        ({"name": "My_Job"}, ARGUMENTS, "name is 'My_Job', expected at most 40"),
        ({"gpu_nodes": -1}, ARGUMENTS, "gpu_nodes is -1, expected at least 0"),
        ({}, [], "a RayJob runs a job; give one"),
        (
            {},
            ["verify", "https://me:planted@store.example/archive"],
            r"argument 'https://\.\.\.@store.example/archive' holds a password",
        ),
    ],
)
def test_wrong_input_is_one_line(settings: dict[str, Any], arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        manifest(ManifestConfig(**settings), arguments)
    assert "planted" not in str(refused.value)


def test_a_password_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:planted@tracking.example")
    with pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI 'https://\.\.\.@tracking.example' holds a password") as refused:
        manifest(ManifestConfig(), ARGUMENTS)
    assert "planted" not in str(refused.value)


def test_the_command_takes_its_options_from_among_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["manifest", "pretrain", "mae_tiny", "--image=earth:7", "s3://a", "s3://b", "--kind", "single", "--kind", "RayJob"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--gpu-nodes", "0", "--seed", "3"])
    assert ended.value.code == 0
    found = list(yaml.safe_load_all(capsys.readouterr().out))
    for one in found:
        validate(one)
    assert found[0]["spec"]["entrypoint"] == "terraloom pretrain mae_tiny s3://a s3://b --kind single --seed 3"
    assert {pod["containers"][0]["image"] for pod in pods(found)} == {"earth:7"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretain", "x"], "'pretain' is no job; expected 'terraloom manifest JOB"),
        (["submit", "verify", "x"], "'submit' is no job"),
        (["verify", "x", "--kind", "RayJobs"], "RayJobs"),
    ],
)
def test_the_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["manifest", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("job", sorted(JOBS.keys() - {"submit", "manifest"}))
def test_no_job_has_an_option_of_the_manifests_name(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the manifest would take it away from the job. Of --kind the values tell whose it is."""
    recipe = {"pretrain": ["msgfm_tiny"], "estimate": ["mae_tiny"], "distill": []}.get(job, [])
    with pytest.raises(SystemExit) as ended:
        main([job, *recipe, "--help"])
    assert ended.value.code == 0
    options = {*re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out)}
    assert not options & {f"--{field.name.replace('_', '-')}" for field in fields(ManifestConfig) if field.name != "kind"}


def test_a_cluster_of_cpus_has_no_other_pool() -> None:
    assert [g["groupName"] for g in cluster_of(objects(gpu_nodes=0))["workerGroupSpecs"]] == ["cpu"]


def test_the_vm_cluster_is_what_ray_takes() -> None:
    found = yaml.safe_load((ROOT / "cluster" / "autoscaler.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(found, schema)
    types = found["available_node_types"]
    assert found["head_node_type"] in types
    assert types[found["head_node_type"]]["resources"]["CPU"] == 0
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate({**found, "max_worker": 1}, schema)


def test_the_image_is_made_of_what_is_there() -> None:
    text = (ROOT / "cluster" / "Dockerfile").read_text().replace("\\\n", " ")
    ignored = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().split()
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.M) for name in line.split()[:-1] if not name.startswith("--")]
    assert {"pyproject.toml", "pipeline", "models", "cluster", "jobs"} <= {*copied}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {f"!{name}" for name in copied} <= {*ignored}
    assert ignored[0] == "*"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r"\.\[([a-z,]+)\]", text)
    assert "cluster" in wanted.split(",")
    assert {*wanted.split(",")} <= extras.keys()


def test_files_beside_the_code_are_in_the_package() -> None:
    """Templates and dashboard are read by the installed command."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["cluster"]
    packed = {path for pattern in patterns for path in (ROOT / "cluster").glob(pattern)}
    beside = {p for p in (ROOT / "cluster").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert packed == beside
