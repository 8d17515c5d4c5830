"""Jobs: the parts of a corpus that are handed to workers, one at a time.

How a corpus is divided depends on its recordings and on the batch size, never on the number of workers.  A job that is
lost with a worker is repeated as a whole.  So the same recordings share a batch in every run, and results do not depend
on the number of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..sources import CountedRecording, Recording

JOB_SHARE = 32  # a job has at most a 32nd of the audio that is left, so that the last jobs are single recordings
JOB_BATCHES = 4  # a job has at most this many batches of recordings, so that audio is decoded ahead within it
MAX_LOSSES = 3  # workers that a recording may cost: two with its job, the third alone


def plan_jobs(recordings: list[Recording], slots: int) -> list[list[int]]:
    """Divide ``recordings`` into jobs, longest recordings first, and return the indices of each job.

    A job has at most a ``JOB_SHARE``-th of the remaining audio and ``JOB_BATCHES`` batches of ``slots`` recordings, and
    at least one recording: jobs are large at first and small at the end, when the last worker is waited for.
    """
    known = [recording.seconds for recording in recordings]
    longest = max((length for length in known if length is not None), default=1.0)
    seconds = [longest if length is None else length for length in known]
    waiting = deque(sorted(range(len(recordings)), key=seconds.__getitem__, reverse=True))
    left = sum(seconds)
    jobs = []
    while waiting:
        job = _next_job(waiting, seconds, left / JOB_SHARE, JOB_BATCHES * slots)
        left -= sum(seconds[index] for index in job)
        jobs.append(job)
    return jobs


def _next_job(waiting: deque[int], seconds: list[float], max_seconds: float, max_recordings: int) -> list[int]:
    """Take recordings from ``waiting``: one, and more as long as both limits allow it."""
    job = [waiting.popleft()]
    total = seconds[job[0]]
    while waiting and len(job) < max_recordings and total + seconds[waiting[0]] <= max_seconds:
        total += seconds[waiting[0]]
        job.append(waiting.popleft())
    return job


def results_by_job(
    recognizer: Any, sources: Sequence[CountedRecording], slots: int, between: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    """Transcribe job by job in this process; yield the same as ``Workers.results``."""
    for job in plan_jobs([source.recording for source in sources], slots):
        for position, result in recognizer.results([sources[index] for index in job], slots, between):
            yield job[position], result


@dataclass(eq=False)
class Job:
    """Recordings that one worker transcribes together."""

    indices: list[int]
    losses: int = 0
    """Workers that were lost while they did this job."""
    last_worker: int | None = None
    """Number of the last of them: another worker is to try next."""


class JobQueue:
    """Jobs that wait for a worker, in order."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._jobs = deque(jobs)

    def take(self, worker: int, *, is_only_worker: bool) -> Job | None:
        """Remove and return the next job that was not lost with worker number ``worker``, unless it is the only one."""
        for position, job in enumerate(self._jobs):
            if is_only_worker or job.last_worker != worker:
                del self._jobs[position]
                return job
        return None

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Return jobs to the front, in their order."""
        self._jobs.extendleft(reversed(list(jobs)))

    def retry(self, job: Job, worker: int) -> list[int]:
        """Return a job to the front after worker number ``worker`` was lost with it.

        Before the last attempt the job is split into single recordings.  After it the job is dropped: returns the
        indices of the recordings that are given up.
        """
        job.losses += 1
        job.last_worker = worker
        if job.losses >= MAX_LOSSES:
            return job.indices
        if job.losses == MAX_LOSSES - 1:
            self.put_back(Job([index], job.losses, worker) for index in job.indices)
        else:
            self.put_back([job])
        return []
