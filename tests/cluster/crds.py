"""Check a manifest as a cluster's API server would that refuses unknown fields: KubeRay's objects and Kubernetes' own."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

FIELDS = Path(__file__).parent / "kuberay" / "v1.7.0.yaml"
KUBERNETES = "kubernetes-json-schema/v1.37.0-local-strict/_definitions.json"
KINDS = {
    ("ray.io/v1", "RayCluster"): "#/$defs/RayCluster",
    ("ray.io/v1", "RayJob"): "#/$defs/RayJob",
    ("ray.io/v1", "RayCronJob"): "#/$defs/RayCronJob",
    ("batch/v1", "CronJob"): "kubernetes#/$defs/io.k8s.api.batch.v1.CronJob",
    ("networking.k8s.io/v1", "NetworkPolicy"): "kubernetes#/$defs/io.k8s.api.networking.v1.NetworkPolicy",
}


def validate(found: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError unless the object has the fields of its kind, of their types, and no other."""
    _validator(KINDS[found["apiVersion"], found["kind"]]).validate(found)


@cache
def _validator(reference: str) -> Draft202012Validator:
    kinds = yaml.safe_load(FIELDS.read_text())
    schema = {"$ref": reference, "$defs": {name: _schema_of(fields) for name, fields in kinds.items()}}
    return Draft202012Validator(schema, registry=Registry().with_resource("kubernetes", _kubernetes()))


@cache
def _kubernetes() -> Any:
    content = json.loads(files("kubernetes_validate").joinpath(KUBERNETES).read_text())
    return Resource.from_contents({"$defs": content["$defs"]}, DRAFT202012)


def _schema_of(fields: dict[str, Any]) -> dict[str, Any]:
    properties = {name.rstrip("!"): _type_of(kind) for name, kind in fields.items()}
    required = [name.rstrip("!") for name in fields if name.endswith("!")]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _type_of(kind: str | list[str]) -> dict[str, Any]:
    if isinstance(kind, list):
        return {"type": "array", "items": _type_of(kind[0])}
    if "|" in kind:
        return {"enum": [word.strip() for word in kind.split("|") if word.strip()]}
    if kind == "map":
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if kind.startswith("k8s."):
        group = "apimachinery.pkg.apis" if kind.startswith("k8s.meta.") else "api"
        return {"$ref": f"kubernetes#/$defs/io.k8s.{group}.{kind.removeprefix('k8s.')}"}
    return {"type": kind} if kind in ("string", "integer", "number", "boolean") else {"$ref": f"#/$defs/{kind}"}
