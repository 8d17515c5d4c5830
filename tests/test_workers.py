"""Many workers: a corpus over the processes of this host and of a Ray cluster, whatever becomes of them."""

from __future__ import annotations

import os
import time

os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."

from collections import Counter
from pathlib import Path

import pytest
from support import ROOT
from worker_doubles import PretendSetup

from nemotron_npu.sources import Recording
from nemotron_npu.workers import Workers, cut

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of one node with room for two workers."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def corpus(tmp_path):
    """Make recordings of these names, or of so many."""

    def make(*names) -> list[Recording]:
        recordings = []
        for name in names:
            (tmp_path / name).touch()
            recordings.append(Recording(str(tmp_path / name), name, length=1.0))
        return recordings

    return make


def pretend(tmp_path, **changes) -> PretendSetup:
    return PretendSetup(Path("model"), "cpu", folder=str(tmp_path), **changes)


def recognise(cluster, tmp_path, recordings, count=2, said=None):
    """{file name: text or error}; each file must come once."""
    found = []
    with Workers(pretend(tmp_path), count, cluster.address, (said if said is not None else []).append) as workers:
        for index, result in workers.results(recordings, workers.slots):
            found.append((index, result))
    assert sorted(index for index, _ in found) == list(range(len(recordings)))
    return {Path(recordings[index].path).name: result for index, result in found}


def tries(tmp_path) -> Counter:
    return Counter(path.name.rsplit(".", 2)[0] for path in (tmp_path / "tried").iterdir())


def test_two_workers_share_the_work(cluster, tmp_path, corpus):
    results = recognise(cluster, tmp_path, corpus(*(f"{n:02}" for n in range(40))))
    assert {name: result.text for name, result in results.items()} == {f"{n:02}": f"{n:02}" for n in range(40)}
    assert set(tries(tmp_path).values()) == {1}
    assert len({path.name.split(".")[1] for path in (tmp_path / "tried").iterdir()}) == 2


def test_poison(cluster, tmp_path, corpus):
    said = []
    results = recognise(cluster, tmp_path, corpus(*(f"{n:02}" for n in range(30)), "poison"), said=said)
    error = results.pop("poison")
    print(error, said)
    assert "poison" in str(error)
    assert all(result.text == name for name, result in results.items())
    print(tries(tmp_path))


def test_device(cluster, tmp_path, corpus):
    said = []
    results = recognise(cluster, tmp_path, corpus(*(f"{n:02}" for n in range(30)), "breaks the device", "always fails", "unreadable"), said=said)
    print(said, results["always fails"], results["unreadable"], results["breaks the device"])


def test_node(cluster, tmp_path, corpus):
    node = cluster.add_node(num_cpus=2)
    said = []
    recordings = corpus(*(f"{n:03}" for n in range(900)))
    t0 = time.monotonic()
    kills = 0
    found = []
    with Workers(pretend(tmp_path), 4, cluster.address, said.append) as workers:
        print('started', time.monotonic() - t0)
        for index, result in workers.results(recordings, 2):
            found.append(index)
            if len(found) in (100, 300, 500):
                t1 = time.monotonic()
                cluster.remove_node(node, allow_graceful=False)
                print('removed', time.monotonic() - t1)
                node = cluster.add_node(num_cpus=2)
                print('added', time.monotonic() - t1)
                kills += 1
    print(sorted(found) == list(range(900)), kills, said, time.monotonic() - t0)
    print(sum(1 for x in tries(tmp_path).values() if x > 1))
