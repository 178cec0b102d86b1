import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
import zarr
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from pipeline import objects, reader, storage
from pipeline.errors import InputError
from tests.pipeline.test_archive import make_archive, make_tiles


@pytest.fixture(scope="module")
def array_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pixels of a shard of 100 tiles."""
    archive = make_archive(tmp_path_factory.mktemp("reader") / "a")
    archive.publish("s_0", "train", make_tiles(100), "inputs")
    return f"{archive.shard_url('s_0')}/sentinel1_grd/pixels"


@pytest.mark.parametrize("num_rows", [1, 31, 33, 100, 150])
@pytest.mark.parametrize("threads", [0, 2])
def test_rows_are_those_of_zarr(array_url: str, num_rows: int, threads: int) -> None:
    """In order, scattered, repeated; by one thread and by two."""
    oracle = zarr.open_array(array_url, mode="r")[:]
    rng = np.random.default_rng(num_rows)
    with ThreadPoolExecutor(max(threads, 1)) as executor:
        for rows in (np.arange(num_rows) % 100, rng.permutation(100)[:num_rows], rng.integers(0, 100, num_rows)):
            out = np.full((len(rows), *oracle.shape[1:]), -1, oracle.dtype)
            given = reader.read_rows(array_url, rows, out, executor if threads else None)
            assert given is out
            assert np.array_equal(out, oracle[rows])


def test_threads_share_one_array(array_url: str) -> None:
    """What one thread reads is not overwritten by another."""
    oracle = zarr.open_array(array_url, mode="r")[:]
    wrong = []
    with reader.opened(array_url) as tiles:

        def read(seed: int) -> None:
            rows = np.random.default_rng(seed).permutation(100)
            out = np.empty_like(oracle)
            for _ in range(20):
                tiles.decode(rows, list(out))
                if not np.array_equal(out, oracle[rows]):
                    wrong.append(seed)

        threads = [threading.Thread(target=read, args=[seed]) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_damaged_tile_stops_every_way_of_reading(array_url: str, tmp_path: Path) -> None:
    with reader.opened(array_url) as tiles:
        start, size = tiles.index[40].tolist()
    chunk = Path(array_url) / "c/0/0/0/0"
    whole = chunk.read_bytes()
    try:
        chunk.write_bytes(whole[: start + size // 2] + bytes([whole[start + size // 2] ^ 1]) + whole[start + size // 2 + 1 :])
        with ThreadPoolExecutor(2) as executor:
            for rows in (np.arange(100), np.array([99, 40, 0]), np.array([40])):
                with pytest.raises(InputError, match=r"s_0\.zarr/sentinel1_grd/pixels', tile 40, is damaged"):
                    reader.read_rows(array_url, rows, executor=executor)
            assert len(reader.read_rows(array_url, np.array([0, 99]), executor=executor)) == 2
    finally:
        chunk.write_bytes(whole)


def test_a_bucket_is_reached_as_storage_reaches_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys, region and endpoint that stand in a profile and nowhere in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "keys").write_text("[planet]\naws_access_key_id = reader\naws_secret_access_key = of-a-profile\n")
    (tmp_path / "config").write_text(f"[profile planet]\nregion = eu-central-1\nendpoint_url = {endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "planet")
    S3FileSystem.clear_instance_cache()
    try:
        place = {"LocationConstraint": "eu-central-1"}
        boto3.session.Session().client("s3").create_bucket(Bucket="profiled", CreateBucketConfiguration=place)
        storage.write_bytes("s3://profiled/there", b"pixels")
        with objects.opened("s3://profiled/there") as found:
            assert found.read(2, 100).tobytes() == b"xels"
        with pytest.raises(FileNotFoundError), objects.opened("s3://profiled/not-there"):
            pass
        monkeypatch.delenv("AWS_PROFILE")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(InputError, match="no credentials for 's3://profiled'; set AWS_ACCESS_KEY_ID"):
            objects.opened("s3://profiled/there").__enter__()
    finally:
        S3FileSystem.clear_instance_cache()
        server.stop()
