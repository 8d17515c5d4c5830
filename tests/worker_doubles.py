"""Engines that the workers of ``test_driver.py`` load instead of a model; they import them by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from nemotron_npu.cluster.worker import Setup, WorkerInfo
from nemotron_npu.errors import InputError, SetupError
from nemotron_npu.transcript import Transcript


@dataclass(frozen=True)
class PretendSetup(Setup):
    """Workers whose transcripts are the names of the files; ``folder`` may hold a file named "cannot load"."""

    folder: str = ""

    def load(self):
        if Path(self.folder, "cannot load").exists():
            raise SetupError("npu:0", "not usable: it is on fire")
        return Pretend(self.folder), WorkerInfo(1, "pretend", "npu:0", "npu", {}, 2)


class Pretend:
    """Does what the name of a file says, and leaves a file in ``folder/tried`` for each attempt at a recording."""

    engine = "pretend"

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.is_broken = False

    def results(self, sources, slots):
        for index, source in enumerate(sources):
            name = Path(source.recording.path).name
            tried = self.folder / "tried"
            tried.mkdir(exist_ok=True)
            (tried / f"{name}.{os.getpid()}.{time.monotonic_ns()}").touch()
            time.sleep(0.02)
            source.on_read(1.0)
            if "poison" in name:
                os.kill(os.getpid(), signal.SIGKILL)
            if "breaks the device" in name and _first(self.folder / "has broken"):
                self.is_broken = True
            if self.is_broken or "always fails" in name:
                yield index, RuntimeError(f"no answer from the device, at {name}")
            elif "unreadable" in name:
                yield index, InputError(source.recording.path, "broken audio")
            else:
                yield index, Transcript(name, (), 1.0)

    def transcribe(self, sources):
        if self.is_broken:
            raise RuntimeError("no answer from the device, not even for silence")
        return [Transcript("", (), 1.0) for _ in sources]


def _first(flag: Path) -> bool:
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class FakeNpuSetup(Setup):
    """The real recognizer on the fake NPU; leaves a file that says which card Ray has given it."""

    folder: str = ""

    def load(self):
        import fake_npu

        fake_npu.install()
        recognizer, info = super().load()
        Path(self.folder, f"npu {os.environ['ASCEND_RT_VISIBLE_DEVICES']} as {info.device}").touch()
        return recognizer, info
