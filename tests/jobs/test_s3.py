"""The same commands with archive and run on S3: a real S3-protocol server on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pytest
import xarray as xr
from moto.server import ThreadedMotoServer

from pipeline.scan import Given, scan
from pipeline.sensors import load_sensor
from pipeline.stac import read_scenes, write_catalog
from tests.rasters import NORTH, WEST, grid


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
        "RAY_AUTH_MODE": "token",  # Ray (2.60) takes it for a cluster that it starts, not for one whose address it is told
    }
    keys = {"aws_access_key_id": settings["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": settings["AWS_SECRET_ACCESS_KEY"]}
    client = boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys)
    client.create_bucket(Bucket="earth")
    yield {**os.environ, **settings}, client
    server.stop()


START_RAY = (
    "import ray; from cluster.connect import connect; connect(); print(ray.get_runtime_context().gcs_address, flush=True); input()"
)


@pytest.fixture(scope="module")
def address(environment):
    """Ray that knows the server: workers have the environment of those who started it."""
    process = subprocess.Popen(
        [sys.executable, "-c", START_RAY], env=environment[0], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    yield process.stdout.readline().strip()
    process.communicate("\n")


def test_archive_and_run_on_s3(environment, address: str, planet: Path) -> None:
    settings, client = environment
    settings = settings | {"RAY_ADDRESS": address}

    def terraloom(*arguments: str) -> dict:
        command = [sys.executable, "-m", "jobs.cli", *arguments, "--json"]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
        assert "planted-secret" not in done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    archive, run = "s3://earth/archive", "s3://earth/runs/first"
    # Satellites' alone: aerial images are most of the pixels, and nothing else to a store.
    for path in (planet / "scenes").rglob("s*.tif"):
        client.upload_file(str(path), "earth", f"scenes/{path.name}")
    assert terraloom("scan", "s3://earth/scenes")["refused"] == {}
    made = terraloom("coregister", "s3://earth/scenes", archive, "--register", "False", "--shard-sites", "2")
    assert made["shards_written"] > 4
    assert terraloom("verify", archive)["tiles"] == made["tiles"]
    options = [
        "--num-steps",
        "6",
        "--checkpoint-every",
        "3",
        "--keep-every",
        "3",
        "--keep-last",
        "1",
        "--batch-size",
        "2",
        "--window-shards",
        "2",
    ]
    assert terraloom("pretrain", "msgfm_tiny", archive, run, *options)["steps"] == 6
    keys = {item["Key"] for item in client.list_objects_v2(Bucket="earth", Prefix="runs/first")["Contents"]}
    for name in ("config.json", "metrics.jsonl", "summary.json", "model/model.safetensors", "reconstructions.npz"):
        assert f"runs/first/{name}" in keys
    assert {key.split("/")[3] for key in keys if key.startswith("runs/first/checkpoints/0")} == {"00000006"}
    last = {key.partition("00000006/")[2] for key in keys if key.startswith("runs/first/checkpoints/00000006/")}
    for step in ("00000003", "00000006"):
        assert {key.partition(f"{step}/")[2] for key in keys if key.startswith(f"runs/first/kept/{step}/")} == last
    about = json.loads(client.get_object(Bucket="earth", Key="runs/first/kept/00000003/checkpoint.json")["Body"].read())
    assert (about["next_step"], about["workers"], about["recipe"]) == (3, 2, "msgfm_tiny")
    assert about["settings"]["train"]["num_steps"] == 6
    exported = terraloom("export", run, "s3://earth/exported", "--step", "3")
    assert exported["step"] == 3
    text = client.get_object(Bucket="earth", Key="runs/first/config.json")["Body"].read()
    assert b"planted-secret" not in text
    report = terraloom("report", run)
    assert report["report"] == f"{run}/report.html"


@pytest.mark.parametrize("name", ["cube.nc", "cube.zarr"])
def test_a_cube_on_s3_is_read_by_windows(name: str, environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, client = environment
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    pixels = np.arange(64 * 64, dtype=np.int16).reshape(1, 64, 64)
    time, place = np.array(["2021-05-01"], "datetime64[ns]"), 10.0 * np.arange(64)
    coords = {"t": time, "y": NORTH - 5 - place, "x": WEST + 5 + place}
    cube = xr.Dataset({"B04": (("t", "y", "x"), pixels, {"crs": "EPSG:32632"})}, coords)
    if name.endswith(".nc"):
        cube.to_netcdf(tmp_path / name, engine="h5netcdf")
    else:
        cube.to_zarr(tmp_path / name, zarr_format=3, consolidated=False)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        client.upload_file(str(path), "earth", f"{name}_folder/{path.relative_to(tmp_path)}")
    items, refused = scan(f"s3://earth/{name}_folder", Given(load_sensor("sentinel2_l2a")))
    assert refused == {}
    write_catalog(items, f"s3://earth/{name}_folder/scenes.json")
    (scene,), _ = read_scenes(f"s3://earth/{name}_folder")
    assert scene.assets[0].href == f"s3://earth/{name}_folder/{name}"
    values, is_valid = scene.read(grid(16, west=WEST + 100, north=NORTH - 50), ("B04",))
    assert is_valid.all()
    np.testing.assert_allclose(values[0], pixels[0, 5:21, 10:26] * 0.0001, rtol=1e-6)
