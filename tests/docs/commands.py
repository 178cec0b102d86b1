"""Every command of README and docs, run in the order of its page: `make docs-check`.

Run as it stands but for two things. A size is a small one (SMALL), GPUs and many workers are a CPU. And what a page takes for given
stands where the page has it, small (STANDS_FOR). What cannot be run without machines that we do not have is in NOT_RUN, with the reason.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from tests import rasters
from tests.docs.test_docs import PAGES, ROOT, blocks, commands, name
from tests.head import Cluster

pytestmark = pytest.mark.timeout(3600)
TRAINED = {"num-steps": "2", "batch-size": "2", "checkpoint-every": "1", "health-every": "2", "workers": "0"}
SWEPT = {"seeds": "1", "held-out-samples": "16", "probe-samples": "40"}
EXPERIMENTS = ("temporal", "masking", "cross_sensor", "moe", "hypernetwork", "composition", "removal")
SMALL: dict[str, dict[str, str]] = {
    "simulate": {"size-m": "3840", "satellite-dates": "2"},
    "simulate demo/changed": {"size-m": "5120", "num-changes": "20"},  # sites that changed, and others, in every split
    "coregister": {"shard-sites": "2"},  # so that a small planet has all splits
    "ingest": {"shard-sites": "2"},
    "pretrain": TRAINED,
    "distill": TRAINED,
    "evaluate": {"seeds": "1", "decoder-steps": "2", "finetune-steps": "2"},
    "sweep ladder": SWEPT | {"sizes": "1 2", "samples": "32 64"},
    "sweep isoflop": SWEPT | {"sizes": "1 2", "teraflops": "0.005"},
    "sweep rate_transfer": SWEPT | {"sizes": "1 2", "samples": "32", "rates": "0.001 0.002"},
    "sweep genealogy": SWEPT | {"teraflops": "0.05", "recipes": "mae_tiny simclr_tiny"},
    **{f"sweep {plan}": SWEPT | {"teraflops": "0.05"} for plan in EXPERIMENTS},
}
SMALL_RECIPES = {"loom_base": "loom_tiny"}
SMALL_FILES = {"num_steps: 400": "num_steps: 2, batch_size: 2, workers: 0", "[landcover, flood]": "[landcover]"}
"""In files of YAML; the planet has no floods."""
ON_CPU = {"workers": "1", "gpus-per-worker": "0"}
"""Where a command names them."""
MAKES = {"coregister": 1, "ingest": 2, "pretrain": 2, "distill": 3, "evaluate": 2, "sweep": 2, "embed": 2, "export": 1}
"""Which argument names what a job makes: it is not given. Archives grow, everything else is made anew."""
NOT_RUN = {
    "make demo": "a quarter of an hour; its steps are those of getting_started.md",
    "make test": "this belongs to it",
    "docker build": "needs docker and a registry",
    "kubectl apply": "needs Kubernetes; tests/cluster/test_manifest.py validates the manifest",
    "ray up": "starts machines on AWS",
    "ray dashboard": "as ray up",
}
REFUSES = {"--rollback": "no champion before"}
"""After a round that promoted nothing there is nothing to go back to."""

PARTS = {"oscd": ("bercy", "paris", "aguasclaras", "nantes"), "ombria": ("train/*/*8.png",)}
"""Of the largest data sets."""
STAGE = """
terraloom simulate planet --size-m 3840 --satellite-dates 2
terraloom coregister planet/scenes archive --labels planet/truth --shard-sites 2
terraloom coregister planet/scenes plain --labels planet/truth --shard-sites 2
terraloom ingest oscd DATA/oscd archive --shard-sites 2
terraloom ingest ombria DATA/ombria archive --shard-sites 2
terraloom ingest bigearthnet DATA/bigearthnet other --site-size-m 1200
terraloom pretrain msgfm archive first --num-steps 2 --batch-size 2 --workers 0
terraloom distill student first archive small --students vit resnet --num-steps 2 --batch-size 2 --workers 0
terraloom evaluate landcover first scores --protocols knn --seeds 1 --finetune-steps 2
terraloom embed small/models/vit archive embedded --format geoparquet
"""
STANDS_FOR = {
    "planet/scenes": "SCENES scenes demo/planet/scenes",
    "planet/truth": "LABELS truth demo/planet/truth",
    "planet/scenes/scenes.json": "scenes.json",
    "scene.tif": "scene.tif field.tif",
    "radar": "RADAR",
    "archive": "ARCHIVE archive suite",
    "plain": "demo/archive",
    "other": "OTHER",
    "first": "RUNS/first runs/pretrained PRETRAINED TEACHER_RUN",
    "small": "RUNS/small RUN MODEL_RUN",
    "scores": "RUNS/scores RUNS/all",
    "embedded": "EMBEDDED",
    "new.json": "new.json",
    "DATA": "DATA",
    "DATA/bigearthnet": "BIGEARTHNET",
    "DATA/ombria": "OMBRIA",
    "DATA/oscd": "OSCD",
    "DATA/pansharpening": "FOLDER",
    "DATA/sen12mscr": "SEN12MSCR",
}
"""What pages call a thing of the stage."""
GIVEN = {name: thing for thing, names in STANDS_FOR.items() for name in names.split()}
OF_A_PAGE = {"docs/add_your_sensor.md": {"SCENES": "acme"}}
"""What a page means by a name, where others mean something else."""
S3 = {"bucket": ("scenes", "archive"), "earth": ("archive",), "scenes": ("scenes",)}


@dataclass
class Place:
    """Where commands run: a folder, what they are told, and the cluster's last job."""

    folder: Path
    environment: dict[str, str]
    job: str = ""

    def run(self, words: list[str]) -> str:
        """Run one command and return what it said; other than by exit status 0 it fails the test."""
        started = time.monotonic()
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        refusal = next((text for word, text in REFUSES.items() if word in words), None)
        print(f"{time.monotonic() - started:6.1f} s  {' '.join(words)}", flush=True)
        if done.returncode and not (refusal and refusal in done.stdout):
            print(done.stdout[-3000:], flush=True)
            pytest.fail(f"{' '.join(words)} ended with {done.returncode}")
        return done.stdout


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """S3, and the environment that finds it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ACCESS_KEY_ID": "documented",
        "AWS_SECRET_ACCESS_KEY": "documented",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    server.stop()


@pytest.fixture(scope="module")
def environment(store: dict[str, str]) -> Iterator[dict[str, str]]:
    """A cluster with a token and its job server; every command of the pages runs on it."""
    cluster = Cluster(cpus=2, given=store)
    yield cluster.environment | store | {"RAY_ADDRESS": cluster.address}
    cluster.stop()


@pytest.fixture(scope="session")
def samples(request: pytest.FixtureRequest) -> Path:
    """The real samples; without them no command is run, and nothing has been checked."""
    try:
        return request.getfixturevalue("shared_data")
    except pytest.skip.Exception as skipped:
        missing = str(skipped)
    pytest.fail(f"no command was run: {missing}", pytrace=False)


@pytest.fixture(scope="module")
def stage(samples: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a page may take for given."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "DATA").mkdir()
    for source in samples.iterdir():
        (folder / "DATA" / source.name).symlink_to(source)
    for large in ("ombria", "oscd"):
        (folder / "DATA" / large).unlink()
        for part in PARTS[large]:
            for source in samples.glob(f"{large}/{part}"):
                to = folder / "DATA" / source.relative_to(samples)
                to.parent.mkdir(parents=True, exist_ok=True)
                to.symlink_to(source)
    place = Place(folder, environment)
    for command in commands(STAGE):
        place.run(command)
    shutil.copy(next((folder / "planet/scenes").glob("sentinel2*00_a.tif")), folder / "scene.tif")  # not a mask of clouds
    scenes = json.loads((folder / "planet/scenes/scenes.json").read_text())["features"]
    newest = max((scene for scene in scenes if "sentinel2" in scene["id"]), key=lambda scene: scene["properties"]["datetime"])
    (folder / "new.json").write_text(json.dumps({"new": [newest["id"]], "withheld": []}))
    power = np.random.default_rng(0).gamma(4, 0.02, (2, 64, 64)).astype(np.float32)
    rasters.write(folder / "radar" / "power.tif", power, tags={"DATETIME": "2023-06-01T05:30:00Z"}, names=("VV", "VH"))
    pixels = np.random.default_rng(0).integers(300, 4000, (4, 960, 960)).astype(np.uint16)
    rasters.write(folder / "acme" / "acme_1_ms.tif", pixels, gsd_m=4)
    return folder


@pytest.fixture
def place(environment: dict[str, str], tmp_path: Path) -> Place:
    return Place(tmp_path, dict(environment))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name)
def test_commands_of(page: Path, place: Place, stage: Path, store: dict[str, str]) -> None:
    given = GIVEN | OF_A_PAGE.get(name(page), {})
    if "s3://" in page.read_text():
        fill(store, stage)
    schedule = [] if "schedule.yaml" not in page.read_text() else blocks(ROOT / "docs/jobs/retrain.md", "yaml")
    for text in [*schedule, *blocks(page, "yaml")]:
        titled = re.match(r"# (\w+\.yaml)", text)
        if titled:
            for large, small in SMALL_FILES.items():
                text = text.replace(large, small)
            (place.folder / titled[1]).write_text(text)
            for known in re.findall(r": ([\w./]+)", text):
                give(known, given, place.folder, stage)
    for text in blocks(page, "sh"):
        for words in commands(text):
            run(words, given, place, stage)


def run(words: list[str], given: dict[str, str], place: Place, stage: Path) -> None:
    """Run one command of a page as small as it can be."""
    program = words[0]
    if " ".join(words[:2]) in NOT_RUN:
        print(f"   not run  {' '.join(words)}: {NOT_RUN[' '.join(words[:2])]}")
    elif program == "export":
        place.environment |= {key: place.environment.get(key, value) for key, value in (word.split("=", 1) for word in words[1:])}
    elif program == "pip":
        place.run([sys.executable, "-m", *words[:2], "--dry-run", *(word.replace("terraloom", str(ROOT)) for word in words[2:])])
    else:
        assert program == "terraloom", f"{program}: say in NOT_RUN why it is not run"
        job, arguments = words[1], words[2:]
        made = next(iter(arguments[MAKES[job] :]), None) if job in MAKES and arguments[:1] != ["search"] else None
        if made and made.startswith("s3://"):
            empty(place.environment, made)
        elif made and job not in ("coregister", "ingest"):
            shutil.rmtree(place.folder / made, ignore_errors=True)
        for word in arguments:
            if word != made:
                give(word, given, place.folder, stage)
        said = place.run([f"{Path(sys.executable).parent}/terraloom", *smaller([real(word, place) for word in words[1:]])])
        place.job = next(iter(re.findall(r"raysubmit_\w+", said)), place.job)


def give(known: str, given: dict[str, str], folder: Path, stage: Path) -> None:
    """Put what the page means by a name where it has it, if it is not there."""
    top = known.split("/")[0]
    known = known if known in given else top
    to = folder / known
    if known not in given or to.exists():
        return
    source = stage / given[known]
    if known == "scenes.json":
        shutil.copytree(source.parent, folder, dirs_exist_ok=True)
    elif given[known].startswith("DATA"):
        to.symlink_to(source)
    elif source.is_dir():
        shutil.copytree(source, to)
    else:
        shutil.copy(source, to)


def real(word: str, place: Place) -> str:
    """Return a word with what stands for the reader's head and job replaced by ours."""
    word = re.sub(r"raysubmit_1|^SUBMISSION$", place.job, word)
    return word.replace("http://HEAD:8265", place.environment["RAY_API_SERVER_ADDRESS"])


def smaller(words: list[str]) -> list[str]:
    """Return a command with sizes for two CPUs and seconds, where it has or may have them."""
    start = int(words[0] == "submit")
    while start and words[start].startswith("--"):
        start += 2
    before, command = words[:start], words[start:]
    if {"--help", "--dry-run"} & set(command) or len(command) == 1 or command[0] in ("manifest", "estimate"):
        return words
    sizes = dict(SMALL.get(command[0], {})) | SMALL.get(" ".join(command[:2]), {})
    if "--workers 0" not in " ".join(command):
        sizes |= {option: value for option, value in ON_CPU.items() if f"--{option}" in command}
    if "--gap-sites" in command:  # takes what it leaves out of shards as large as they are by default
        sizes.pop("shard-sites", None)
    command = [SMALL_RECIPES.get(word, word) for word in command]
    kept: list[str] = []
    is_ours = False
    for word in command:
        is_ours = word[2:] in sizes if word.startswith("--") else is_ours
        kept += [] if is_ours else [word]
    return before + kept + [part for option, value in sizes.items() for part in (f"--{option}", *value.split())]


def s3_client(store: dict[str, str]) -> Any:
    keys = {"aws_access_key_id": store["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": store["AWS_SECRET_ACCESS_KEY"]}
    return boto3.client("s3", endpoint_url=store["AWS_ENDPOINT_URL"], region_name=store["AWS_REGION"], **keys)


def empty(store: dict[str, str], url: str) -> None:
    """Remove what is below a URL."""
    s3 = s3_client(store)
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            s3.delete_object(Bucket=bucket, Key=item["Key"])


def fill(store: dict[str, str], stage: Path) -> None:
    """Make buckets as they were, without what another page has left."""
    s3 = s3_client(store)
    there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for bucket, kinds in S3.items():
        if bucket not in there:
            s3.create_bucket(Bucket=bucket)
        empty(store, f"s3://{bucket}")
        for kind in kinds:
            source = stage / GIVEN[kind]
            prefix = "" if kind == bucket else f"{kind}/"
            for path in source.rglob("*"):
                if path.is_file():
                    s3.upload_file(str(path), bucket, prefix + str(path.relative_to(source)))
