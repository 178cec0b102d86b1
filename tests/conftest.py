"""A small planet and its archive, made once, and the folder with real samples where there is one."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real samples; set TERRALOOM_DATA to say where they are."""
    folder = Path(os.environ.get("TERRALOOM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real samples at {folder}; set TERRALOOM_DATA")
    return folder


@pytest.fixture(scope="session")
def planet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planet of 3.84 km: 36 sites, four sensors, two satellite dates."""
    from jobs.simulate import simulate_planet
    from pipeline.simulation.config import SimulateConfig

    folder = tmp_path_factory.mktemp("planet") / "planet"
    simulate_planet(str(folder), SimulateConfig(size_m=3840, satellite_dates=2, num_changes=2, cloud_cover=0.05))
    return folder


@pytest.fixture(scope="session")
def cluster():
    """Ray on this machine, for all tests of the session; its address, for jobs that run in a process of their own."""
    import ray

    from cluster.connect import connect

    connect()
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def archive(planet: Path, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The planet's archive with shards of one site, so that even a small planet has all splits."""
    from jobs.coregister import coregister
    from pipeline.coregister import CoregisterConfig
    from pipeline.grid import Grid

    url = str(tmp_path_factory.mktemp("archive") / "archive")
    coregister(str(planet / "scenes"), url, Grid(shard_sites=1), CoregisterConfig(), str(planet / "truth"))
    return url
