"""What the workers of ``test_workers.py`` load in place of a model; they import it by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from nemotron_npu.cluster.workers import Facts, Setup
from nemotron_npu.errors import InputError, SetupError
from nemotron_npu.transcript import Transcript


@dataclass(frozen=True)
class PretendSetup(Setup):
    """A recognizer whose text is a file's name, and which does as the names in its folder say."""

    folder: str = ""

    def load(self):
        if Path(self.folder, "cannot load").exists():
            raise SetupError("npu:0 is not usable: it is on fire")
        return Pretend(self.folder), Facts(1, "pretend", "cpu", "cpu", 2, [], [])


class Pretend:
    """Leaves a file in ``folder/tried`` for each recording that it begins."""

    engine = "pretend"

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.broken = False

    def results(self, sources, slots):
        for index, source in enumerate(sources):
            name = Path(source.recording.path).name
            tried = self.folder / "tried"
            tried.mkdir(exist_ok=True)
            (tried / f"{name}.{os.getpid()}.{time.monotonic_ns()}").touch()
            time.sleep(0.02)
            if "poison" in name:
                os.kill(os.getpid(), signal.SIGKILL)
            if "breaks the device" in name and _first(self.folder / "has broken"):
                self.broken = True
            if self.broken or "always fails" in name:
                yield index, RuntimeError(f"no answer from the device, at {name}")
            elif "unreadable" in name:
                yield index, InputError(f"{source.recording.path}: broken audio")
            else:
                yield index, Transcript(name, (), 1.0)

    def transcribe(self, sources):
        if self.broken:
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
        recognizer, facts = super().load()
        Path(self.folder, f"npu {os.environ['ASCEND_RT_VISIBLE_DEVICES']} as {facts.device}").touch()
        return recognizer, facts
