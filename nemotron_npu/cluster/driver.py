"""Transcribe a corpus on many devices: each worker is a recognizer in a process of its own, here or on a Ray cluster.

``Workers`` yields the same results as one recognizer.  The process that holds it, the driver, writes and prints
everything, so the output does not depend on the number of workers.

Ray starts a worker where there is room for it and reports when it is lost.  ``Workers`` decides which worker
repeats its jobs: see ``_replace``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..device import TRAITS
from ..engine import StreamOptions, nothing
from ..errors import InputError, SetupError, first_line, one_line
from ..sources import CountedRecording
from ..transcript import Transcript
from .connection import Connection
from .jobs import Job, JobQueue, plan_jobs
from .member import Loss, Member
from .placement import cores_per_worker, place, threads_per_device
from .pools import WorkerPool
from .worker import JobResult, Keeper, MissingFile, Setup, Worker, WorkerInfo

JOBS_AHEAD = 2  # jobs that a worker holds: it begins the second as soon as the first is done
MAX_FAILURES = 3  # consecutive failures of a worker, to load or of its device, until it is given up
POLL_SECONDS = 1.0  # between two requests for the amount of audio that the workers have read
POLLS_PER_SECOND = 100  # at most: with more workers than that, each is asked less often
WAIT_SECONDS = 30.0  # without any running worker, until that is reported

Result = tuple[int, Transcript | Exception]
"""Index of a recording, and its transcript or what went wrong."""


class Workers:
    """Workers on this host or on a cluster: an ``Engine``, and a context manager, which ends them.

    Parameters
    ----------
    setup : what each worker loads.  Its ``device`` is a device kind, ``"npu"``, ``"cuda"`` or ``"cpu"``; ``""`` takes
        NPUs where Ray knows of any, else the CPU.
    count : number of workers; None takes all that there is room for.
    address : of a Ray cluster; None starts Ray on this host, for this run alone.
    notify : called with each message for the user.

    Raises SetupError when there is no such device, or what loading the first worker raised.
    """

    def __init__(self, setup: Setup, count: int | None, address: str | None, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._members: list[Member] = []
        self._keepers: dict[str, Any] = {}  # by node
        self._calls: dict[Any, tuple[Member, Job | None, Callable]] = {}  # results that Ray still owes
        self._queue = JobQueue()
        self._sources: Sequence[CountedRecording] = ()
        self._slots = 1
        self._info: WorkerInfo | None = None
        self._error: Exception | None = None  # why the last worker was given up
        self._last_poll = time.monotonic()
        self._last_seen = self._last_poll  # when a worker was running
        self._has_reported_waiting = False
        self._connection = Connection(address, (count or 1) * cores_per_worker(setup))
        self._ray = self._connection.ray
        try:
            resources = self._ray.cluster_resources()
            self._placement = place(setup, count, resources, may_grow=bool(address))
            self._report_start(setup, count)
            if TRAITS[self._placement.kind].is_host and not address:
                # the keeper loads while the workers start
                self._start_keeper(self._ray.get_runtime_context().get_node_id())
            self._members = [Member(number) for number in range(self._placement.count)]
            for member in self._members:
                self._start_worker(member)
            self.info = self._wait_for_info()
        except BaseException:
            self.close()
            raise
        for message in self.info.messages:
            notify(message)
        self.engine = self.info.engine
        self.device = self.info.device
        self.device_name = self.info.device_name
        self.parameters = self.info.parameters
        self.batch_slots = self.info.batch_slots

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        if self._ray.is_initialized():
            actors = [member.actor for member in self._members if member.actor]
            for actor in [*actors, *self._keepers.values()]:
                with suppress(Exception):
                    self._ray.kill(actor)
        self._connection.close()

    # ------------------------------------------------------------------ the interface of an engine

    def results(
        self, sources: Sequence[CountedRecording], slots: int = 1, between: Callable[[], None] = nothing
    ) -> Iterator[Result]:
        """Yield (index, transcript or error) of each recording once, as soon as its job is done.

        Workers transcribe in batches of ``slots``.  ``between`` is called at least once a second.  The ``on_read`` of
        the sources is called in this thread, with a negative number when a worker is lost whose audio is to be read
        again.  Raises SetupError, or what the last worker raised, when no worker is left.
        """
        self._sources = sources
        self._slots = slots
        jobs = plan_jobs([source.recording for source in sources], slots)
        self._queue = JobQueue(Job(indices) for indices in jobs)
        left = len(sources)
        while left:
            between()
            for result in self._next_events():
                left -= 1
                yield result

    def pools(self, options: StreamOptions, streams: int, files: int) -> list[WorkerPool]:
        """Return the pools of all workers that there is room for now, for so many streams of pipes, and files, in all.

        From then on its pool reports the loss of a worker.  Raises SetupError as ``results`` does, and for a
        checkpoint that cannot stream.
        """
        while sum(member.is_loaded for member in self._members) < min(self._placement.room, len(self._members)):
            for _ in self._next_events():
                pass
            if all(member.is_loaded or not member.actor for member in self._members):
                break
        ready = [member for member in self._members if member.is_loaded and member.actor]
        slots = min(self.batch_slots, files)
        places = math.ceil(streams / max(1, len(ready) - 1)) + slots + 1  # one may be lost before its streams begin
        try:
            self._ray.get([member.actor.open_pool.remote(options, places) for member in ready])
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError:  # a worker has died: its pool reports it
            pass
        return [WorkerPool(self._ray, member, slots) for member in ready]

    # ------------------------------------------------------------------ events

    def _next_events(self) -> Iterator[Result]:
        """Hand out jobs, wait until something happens, and yield the results in it."""
        self._hand_out()
        self._poll()
        if not any(member.actor for member in self._members):
            raise self._error or SetupError("no worker is left")
        self._report_waiting()
        calls = list(self._calls)
        done, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        if not done:
            done, _ = self._ray.wait(calls, timeout=POLL_SECONDS)
        for call in done:
            if call in self._calls:  # else its worker has been lost
                yield from self._finish(call)

    def _finish(self, call: Any) -> Iterator[Result]:
        """Handle the result of a call, or the loss of its worker."""
        member, job, handle = self._calls.pop(call)
        try:
            value = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            loss = Loss(first_line(error.cause), error.cause, job)
            yield from self._replace(member, loss)
        except self._ray.exceptions.RayError as error:
            yield from self._replace(member, self._diagnose(member, error))
        else:
            yield from handle(member, job, value)

    def _on_located(self, member: Member, _: None, value: tuple[str, str]) -> Iterator[Result]:
        """Let a worker whose process has started load the model."""
        node, member.host = value
        member.node = node
        setup = self._placement.setup
        kind = self._placement.kind
        if TRAITS[kind].is_host:
            if node not in self._keepers:
                self._start_keeper(node)
        elif not setup.threads:
            setup = replace(setup, threads=threads_per_device(kind, self._connection.resources_of(node)))
        call = member.actor.load.remote(setup, os.getcwd(), self._keepers.get(node))
        self._calls[call] = member, None, self._on_loaded
        return iter(())

    def _on_loaded(self, member: Member, _: None, info: WorkerInfo) -> Iterator[Result]:
        member.is_loaded = True
        self._info = self._info or info
        return iter(())

    def _on_done(self, member: Member, job: Job, value: JobResult) -> Iterator[Result]:
        for position, result, _ in value.results:
            path = self._sources[job.indices[position]].recording.path
            if isinstance(result, MissingFile) and os.path.exists(path):
                hint = "every node needs the audio files under the same paths"
                error = SetupError(path, f"not found on {member.host}", hint)
                yield from self._replace(member, Loss(first_line(error), error, job))
                return
        member.jobs.remove(job)
        member.failures = 0
        self._report_read(member, value.seconds_read)
        member.seconds_done = value.seconds_read
        for position, result, info in value.results:
            index = job.indices[position]
            recording = self._sources[index].recording
            recording.info = info or recording.info
            yield index, result

    def _on_status(self, member: Member, _: None, seconds_read: float) -> Iterator[Result]:
        member.is_asked = False
        self._report_read(member, seconds_read)
        return iter(())

    # ------------------------------------------------------------------ workers start and are lost

    def _report_start(self, setup: Setup, count: int | None) -> None:
        placement = self._placement
        if count and count > placement.room:
            self._notify(f"the cluster has room for {placement.room} of {count} workers now: the others wait for more")
        plural = "s" if placement.count > 1 else ""
        self._notify(f"device: {placement.kind}{placement.remark}, {placement.count} worker{plural}")
        self._notify(f"loading {setup.path.name} ...")

    def _wait_for_info(self) -> WorkerInfo:
        """Return what the first worker has loaded."""
        while self._info is None:
            for _ in self._next_events():
                pass
        return self._info

    def _start_worker(self, member: Member) -> None:
        """Ask Ray for a process; it starts when there is room for it."""
        member.start(self._ray.remote(**self._placement.actor_options)(Worker).remote())
        self._calls[member.actor.locate.remote()] = member, None, self._on_located

    def _start_keeper(self, node: str) -> None:
        """Start the process that loads the recognizer for all workers of a node."""
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        keeper = self._ray.remote(num_cpus=0, scheduling_strategy=strategy)(Keeper).remote()
        keeper.load.remote(self._placement.setup)
        self._keepers[node] = keeper

    def _diagnose(self, member: Member, error: Exception) -> Loss:
        """Return why a process does not answer any more."""
        if "node has died" in str(error) or not self._connection.is_alive(member.node):
            return Loss("its node is lost", is_node=True)
        job = member.jobs[0] if member.jobs else None  # jobs are done in turn
        return Loss("its process died", job=job)

    def _replace(self, member: Member, loss: Loss) -> Iterator[Result]:
        """Start another process in place of one that died, or is unfit: it cannot load, or its device fails.

        The jobs that it held are repeated as a whole.  The job that may be the cause goes to another worker, in the end
        as single recordings: see ``JobQueue.retry``.  Recordings that are given up are yielded with an error.
        """
        with suppress(Exception):
            self._ray.kill(member.actor)
        member.actor = None
        self._calls = {call: entry for call, entry in self._calls.items() if entry[0] is not member}
        if not loss.job:
            self._keepers.pop(member.node or "", None)  # the next process may be on another node
        self._report_read(member, member.seconds_done)  # the audio of its jobs will be read again
        self._count_failure(member, loss)
        jobs = list(member.jobs)
        member.jobs.clear()
        if member.failures < MAX_FAILURES:
            if member.is_loaded:
                retried = sum(len(job.indices) for job in jobs)
                hint = f"retrying {retried} recordings" if retried else ""
                self._notify(one_line(member.name, loss.reason, hint))
            self._start_worker(member)
        elif self._info:
            self._notify(one_line(member.name, loss.reason, "worker given up"))
        self._queue.put_back(job for job in jobs if job is not loss.job)
        if loss.job:
            for index in self._queue.retry(loss.job, member.number):
                yield index, loss.error or self._deadly(index, loss.job)

    def _count_failure(self, member: Member, loss: Loss) -> None:
        """Count failures that the device or the node's memory may have caused; a SetupError would recur every time."""
        if loss.error:
            self._error = loss.error
            member.failures = MAX_FAILURES if isinstance(loss.error, SetupError) else member.failures + 1
        elif not loss.job and not loss.is_node:
            hint = "is memory short? take fewer workers"
            self._error = SetupError(member.host, "workers die while they load the model", hint)
            member.failures += 1

    def _deadly(self, index: int, job: Job) -> InputError:
        name = self._sources[index].recording.name
        return InputError(name, f"given up after {job.losses} workers died while transcribing it")

    # ------------------------------------------------------------------ work and progress

    def _hand_out(self) -> None:
        """Give jobs to the workers that hold fewest, up to ``JOBS_AHEAD`` each."""
        ready = [member for member in self._members if member.is_loaded and member.actor]
        for held in range(JOBS_AHEAD):
            for member in ready:
                if len(member.jobs) == held:
                    self._give_job(member, is_only_worker=len(ready) == 1)

    def _give_job(self, member: Member, *, is_only_worker: bool) -> None:
        job = self._queue.take(member.number, is_only_worker=is_only_worker)
        if job:
            member.jobs.append(job)
            recordings = [replace(self._sources[index].recording, line=None) for index in job.indices]
            call = member.actor.transcribe.remote(recordings, self._slots)
            self._calls[call] = member, job, self._on_done

    def _poll(self) -> None:
        """Ask busy workers at intervals how much audio they have read."""
        now = time.monotonic()
        if now - self._last_poll < max(POLL_SECONDS, len(self._members) / POLLS_PER_SECOND):
            return
        self._last_poll = now
        for member in self._members:
            if member.jobs and not member.is_asked:
                member.is_asked = True
                call = member.actor.status.options(concurrency_group="status").remote()
                self._calls[call] = member, None, self._on_status

    def _report_read(self, member: Member, seconds_read: float) -> None:
        if seconds_read != member.seconds_read:
            self._sources[0].on_read(seconds_read - member.seconds_read)
            member.seconds_read = seconds_read

    def _report_waiting(self) -> None:
        """Notify the user once when no worker has been running for ``WAIT_SECONDS``."""
        now = time.monotonic()
        if any(member.actor and member.node for member in self._members):
            self._last_seen = now
            self._has_reported_waiting = False
        elif now - self._last_seen > WAIT_SECONDS and not self._has_reported_waiting:
            self._has_reported_waiting = True
            self._notify("no worker could be started: waiting for room in the cluster (Ctrl-C ends the run)")
