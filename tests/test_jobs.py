"""Jobs: how a corpus is divided, and what happens to a job whose worker is lost."""

from __future__ import annotations

import pytest

from nemotron_npu.cluster.jobs import JOB_BATCHES, MAX_LOSSES, Job, JobQueue, plan_jobs
from nemotron_npu.sources import Recording


def recordings(seconds: list[float | None]) -> list[Recording]:
    return [Recording(str(number), "", length=length) for number, length in enumerate(seconds)]


@pytest.mark.parametrize("seconds", [[9.0], [2.0] * 1000, [3600.0, *range(1, 500)], [None, 4.0, None, 7.0], []])
def test_jobs_hold_each_recording_once_longest_first(seconds):
    """Every recording is in one job; recordings of unknown length count as the longest; no job is too large."""
    jobs = plan_jobs(recordings(seconds), 8)
    assert sorted(index for job in jobs for index in job) == list(range(len(seconds)))
    known = [seconds[index] for job in jobs for index in job if seconds[index] is not None]
    assert known == sorted(known, reverse=True)
    assert all(len(job) <= JOB_BATCHES * 8 for job in jobs)


def test_jobs_of_many_recordings_get_smaller():
    """The first jobs hold several recordings, the last ones a single recording each."""
    jobs = plan_jobs(recordings([2.0] * 1000), 8)
    assert len(jobs[1]) > 4
    assert [len(job) for job in jobs[-8:]] == [1] * 8


def test_jobs_begin_with_recordings_of_hours_alone():
    """A recording of hours is a job by itself, and comes first."""
    assert plan_jobs(recordings([5.0, 36000.0, 5.0, 7200.0, 5.0]), 8)[:2] == [[1], [3]]


def test_queue_gives_a_lost_job_to_another_worker():
    """A job that was lost with worker 0 waits for another one, unless worker 0 is the only one left."""
    lost, next_job = Job([0]), Job([1])
    queue = JobQueue([next_job])
    assert queue.retry(lost, 0) == []
    assert queue.take(0, is_only_worker=False) is next_job
    assert queue.take(0, is_only_worker=False) is None
    assert queue.take(0, is_only_worker=True) is lost
    assert queue.take(1, is_only_worker=True) is None


def test_queue_splits_a_job_before_its_last_attempt():
    """A job is retried as a whole, then recording by recording; what is lost again is given up."""
    job, queue = Job([3, 5]), JobQueue([Job([7])])
    for worker in range(MAX_LOSSES - 2):
        assert queue.retry(job, worker) == []
        assert queue.take(MAX_LOSSES, is_only_worker=False) is job
    assert queue.retry(job, 1) == []
    single = queue.take(0, is_only_worker=False)
    assert single.indices == [3]
    assert queue.retry(single, 0) == [3]
    assert [queue.take(0, is_only_worker=False).indices for _ in range(2)] == [[5], [7]]


def test_queue_puts_jobs_back_in_their_order():
    """Jobs that a lost worker held come first again."""
    queue = JobQueue([Job([2])])
    queue.put_back([Job([0]), Job([1])])
    assert [queue.take(0, is_only_worker=False).indices for _ in range(3)] == [[0], [1], [2]]
