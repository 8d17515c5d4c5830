"""A corpus over many devices: workers, each a recognizer in a process of its own, on this host or on a Ray cluster.

``Workers`` answers ``results`` as a recognizer does; all that is written and shown stays with whoever asks, so that it
is the same for any number of workers.  So are texts, tokens, frames and times: what is recognised side by side is
settled beforehand (``cut``), and a piece that has to be done again is done again as a whole.

Ray starts the workers where there is room for them and tells when one is lost.  What then becomes of its work is
decided here: see ``_lose``.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ExceptionWithTraceback
from pathlib import Path

from ..device import TRAITS
from ..engine import ModelOptions
from ..errors import InputError, SetupError, first_line
from ..host import signals
from ..host.packages import can_import, install_command
from ..sources import CountedRecording, Recording

SHARES = 32  # a piece is at most this part of the sound that is left: the last ones are single recordings
BATCHES = 4  # times the slots: recordings of a piece at most, so that sound is decoded ahead inside it
AHEAD = 2  # pieces that a worker has been given: the next one waits there when one is done
TRIES = 3  # of a recording on whose way workers are lost: twice with its piece, then alone
LOADS = 3  # failures of a worker in succession, to load or of its device, until it is given up
POLL_SECONDS = 1.0  # between two questions how far the workers are
WAIT_SECONDS = 30.0  # without any worker, until that is said
"""What Ray calls a device of each kind."""


def cut(recordings: list[Recording], slots: int) -> list[list[int]]:
    """Indices of ``recordings`` in pieces of work, longest first.

    Each is a SHARES-th of what is left, at most BATCHES times the ``slots``, at least one recording: large while there
    is much to do, small when the last worker would be waited for.  The number of workers plays no part, so that it
    cannot show in the results.
    """
    seconds = [recording.seconds for recording in recordings]
    longest = max((length for length in seconds if length is not None), default=1.0)
    seconds = [longest if length is None else length for length in seconds]
    waiting = deque(sorted(range(len(recordings)), key=seconds.__getitem__, reverse=True))
    left, pieces = sum(seconds), []
    while waiting:
        most, sound, piece = left / SHARES, 0.0, []
        while waiting and len(piece) < BATCHES * slots and (not piece or sound + seconds[waiting[0]] <= most):
            sound += seconds[waiting[0]]
            piece.append(waiting.popleft())
        left -= sound
        pieces.append(piece)
    return pieces


def in_pieces(recognizer, sources: list, recordings: list[Recording], slots: int, between) -> Iterator:
    """What ``Workers.results`` yields, from one recognizer in this process."""
    for piece in cut(recordings, slots):
        for index, result in recognizer.results([sources[place] for place in piece], slots, between):
            yield piece[index], result


# ---------------------------------------------------------------- in the workers


@dataclass(frozen=True)
class Setup:
    """What every worker loads, in words: it is sent to where the device is."""

    path: Path
    device: str
    threads: int = 0
    """CPU threads; 0 is one where the device is the CPU, elsewhere this device's part of the host's."""
    options: ModelOptions = ModelOptions()
    confidence: str | None = None
    phrases: tuple = ()
    boost_alpha: float = 1.0

    def load(self) -> tuple[object, Facts]:
        """The recognizer and what is to be said of it."""
        import torch

        from ..device import choose_device, device_name, traits_of
        from ..recognizer import load_recognizer

        torch.set_num_threads(self.threads)
        device, _ = choose_device(self.device)
        said: list[str] = []
        recognizer = load_recognizer(self.path, device, options=self.options, announce=said.append)
        if traits_of(device).is_host and self.threads == 1:
            recognizer.readers = 0  # other threads would only take the cores from each other
        if self.confidence:
            recognizer.measure_confidence(self.confidence)
        unknown = recognizer.boost(list(self.phrases), self.boost_alpha) if self.phrases else []
        facts = Facts(
            recognizer.parameters,
            recognizer.engine,
            str(device),
            device_name(device),
            recognizer.batch_slots,
            said,
            unknown,
        )
        return recognizer, facts


@dataclass(frozen=True)
class Facts:
    """What a worker has loaded."""

    parameters: int
    engine: str
    device: str
    device_name: str
    slots: int
    said: list[str]
    """What it would have said on a console."""
    unknown: list
    """Phrases that the model cannot spell."""


class Worker:
    """A recognizer in a process of its own: a Ray actor."""

    def __init__(self):
        self.recognizer = None
        self.sound = 0.0  # seconds that have been read

    def where(self) -> tuple[str, str, int]:
        """Node (Ray's id), host name and process id."""
        import ray

        return ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid()

    def load(self, setup: Setup, folder: str, keeper) -> Facts:
        """``keeper`` is the ``Keeper`` of this node, None on a device that has memory of its own."""
        import ray

        with suppress(OSError):  # relative names are looked for where the run was started
            os.chdir(folder)
        loading = keeper and keeper.load.remote(setup)
        import torch  # it takes as long as the keeper does

        from .sharing import adopt

        try:
            shared = loading and ray.get(loading)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        if shared:
            torch.set_num_threads(setup.threads)
            where, facts = shared
            self.recognizer = adopt(where)
        else:
            self.recognizer, facts = setup.load()
        return facts

    def recognise(self, recordings: list[Recording], slots: int) -> tuple[list, float]:
        """(index, transcript or error, what the header said) of each, in the order in which they were done, and the
        sound that has been read so far.

        Raises what the model raised if that is not the recordings' fault: it fails on silence too.
        """
        results, suspect = [], None
        sources = [CountedRecording(recording, self._count) for recording in recordings]
        for index, result in self.recognizer.results(sources, slots):
            recording = recordings[index]
            if isinstance(result, InputError) and not os.path.exists(recording.path):
                result = Absent(str(result))
            elif isinstance(result, Exception) and not isinstance(result, InputError):
                suspect = result
            results.append((index, _portable(result), recording.info))
        if suspect:
            self._try_out()
        return results, self.sound

    def heard(self) -> float:
        """Seconds of sound that have been read so far."""
        return self.sound

    def _count(self, seconds: float) -> None:
        self.sound += seconds

    def _try_out(self) -> None:
        import numpy as np

        self.recognizer.transcribe([np.zeros(16_000, np.float32)])


class Keeper:
    """Has the recognizer of a node in memory that its workers share: a Ray actor."""

    def __init__(self):
        self.loaded, self.shared = False, None

    def load(self, setup: Setup) -> tuple[str, Facts] | None:
        """Where the memory is, and what there is to say; None for a recognizer that cannot be shared."""
        if not self.loaded:
            self.shared = self._share(setup)
            self.loaded = True
        return self.shared

    def _share(self, setup: Setup) -> tuple[str, Facts] | None:
        from ..device import trim_memory
        from .sharing import share

        recognizer, facts = setup.load()
        if recognizer.engine != "native":
            return None
        memory = share(recognizer)
        del recognizer
        trim_memory()
        return f"/proc/{os.getpid()}/fd/{memory}", facts


class Absent(InputError):
    """A file that is not there, as a worker sees it."""


def _portable(result):
    """A result that can be sent; an error with its traceback, as multiprocessing sends it."""
    if not isinstance(result, Exception):
        return result
    trace = result.__traceback__
    try:
        pickle.loads(pickle.dumps(result))
    except Exception:
        result = RuntimeError(f"{type(result).__name__}: {result}")
    return ExceptionWithTraceback(result, trace)


# ---------------------------------------------------------------- where the results are wanted


@dataclass(eq=False)
class _Piece:
    """Recordings that are recognised side by side by one worker."""

    places: list[int]
    tries: int = 0
    """How many workers were lost with it."""
    last: int | None = None
    """Number of the last of them: another one is to try."""


@dataclass(eq=False)
class _Hand:
    """A place for a worker: whoever fills it now, and what he has to do."""

    number: int
    actor: object = None
    node: str | None = None
    host: str = "?"
    loaded: bool = False
    failures: int = 0
    """In succession, to load or of the device."""
    pieces: deque = field(default_factory=deque)
    heard: float = 0.0
    """Seconds of sound that have been told to the progress."""
    settled: float = 0.0
    """As many of them as are in pieces that are done."""
    asked: bool = False


class Workers:
    """Workers on this host or on a cluster; a context manager, which ends them.

    Parameters
    ----------
    setup : what each loads; its ``device`` is a kind, ``"npu"``, ``"cuda"`` or ``"cpu"``; ``""`` takes NPUs where Ray
        knows of any, else the CPU.
    count : how many; None takes all that the cluster has room for.
    address : of a Ray cluster; None starts Ray on this host, for this run alone.
    say : is told what a person should know.

    Raises SetupError when there is no such device, or what loading the first worker raised.
    """

    def __init__(self, setup: Setup, count: int | None, address: str | None, say: Callable[[str], None]):
        self.address, self.say = address, say
        self.hands: list[_Hand] = []
        self.tasks: dict = {}  # what Ray has been asked for -> (kind, hand, piece)
        self.keepers: dict[str, object] = {}
        self.queue: deque[_Piece] = deque()
        self.polled = self.seen = time.monotonic()
        self.told_of_waiting = False
        self.error: Exception | None = None
        self.facts: Facts | None = None
        self.folder = None
        try:
            self._start(setup, count)
        except BaseException:
            self.close()
            raise

    def _start(self, setup: Setup, count: int | None) -> None:
        cores = setup.threads if setup.threads and setup.device in ("", "cpu") else 1
        self.ray = self._connect((count or 1) * cores)
        has = self.ray.cluster_resources()
        kind = setup.device or ("npu" if has.get("NPU") else "cpu")
        reason = "" if setup.device or kind == "npu" else " (Ray knows of no NPU)"
        self.kind = kind
        traits = TRAITS[kind]
        room = int(has.get(traits.ray_resource, 0) // (cores if traits.is_host else 1))
        where = "the cluster" if self.address else "this host"
        if not room or (count or 0) > room and not self.address:
            raise SetupError(f"--device {kind}: Ray knows of {room or 'no'} {traits.ray_resource}s on {where}")
        count = count or room
        if count > room:
            self.say(f"{where} has room for {room} of {count} workers now: the others begin when it grows")
        # each sees its own device alone
        self.setup = (
            replace(setup, device="cpu", threads=cores) if traits.is_host else replace(setup, device=f"{kind}:0")
        )
        self.options = {"num_cpus": cores, "max_restarts": 0, "concurrency_groups": {"ask": 1}}
        self.options |= traits.ray_options
        self.say(f"device: {kind}{reason}, {count} worker{'s' * (count > 1)}")
        self.say(f"loading {setup.path.name} ...")
        if traits.is_host and not self.address:
            self._keeper(self.ray.get_runtime_context().get_node_id())  # it loads while the workers start
        self.hands = [_Hand(number) for number in range(count)]
        for hand in self.hands:
            self._hire(hand)
        while self.facts is None:
            for _ in self._events():
                pass
        for line in self.facts.said:
            self.say(line)
        self.engine, self.parameters, self.batch_slots = self.facts.engine, self.facts.parameters, self.facts.slots
        self.device, self.device_name = self.facts.device, self.facts.device_name

    def _connect(self, cores: int):
        """Ray, connected to the cluster, or started here, where only this run can reach it.  It writes nothing."""
        os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # else it prints on stdout which workers have died
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self.address:
            ray = _import_ray()
            try:
                host, _, port = self.address.rpartition(":")
                if port.isdigit() and "/" not in host:  # Ray would try for minutes
                    socket.create_connection((host.strip("[]"), int(port)), 10).close()
                with signals.kept():
                    ray.init(address=self.address, **quiet)
            except Exception as error:
                raise SetupError(
                    f"--ray_address {self.address}: no connection ({first_line(error)}): is the cluster running, with "
                    f"this Ray ({ray.__version__}) and this host's RAY_AUTH_MODE and token?"
                ) from error
            return ray
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # what makes it listen on 127.0.0.1 alone
        os.environ.setdefault("RAY_worker_niceness", "0")  # workers are as urgent as this process would be
        os.environ.setdefault("MALLOC_ARENA_MAX", "1")  # Ray calls workers in a thread, whose memory would come and go
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else one for all runs is kept in ~/.ray
        ray = _import_ray()
        # Ray's own folder would stay, with a log of every process; the sockets in it need a short path
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        # its processes ask the addresses of clouds where they are, whatever they are told: through a proxy that is none
        nowhere = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}
        before = {name: os.environ.get(name) for name in nowhere}
        cores = max(cores, len(os.sched_getaffinity(0)))  # so many threads are asked for, so many there are
        os.environ |= nowhere
        try:
            with signals.kept():
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=False,
                    object_store_memory=100 << 20,  # results are small
                    _temp_dir=self.folder,
                    **quiet,
                )
        except Exception as error:
            raise SetupError(f"--num_workers: Ray does not start here: {first_line(error)}") from error
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
        return ray

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        ray = getattr(self, "ray", None)
        if ray and ray.is_initialized():
            for actor in [*(hand.actor for hand in self.hands if hand.actor), *self.keepers.values()]:
                with suppress(Exception):
                    ray.kill(actor)
            ray.shutdown()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------ as a recognizer has it

    def results(
        self, recordings: list[Recording], slots: int, hear: Callable[[float], None] = lambda seconds: None
    ) -> Iterator[tuple[int, object]]:
        """Yield (index, transcript or what went wrong) of each recording, once, as soon as its piece is done.

        ``hear`` is told of the seconds of sound as they are read.
        Raises SetupError, or what the last of them raised, when no worker is left.
        """
        self.recordings, self.batch, self.hear = recordings, slots, hear
        self.queue = deque(_Piece(places) for places in cut(recordings, slots))
        left = len(recordings)
        while left:
            for place, result in self._events():
                left -= 1
                yield place, result

    # ------------------------------------------------------------------ what happens

    def _events(self) -> Iterator[tuple[int, object]]:
        """Hand out work, wait until something has happened, and yield the results in it."""
        ray = self.ray
        self._hand_out()
        self._ask()
        if not any(hand.actor for hand in self.hands):
            raise self.error or SetupError("no worker is left")
        self._tell_of_waiting()
        done, _ = ray.wait([*self.tasks], num_returns=len(self.tasks), timeout=0)
        if not done:
            done, _ = ray.wait([*self.tasks], timeout=POLL_SECONDS)
        for task in done:
            if task not in self.tasks:  # of a worker that has been lost meanwhile
                continue
            kind, hand, piece = self.tasks.pop(task)
            try:
                value = ray.get(task)
            except ray.exceptions.RayTaskError as error:
                yield from self._lose(hand, piece, error.cause, alive=True)
            except ray.exceptions.RayError as error:
                yield from self._lose(hand, piece, error, alive=False)
            else:
                yield from getattr(self, f"_{kind}")(hand, piece, value)

    def _where(self, hand: _Hand, _, value) -> Iterator:
        """A worker has been started: it is to load."""
        hand.node, hand.host, _ = value
        setup = self.setup
        if TRAITS[self.kind].is_host:
            if hand.node not in self.keepers:
                self._keeper(hand.node)
        elif not setup.threads:
            setup = replace(setup, threads=self._threads(hand.node))
        keeper = self.keepers.get(hand.node)
        self._call("load", hand, None, hand.actor.load.remote(setup, os.getcwd(), keeper))
        return iter(())

    def _load(self, hand: _Hand, _, facts: Facts) -> Iterator:
        """A worker can begin."""
        hand.loaded = True
        self.facts = self.facts or facts
        return iter(())

    def _recognise(self, hand: _Hand, piece: _Piece, value) -> Iterator[tuple[int, object]]:
        """A piece is done."""
        results, sound = value
        for index, result, _ in results:
            path = self.recordings[piece.places[index]].path
            if isinstance(result, Absent) and os.path.exists(path):
                error = SetupError(
                    f"{path} is not there on {hand.host}: every node needs the sound under the same name"
                )
                yield from self._lose(hand, piece, error, alive=True)
                return
        hand.pieces.remove(piece)
        hand.failures = 0
        self._hear(hand, sound)
        hand.settled = sound
        for index, result, info in results:
            place = piece.places[index]
            self.recordings[place].info = info or self.recordings[place].info
            yield place, result

    def _heard(self, hand: _Hand, _, sound: float) -> Iterator:
        hand.asked = False
        self._hear(hand, sound)
        return iter(())

    def _hear(self, hand: _Hand, sound: float) -> None:
        if sound != hand.heard:
            self.hear(sound - hand.heard)
            hand.heard = sound

    # ------------------------------------------------------------------ workers come and go

    def _call(self, kind: str, hand: _Hand, piece: _Piece | None, task) -> None:
        self.tasks[task] = kind, hand, piece

    def _hire(self, hand: _Hand) -> None:
        """Ask Ray for a worker: it comes when there is room for it."""
        hand.actor = self.ray.remote(**self.options)(Worker).remote()
        hand.loaded, hand.node, hand.asked, hand.heard, hand.settled = False, None, False, 0.0, 0.0
        self._call("where", hand, None, hand.actor.where.remote())

    def _keeper(self, node: str) -> None:
        """Have the recognizer loaded on a node, for its workers to share."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(node, soft=False)
        self.keepers[node] = self.ray.remote(num_cpus=0, scheduling_strategy=here)(Keeper).remote()
        self.keepers[node].load.remote(self.setup)

    def _threads(self, node: str) -> int:
        """CPU threads for each device of a node: none of them is to wait for another's, whether it is used or not."""
        has = next(entry["Resources"] for entry in self.ray.nodes() if entry["NodeID"] == node)
        return max(1, int(has.get("CPU", 1) // max(1, has.get(TRAITS[self.kind].ray_resource, 1))))

    def _lose(
        self, hand: _Hand, piece: _Piece | None, error: Exception, alive: bool
    ) -> Iterator[tuple[int, Exception]]:
        """A worker has died, with its process or its node, or is unfit: it cannot load, or its device fails.

        Another takes its place.  What it was given is done again: the piece that it was at may be the reason, and is
        given to another worker, as a whole and at last recording by recording; one on which TRIES workers were lost
        is yielded as failed.
        """
        with suppress(Exception):
            self.ray.kill(hand.actor)
        self.tasks = {task: entry for task, entry in self.tasks.items() if entry[1] is not hand}
        pieces, hand.pieces = hand.pieces, deque()
        if hand.heard != hand.settled:  # that sound will be heard again
            self.hear(hand.settled - hand.heard)
        node_lost = not alive and ("node has died" in str(error) or not self._is_alive(hand.node))
        if not alive and pieces:
            piece = pieces[0]  # the one that it was at: they are done in turn
        if node_lost:
            what, blamed = "its node is gone", None
        elif alive:
            what, blamed = first_line(error), piece
        else:
            what, blamed = "its process died", piece
        if not blamed:  # a new one is needed where it loads
            self.keepers.pop(hand.node, None)
        if not node_lost and (alive or not blamed):
            hand.failures = LOADS if isinstance(error, SetupError) else hand.failures + 1
            self.error = error if alive else SetupError(f"workers die on {hand.host} while they load: is memory short?")
        name = f"worker {hand.number + 1} on {hand.host}"
        hand.actor = None
        if hand.failures < LOADS:
            if hand.loaded:
                again = sum(len(piece.places) for piece in pieces)
                self.say(f"{name}: {what}" + (f": {again} recordings are tried again" if again else ""))
            self._hire(hand)
        elif self.facts:
            self.say(f"{name} is given up: {what}")
        self.queue.extendleft(piece for piece in reversed(pieces) if piece is not blamed)
        if blamed:
            blamed.last = hand.number
            yield from self._try_again(blamed, error if alive else None)

    def _try_again(self, piece: _Piece, error: Exception | None) -> Iterator[tuple[int, Exception]]:
        piece.tries += 1
        if piece.tries >= TRIES:
            for place in piece.places:
                name = self.recordings[place].name
                yield place, error or InputError(f"{name}: given up: {piece.tries} workers died of it, the last alone")
        elif piece.tries == TRIES - 1 and len(piece.places) > 1:
            self.queue.extendleft(_Piece([place], piece.tries, piece.last) for place in reversed(piece.places))
        else:
            self.queue.appendleft(piece)

    def _is_alive(self, node: str | None) -> bool:
        """Whether a node answers; Ray itself knows only after some seconds that it does not."""
        for entry in self.ray.nodes():
            if entry["NodeID"] == node:
                try:
                    socket.create_connection((entry["NodeManagerAddress"], entry["NodeManagerPort"]), 2).close()
                except OSError:
                    return False
                return entry["Alive"]
        return node is None

    # ------------------------------------------------------------------ work

    def _hand_out(self) -> None:
        """Give work to those who have least, AHEAD pieces at most."""
        ready = [hand for hand in self.hands if hand.loaded and hand.actor]
        for most in range(AHEAD):
            for hand in ready:
                if len(hand.pieces) == most and (piece := self._piece_for(hand, len(ready) == 1)):
                    hand.pieces.append(piece)
                    recordings = [replace(self.recordings[place], fields=None) for place in piece.places]
                    self._call("recognise", hand, piece, hand.actor.recognise.remote(recordings, self.batch))

    def _piece_for(self, hand: _Hand, alone: bool) -> _Piece | None:
        """The next piece that was not lost with this worker, if there are others."""
        for index, piece in enumerate(self.queue):
            if alone or piece.last != hand.number:
                del self.queue[index]
                return piece
        return None

    def _ask(self) -> None:
        """Ask the workers how far they are, now and then, the less often the more they are."""
        now = time.monotonic()
        if now - self.polled < max(POLL_SECONDS, len(self.hands) / 100):
            return
        self.polled = now
        for hand in self.hands:
            if hand.pieces and not hand.asked:
                hand.asked = True
                self._call("heard", hand, None, hand.actor.heard.options(concurrency_group="ask").remote())

    def _tell_of_waiting(self) -> None:
        now = time.monotonic()
        if any(hand.actor and hand.node for hand in self.hands):
            self.seen, self.told_of_waiting = now, False
        elif now - self.seen > WAIT_SECONDS and not self.told_of_waiting:
            self.told_of_waiting = True
            self.say("no worker could be started: waiting until the cluster has room for one (Ctrl-C ends the run)")


def check_ray() -> None:
    """Raise SetupError where Ray is not installed."""
    if not can_import("ray"):
        raise SetupError(f"more than one worker needs Ray: {install_command('ray')}")


def _import_ray():
    check_ray()
    import ray

    return ray
