"""What of this machine's environment a job takes along to a cluster: where things are, never a secret.

Keys and passwords are the cluster's own: its role in the cloud, or Secrets that manifests name (docs/kuberay.md).
"""

import os
import re

from pipeline.errors import InputError

FORWARDED = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
"""Values that Ray shows to everyone who may look at the job."""


def forwarded() -> dict[str, str]:
    """Return those of the variables that are set; raise InputError if one holds a password."""
    found = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    for name, value in found.items():
        require_no_password(name, value)
    return found


def require_no_password(name: str, value: str) -> None:
    """Raise InputError, without the password, for a URL such as https://user:password@host."""
    if re.search(r"//[^/\s@]*:[^/\s]*@", value):
        shown = re.sub(r"//[^/\s]*@", "//...@", value)
        raise InputError(f"{name} '{shown}' holds a password, which others would see; give it to the cluster instead")
