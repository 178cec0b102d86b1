"""Records that one of several may write, a lock that a crashed holder loses, a registry that two cannot change at once."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import lease as leases
from cluster.lease import acquire, holding
from cluster.process import has_ended, own_process
from cluster.registry import Registry
from cluster.sequence import Sequence
from pipeline import storage
from pipeline.errors import InputError, RunFailed


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: str) -> str:
    return str(tmp_path) if request.param == "local" else f"{bucket}/{tmp_path.name}"


def test_of_many_that_write_the_next_record_one_does(place: str) -> None:
    records = Sequence(f"{place}/records")
    assert records.last() == (-1, None)
    for after in (-1, 0, 1):
        with ThreadPoolExecutor(8) as pool:
            written = list(pool.map(lambda who, after=after: records.append(after, {"who": who}), range(8)))
        assert sum(written) == 1
        assert records.last() == (after + 1, {"who": written.index(True)})
    assert not records.append(0, {})
    records.forget(2)
    assert records.numbers() == [2]


def test_a_lock_is_held_kept_given_back(place: str) -> None:
    with holding(f"{place}/lock", "retrain of Tuesday", seconds=0.3) as lease:
        with pytest.raises(InputError, match=r"is held by retrain of Tuesday for \d+ s more; wait, or stop that job"):
            acquire(f"{place}/lock", "another")
        begun = time.time()
        while Sequence(f"{place}/lock").last()[0] < 5:  # it is renewed, and old records go
            assert time.time() < begun + 30
            time.sleep(0.05)
        lease._seconds = 60
        lease._renew()
        lease.require()
    acquire(f"{place}/lock", "another").give_back()
    assert len(Sequence(f"{place}/lock").numbers()) <= leases.KEPT + 4


def test_a_crashed_holder_loses_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SKEW_SECONDS", 0.0)
    crashed = acquire(str(tmp_path), "crashed", seconds=600)
    crashed._ended.set()  # it renews no more
    crashed._thread.join()
    with pytest.raises(InputError, match="held by crashed"):
        acquire(str(tmp_path), "next")
    records = Sequence(str(tmp_path))
    number = records.last()[0]
    path = tmp_path / f"{number:010}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "content": {"holder": "crashed", "until": time.time() - 1}}))
    following = acquire(str(tmp_path), "next")
    following.require()
    crashed._renew()  # it was only asleep
    with pytest.raises(RunFailed, match="the lock of 'crashed' was lost to another"):
        crashed.require()
    following.require()
    following.give_back()


def test_a_dead_holder_of_this_machine_loses_the_lock_at_once(tmp_path: Path) -> None:
    url = str(tmp_path / "lock")
    program = f"from cluster.lease import acquire; acquire({url!r}, 'killed'); print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    assert leases.holder_of(url) == "killed"
    with pytest.raises(InputError, match="is held by killed"):
        acquire(url, "next")
    process.kill()
    process.wait()
    assert leases.holder_of(url) is None
    acquire(url, "next").give_back()


def test_of_another_machine_nobody_knows(tmp_path: Path) -> None:
    here, gone = own_process(), {**own_process(), "started": "before the last boot"}
    assert not has_ended(here)
    assert has_ended(gone)
    assert not has_ended({**gone, "machine": "another"})
    assert not has_ended({})
    Sequence(str(tmp_path)).append(
        -1, {"holder": "elsewhere", "until": time.time() + 600, "process": {**gone, "machine": "another"}}
    )
    with pytest.raises(InputError, match="is held by elsewhere"):
        acquire(str(tmp_path), "next")


def test_a_champion_follows_another(place: str, tmp_path: Path) -> None:
    registry = Registry(f"{place}/registry")
    assert registry.champion() is None
    for name in "ab":
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(name)
        (tmp_path / name / "part" / "weights").write_text(2 * name)
    first, second = (registry.register(str(tmp_path / name), {"score": name}) for name in "ab")
    assert storage.read_bytes(storage.join(second.model, "part", "weights")) == b"bb"
    registry.promote(first.number, None, "the first")
    registry.promote(second.number, first.number, "better on landcover")
    with pytest.raises(InputError, match="version 0 was compared with version 0, the champion is version 1; compare it with that"):
        registry.promote(first.number, first.number, "a late one")
    champion = registry.champion()
    assert champion
    assert (champion.number, champion.facts) == (1, {"score": "b"})
    registry.roll_back("clouds at the coast")
    assert [(change.number, change.over, change.reason) for change in registry.history()] == [
        (0, None, "the first"),
        (1, 0, "better on landcover"),
        (0, 1, "clouds at the coast"),
    ]
    with pytest.raises(InputError, match=r"has no version 7 \(has 0, 1\)"):
        registry.promote(7, 0, "a guess")
    assert registry.rolled_back() == {1}
    with pytest.raises(InputError, match="no champion before the present one"):
        registry.roll_back("twice")
    assert [version.facts for version in registry.versions()] == [{"score": "a"}, {"score": "b"}]


def test_of_two_that_promote_at_once_one_does(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    registry = Registry(str(tmp_path / "registry"))
    versions = [registry.register(str(tmp_path / "model"), {}).number for _ in range(6)]
    start = threading.Barrier(6)

    def promote(number: int) -> bool:
        start.wait()
        try:
            registry.promote(number, None, "at once")
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(promote, versions)) == 1
    assert len(registry.history()) == 1
    with pytest.raises(InputError, match="no champion before the present one"):
        registry.roll_back("nothing to go back to")
