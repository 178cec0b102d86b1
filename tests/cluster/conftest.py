"""An S3 store, served by moto on this machine."""

from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patched:
        for key, value in {**settings, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patched.setenv(key, value)
        S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket="runs")
        yield "s3://runs"
    S3FileSystem.clear_instance_cache()
    server.stop()
