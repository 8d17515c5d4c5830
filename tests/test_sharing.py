"""A recognizer in memory that several processes share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import CLIP, ROOT

from nemotron_npu.checkpoint.hub import find_checkpoint
from nemotron_npu.cluster import packed, worker
from nemotron_npu.cluster.sharing import adopt, share
from nemotron_npu.cluster.worker import Keeper, Setup, Worker
from nemotron_npu.dtypes import offered_dtypes, packs_weights
from nemotron_npu.engine import ModelOptions
from nemotron_npu.recognizer import Recognizer

DEMO = find_checkpoint(str(ROOT / "demo" / "demo.nemo"))
CPU = torch.device("cpu")


def adopted(memory: int) -> Recognizer:
    shared = adopt(f"/proc/self/fd/{memory}")
    os.close(memory)
    return shared


@pytest.mark.parametrize("dtype", offered_dtypes(CPU))
def test_shared_recognizer_gives_identical_results(dtype):
    """Results are equal to the last bit."""
    own = Recognizer(DEMO, CPU, options=ModelOptions(dtype=dtype))
    shared = adopted(share(own))
    assert shared.transcribe([CLIP]) == own.transcribe([CLIP])


def test_shared_tensor_that_is_overwritten_stays_for_others():
    """Two views of one storage share it again; a page that one process overwrites stays unchanged for the others."""
    values = torch.arange(6.0)
    memory = share(SimpleNamespace(values=values, transposed=values.view(2, 3).t()))
    first = adopt(f"/proc/self/fd/{memory}")
    second = adopted(memory)
    first.values.zero_()
    assert not first.transposed.any()
    assert torch.equal(second.transposed, values.view(2, 3).t())
    assert second.transposed.stride() == (1, 3)


def test_shared_recognizer_takes_no_memory_of_its_own():
    """After a transcription all pages of the shared memory are still those of the file."""
    shared = adopted(share(Recognizer(DEMO, CPU)))
    shared.transcribe([CLIP])
    maps = Path("/proc/self/smaps").read_text().split("VmFlags")
    (mapped,) = (entry for entry in maps if "memfd:recognizer" in entry)
    sizes = {name: int(size) for name, size in re.findall(r"(\w+): +(\d+) kB", mapped)}
    assert sizes["Rss"] > 8000
    assert sizes["Anonymous"] == 0


class OldLibrary:
    """A libtorch_cpu without the functions of AOTInductor."""

    def __getattr__(self, name: str):
        raise AttributeError(f"undefined symbol: {name}")


class RefusingLibrary:
    """A libtorch_cpu whose functions return an error."""

    def __getattr__(self, name: str):
        return lambda *args: 1


@pytest.mark.skipif(not packs_weights(), reason="this CPU computes with plain weights")
@pytest.mark.parametrize("library", [OldLibrary(), RefusingLibrary()], ids=["lacks", "refuses"])
def test_keeper_shares_nothing_where_torch_cannot(monkeypatch, library):
    """Where torch lacks the private interface, or refuses, each worker loads its own weights; results are equal."""
    monkeypatch.setattr(packed, "_library", lambda: library)
    setup = Setup(DEMO, "cpu", threads=torch.get_num_threads())
    opened = len(os.listdir("/proc/self/fd"))
    assert Keeper().load(setup) is None
    assert len(os.listdir("/proc/self/fd")) == opened

    class LocalKeeper:
        class load:
            remote = staticmethod(lambda setup: Keeper().load(setup))

    class LocalRay:
        get = staticmethod(lambda value: value)
        exceptions = type("exceptions", (), {"RayTaskError": RuntimeError})

    monkeypatch.setattr(worker, "import_ray", lambda: LocalRay)
    actor = Worker()
    actor.load(setup, os.getcwd(), LocalKeeper)
    assert actor.engine.transcribe([CLIP]) == Recognizer(DEMO, CPU).transcribe([CLIP])
