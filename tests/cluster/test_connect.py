"""A run that asks for more than the cluster has: refused at once, or after the time that nodes may be on their way."""

import pytest
import ray

from cluster.connect import require_resources
from pipeline.errors import InputError


@pytest.mark.parametrize("wait_s", [None, "0.5"])
def test_more_than_there_is_is_refused(
    wait_s: str | None, cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if wait_s:
        monkeypatch.setenv("TERRALOOM_NODE_WAIT_S", wait_s)
    else:
        monkeypatch.delenv("TERRALOOM_NODE_WAIT_S", raising=False)
    has = ray.cluster_resources()["CPU"]
    with pytest.raises(InputError, match=rf"1000 workers need 1000.25 CPUs, the cluster has {has:g}; use fewer workers"):
        require_resources(1000, 1.0, 0.25, 0.0)
    assert ("waiting up to" in capsys.readouterr().err) == bool(wait_s)
    require_resources(1, has, 0.0, 0.0)


def test_the_time_that_nodes_may_take_is_a_number(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALOOM_NODE_WAIT_S", "an hour")
    with pytest.raises(InputError, match="TERRALOOM_NODE_WAIT_S is 'an hour', expected a number of seconds"):
        require_resources(1, 0.5, 0.25, 0.0)
