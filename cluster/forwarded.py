"""What of this machine's environment a job takes along to a cluster: where things are, never a secret.

Keys and passwords are the cluster's own: its role in the cloud, or Secrets that manifests name (docs/kuberay.md).
"""

import os
import re
from collections.abc import Iterable

from pipeline.errors import InputError

FORWARDED = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
"""Values that Ray shows to everyone who may look at the job."""
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""What is in a secret's name."""


def forwarded(more: Iterable[str] = ()) -> dict[str, str]:
    """Return those of the variables that are set, and `more`; raise InputError if one of these is not, or one holds a secret."""
    found = {name: os.environ[name] for name in FORWARDED if name in os.environ} | {name: _asked_for(name) for name in more}
    for name, value in found.items():
        require_no_password(name, value)
    return found


def _asked_for(name: str) -> str:
    """Return the value of a variable; no message has one."""
    name, equals, _ = name.partition("=")
    if equals:
        raise InputError(f"variable '{name}' comes with a value, expected the name alone; set it here and give --env {name}")
    if SECRET.search(name):
        raise InputError(f"variable '{name}' is a secret by its name, which others would see; give it to the cluster instead")
    if name not in os.environ:
        raise InputError(f"variable '{name}' is not set here, expected its value in this environment; export it or leave --env out")
    return os.environ[name]


def require_no_password(name: str, value: str) -> None:
    """Raise InputError, without the password, for a URL such as https://user:password@host."""
    if re.search(r"//[^/\s@]*:[^/\s]*@", value):
        shown = re.sub(r"//[^/\s]*@", "//...@", value)
        raise InputError(f"{name} '{shown}' holds a password, which others would see; give it to the cluster instead")
