"""The code that runs in the workers' processes: loading the model, and the two Ray actors, ``Worker`` and ``Keeper``.

The driver imports this module too, but not torch, which it does not need.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]  # missing in typeshed
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..audio import SAMPLE_RATE, AudioInfo
from ..device import choose_device, device_name, device_settings, import_torch, traits_of, trim_memory
from ..engine import ModelOptions, StreamOptions
from ..errors import InputError
from ..pool_exchange import Answer, PoolExchange, Request
from ..sources import CountedRecording, Recording
from ..transcript import Transcript
from .connection import import_ray


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker has loaded."""

    parameters: int
    engine: str
    device: str
    device_name: str
    device_settings: dict[str, bool]
    """See ``device.device_settings``."""
    batch_slots: int
    """Default number of recordings in a batch."""
    messages: list[str] = field(default_factory=list)
    """Messages for the user."""
    unknown_phrases: list = field(default_factory=list)
    """Phrases that the vocabulary cannot spell."""


@dataclass(frozen=True)
class Setup:
    """What every worker loads; it is sent to the node of the device."""

    path: Path
    device: str
    threads: int = 0
    """CPU threads; 0 is one thread where the device is the CPU, elsewhere this device's part of the node's cores."""
    options: ModelOptions = ModelOptions()
    confidence: str | None = None
    phrases: tuple = ()
    boost_alpha: float = 1.0

    def load(self) -> tuple[Any, WorkerInfo]:
        """Load the engine in this process.  Raises SetupError where the checkpoint or the device is not usable."""
        from ..recognizer import Recognizer, load_recognizer  # imports torch, which the driver does not need

        import_torch().set_num_threads(self.threads)
        device, _ = choose_device(self.device)
        messages: list[str] = []
        engine = load_recognizer(self.path, device, options=self.options, announce=messages.append)
        if isinstance(engine, Recognizer) and traits_of(device).is_host and self.threads == 1:
            engine.readers = 0  # more threads would compete for the one core
        if self.confidence:
            engine.measure_confidence(self.confidence)
        unknown = engine.boost(list(self.phrases), self.boost_alpha) if self.phrases else []
        info = WorkerInfo(
            engine.parameters,
            engine.engine,
            str(device),
            device_name(device),
            device_settings(device),
            engine.batch_slots,
            messages,
            unknown,
        )
        return engine, info


class MissingFile(InputError):
    """A file that does not exist on the worker's node."""


@dataclass(frozen=True)
class JobResult:
    """What a worker returns of a job."""

    results: list[tuple[int, Transcript | Exception, AudioInfo | None]]
    """Position in the job, transcript or error, and the header of each recording, in the order of completion."""
    seconds_read: float
    """Audio that the worker has read so far, in all jobs."""


class Worker:
    """A recognizer in a process of its own: a Ray actor."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.pool: Any = None
        self.seconds_read = 0.0

    def locate(self) -> tuple[str, str]:
        """Return Ray's id of the node, and the host's name."""
        return import_ray().get_runtime_context().get_node_id(), socket.gethostname()

    def load(self, setup: Setup, folder: str, keeper: Any) -> WorkerInfo:
        """Load the engine, in shared memory if there is a ``keeper``.

        ``folder`` is the working directory of the driver, to which relative paths refer.  ``keeper`` is the ``Keeper``
        of this node, or None on a device that has memory of its own.
        """
        with suppress(OSError):
            os.chdir(folder)
        shared = self._adopt(setup, keeper) if keeper else None
        if shared:
            return shared
        self.engine, info = setup.load()
        return info

    def _adopt(self, setup: Setup, keeper: Any) -> WorkerInfo | None:
        """Take the engine from the keeper's memory; return None if it cannot be shared."""
        loading = keeper.load.remote(setup)
        sharing = _import_sharing()  # takes as long as the keeper does
        ray = import_ray()
        try:
            shared = ray.get(loading)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        if not shared:
            return None
        memory, info = shared
        self.engine = sharing.adopt(memory, setup.threads)
        return info

    def transcribe(self, recordings: list[Recording], slots: int) -> JobResult:
        """Transcribe the recordings of a job in batches of ``slots``.

        Raises the model's error if the recordings are not its cause: if the model fails on silence, too.
        """
        results: list[tuple[int, Transcript | Exception, AudioInfo | None]] = []
        has_failed = False
        sources = [CountedRecording(recording, self._count) for recording in recordings]
        for position, result in self.engine.results(sources, slots):
            recording = recordings[position]
            if isinstance(result, InputError):
                if not os.path.exists(recording.path):
                    result = MissingFile(str(result))
            elif isinstance(result, Exception):
                has_failed = True
            results.append((position, _portable(result), recording.info))
        if has_failed:
            self.engine.transcribe([np.zeros(SAMPLE_RATE, np.float32)])
        return JobResult(results, self.seconds_read)

    def open_pool(self, options: StreamOptions, max_streams: int) -> None:
        """Prepare for live streams.  Raises SetupError where the checkpoint cannot stream."""
        self.pool = PoolExchange(self.engine, options, max_streams)

    def exchange(self, requests: list[Request]) -> Answer:
        """Process the audio of live streams, and return their updates."""
        updates, is_busy = self.pool.exchange(requests)
        return Answer([replace(update, error=_portable(update.error)) for update in updates], is_busy)

    def outlast(self) -> None:
        """Never return: the call ends with the process, so its caller learns of the end at once."""
        threading.Event().wait()

    def status(self) -> float:
        """Return the seconds of audio that have been read so far."""
        return self.seconds_read

    def _count(self, seconds: float) -> None:
        self.seconds_read += seconds


class Keeper:
    """Holds the recognizer of a node in memory that all workers of the node share: a Ray actor."""

    def __init__(self) -> None:
        self.is_loaded = False
        self.shared: tuple[str, WorkerInfo] | None = None

    def load(self, setup: Setup) -> tuple[str, WorkerInfo] | None:
        """Return the path of the shared memory and what it holds; None if this recognizer cannot be shared."""
        if not self.is_loaded:
            self.shared = _load_shared(setup)
            self.is_loaded = True
        return self.shared


def _load_shared(setup: Setup) -> tuple[str, WorkerInfo] | None:
    engine, info = setup.load()
    if engine.engine != "native":
        return None
    sharing = _import_sharing()
    try:
        memory = sharing.share(engine)
    except sharing.CannotShare:
        return None
    del engine
    trim_memory()
    return f"/proc/{os.getpid()}/fd/{memory}", info


def _import_sharing() -> ModuleType:
    from . import sharing  # imports torch, which the driver does not need

    return sharing


def _portable(result: Any) -> Any:
    """Prepare a result for sending; an error keeps its traceback, as in multiprocessing."""
    if not isinstance(result, Exception):
        return result
    traceback = result.__traceback__
    try:
        pickle.loads(pickle.dumps(result))
    except Exception:
        result = RuntimeError(f"{type(result).__name__}: {result}")
    return ExceptionWithTraceback(result, traceback)
