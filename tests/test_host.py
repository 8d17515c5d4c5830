"""``host/``: memory and cores, also where a container has less of them.  Other parts: ``test_doctor_npu.py``."""

import gc

import pytest

from nemotron_npu.host import resources
from nemotron_npu.host.packages import importing


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 GB, 6 GB free, and control groups: ``machine({"memory.max": ..., ...}, "0::/")``."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 6000000 kB\n")
    monkeypatch.setattr(resources, "PROC", tmp_path / "proc")
    monkeypatch.setattr(resources, "CGROUP", tmp_path / "cgroup")

    def make(files: dict, membership: str) -> None:
        (tmp_path / "proc" / "self" / "cgroup").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


def test_free_memory_is_that_of_the_machine_or_container(machine):
    """Limits of control groups count, of version 2 and 1, with caches that the kernel would free."""
    machine({}, "")
    assert resources.free_memory() == (6_144_000_000, 8_192_000_000, False)
    version_2 = {"memory.max": "max\n", "cpu.max": "max 100000\n", "pod/memory.max": "1000000000\n"}
    version_2 |= {"pod/memory.current": "700000000\n", "pod/memory.stat": "anon 5\ninactive_file 200000000\n"}
    machine({**version_2, "pod/cpu.max": "50000 100000\n"}, "0::/pod/one\n")
    assert resources.free_memory() == (500_000_000, 1_000_000_000, True) and resources.cores() == 0.5
    version_1 = {"memory/memory.limit_in_bytes": "2000000000\n", "memory/memory.usage_in_bytes": "1500000000\n"}
    version_1 |= {"memory/memory.stat": "total_inactive_file 0\n", "cpu/cpu.cfs_period_us": "100000\n"}
    machine({**version_1, "cpu/cpu.cfs_quota_us": "25000\n"}, "9:memory:/docker/x\n3:cpuacct,cpu:/docker/x\n")
    assert resources.free_memory() == (500_000_000, 2_000_000_000, True) and resources.cores() == 0.25


def test_garbage_is_looked_for_again_after_imports():
    """Within ``importing`` no garbage is looked for; afterwards it is, also where the import fails."""
    with pytest.raises(ImportError), importing():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() and gc.get_freeze_count()
    gc.unfreeze()
