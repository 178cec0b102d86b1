"""The same commands with archive and run on S3: a real S3-protocol server on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="module")
def environment():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "terraloom-test",
        "AWS_SECRET_ACCESS_KEY": "planted-secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    keys = {"aws_access_key_id": settings["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": settings["AWS_SECRET_ACCESS_KEY"]}
    client = boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys)
    client.create_bucket(Bucket="earth")
    yield {**os.environ, **settings}, client
    server.stop()


def test_archive_and_run_on_s3(environment, planet: Path) -> None:
    settings, client = environment

    def terraloom(*arguments: str) -> dict:
        command = [sys.executable, "-m", "jobs.cli", *arguments, "--json"]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
        assert "planted-secret" not in done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    archive, run = "s3://earth/archive", "s3://earth/runs/first"
    made = terraloom("coregister", str(planet / "scenes"), archive, "--register", "False", "--shard-sites", "2")
    assert made["shards_written"] > 4
    assert terraloom("verify", archive)["tiles"] == made["tiles"]
    options = ["--num-steps", "6", "--checkpoint-every", "3", "--batch-size", "2", "--window-shards", "2"]
    assert terraloom("pretrain", "msgfm_tiny", archive, run, *options)["steps"] == 6
    keys = {item["Key"] for item in client.list_objects_v2(Bucket="earth", Prefix="runs/first")["Contents"]}
    for name in ("config.json", "metrics.jsonl", "summary.json", "model/model.safetensors", "reconstructions.npz"):
        assert f"runs/first/{name}" in keys
    assert any(key.startswith("runs/first/checkpoints/00000006/") for key in keys)
    text = client.get_object(Bucket="earth", Key="runs/first/config.json")["Body"].read()
    assert b"planted-secret" not in text
    report = terraloom("report", run)
    assert report["report"] == f"{run}/report.html"
