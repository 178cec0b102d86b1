"""A run that asks for more than the cluster has: refused at once, or after the time that nodes may be on their way."""

import pytest
import ray

from cluster.connect import require_node, require_resources
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


def test_one_node_must_have_what_a_task_holds(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERRALOOM_NODE_WAIT_S", raising=False)
    has = ray.cluster_resources()["CPU"]
    require_node(has, 0, "")
    with pytest.raises(InputError, match=rf"no node has {has + 1:g} CPUs and 0 GPUs, the largest has {has:g} and 0; try less"):
        require_node(has + 1, 0, "try less")
    two = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}, {"Alive": True, "Resources": {"CPU": 64.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: [*two, {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}}])
    require_node(64, 0, "")
    require_node(8, 1, "")
    with pytest.raises(InputError, match="no node has 16 CPUs and 1 GPUs, the largest has 8 and 1; try less"):
        require_node(16, 1, "try less")


def test_the_time_that_nodes_may_take_is_a_number(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALOOM_NODE_WAIT_S", "an hour")
    with pytest.raises(InputError, match="TERRALOOM_NODE_WAIT_S is 'an hour', expected a number of seconds"):
        require_resources(1, 0.5, 0.25, 0.0)
