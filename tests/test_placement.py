"""Which devices workers get, by what Ray reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_npu.cluster.placement import place, threads_per_device
from nemotron_npu.cluster.worker import Setup
from nemotron_npu.errors import SetupError


def setup(device: str, threads: int = 0) -> Setup:
    return Setup(Path("model.nemo"), device, threads)


def test_workers_take_all_npus_by_default():
    """Without a device and a number, each NPU gets a worker, which sees that one alone."""
    placement = place(setup(""), None, {"CPU": 64, "NPU": 8}, may_grow=True)
    assert (placement.kind, placement.count, placement.setup.device, placement.remark) == ("npu", 8, "npu:0", "")
    assert placement.actor_options["resources"] == {"NPU": 1}


def test_workers_without_npus_run_on_the_cpu():
    """Where Ray knows of no NPU the CPU is taken, one core for each worker, and the user learns why."""
    placement = place(setup(""), None, {"CPU": 6}, may_grow=False)
    assert (placement.kind, placement.count, placement.setup.threads) == ("cpu", 6, 1)
    assert placement.remark == " (Ray knows of no NPU)"


def test_workers_with_several_threads_get_as_many_cores():
    """With --threads 3 there is room for two workers on six cores."""
    placement = place(setup("cpu", 3), None, {"CPU": 6}, may_grow=False)
    assert (placement.count, placement.setup.threads, placement.actor_options["num_cpus"]) == (2, 3, 3)


def test_workers_may_wait_for_a_cluster_to_grow():
    """A cluster may get room for more workers later, a host may not."""
    placement = place(setup("cuda"), 4, {"CPU": 8, "GPU": 2}, may_grow=True)
    assert (placement.count, placement.room, placement.actor_options["num_gpus"]) == (4, 2, 1)
    with pytest.raises(SetupError, match="^--device cuda: Ray knows of 2 GPUs on this host$"):
        place(setup("cuda"), 4, {"CPU": 8, "GPU": 2}, may_grow=False)


def test_workers_on_a_device_that_ray_lacks_are_refused():
    """A cluster without GPUs is reported even if it may grow."""
    with pytest.raises(SetupError, match="^--device cuda: Ray knows of no GPUs on the cluster$"):
        place(setup("cuda"), None, {"CPU": 8}, may_grow=True)


@pytest.mark.parametrize("resources, threads", [({"CPU": 64, "NPU": 8}, 8), ({"CPU": 2, "NPU": 4}, 1), ({}, 1)])
def test_devices_of_a_node_share_its_cores(resources, threads):
    """Each device has its part of the cores, whether the others are used or not."""
    assert threads_per_device("npu", resources) == threads
