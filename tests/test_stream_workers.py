"""Live streams over workers: they are spread, and end with the worker that transcribes them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time

import pytest
from support import CLIP, CLIP_WORDS, DEMO, INFERENCE, ROOT, processes, run_process


def test_streams_over_workers_equal_one_process(cli):
    """Files that are streamed by two workers give the documents of one process."""
    pytest.importorskip("ray")
    options = [CLIP, CLIP, CLIP, "--stream", "--device", "cpu", "--output_format", "jsonl", "--quiet"]
    workers = run_process(INFERENCE, *options, "--num_workers", 2)
    assert (workers.returncode, workers.stderr) == (0, "")
    documents = [[json.loads(line) for line in out.splitlines()] for out in (cli(*options)[1], workers.stdout)]
    assert len(documents[0]) == len(documents[1]) == 3
    tokens = [[[(token["id"], token["frame"]) for token in d["tokens"]] for d in run] for run in documents]
    assert tokens[0] == tokens[1] and documents[1][0]["text"] == CLIP_WORDS


# one of two workers is killed before its pool is opened; prints which pools are lost and which answer
KILLED = """
import pathlib, queue, sys
from nemotron_npu.cluster.driver import Workers
from nemotron_npu.cluster.worker import Setup
from nemotron_npu.engine import STREAM_DEFAULTS

told = queue.SimpleQueue()
with Workers(Setup(pathlib.Path(sys.argv[1]), "cpu", threads=1), 2, None, lambda message: None) as workers:
    while sum(member.is_loaded for member in workers._members) < 2:
        list(workers._next_events())
    workers._ray.kill(workers._members[0].actor)
    for pool in workers.pools(STREAM_DEFAULTS, 2, 0):
        pool.watch(told.put)
        pool.send([], told.put)
    for answer in sorted(str(told.get(timeout=30)) for _ in range(3)):
        print(answer)
"""


def test_pool_of_a_worker_that_has_just_died_tells_so():
    """The pool of a worker that has died before its first stream tells so at once, and the other one answers."""
    pytest.importorskip("ray")
    result = run_process("-c", KILLED, DEMO, cwd=ROOT)
    answer, *lost = result.stdout.splitlines()
    assert answer == "Answer(updates=[], is_busy=False)", result.stderr
    assert len(lost) == 2 and all(re.fullmatch(r"worker 1 on .*: its process died", line) for line in lost)


def test_streams_end_with_their_worker_and_others_go_on(start, tmp_path, pcm):
    """Pipes are spread over workers; when one is killed, its streams end with an event, and the others go on."""
    pytest.importorskip("ray")
    paths = [tmp_path / f"line{number}.fifo" for number in range(4)]
    for path in paths:
        os.mkfifo(path)
    options = ["--stream", "--raw", "--device", "cpu", "--num_workers", 2, "--output_format", "events"]
    run = start(*paths, *options)
    took: list[float] = []
    said = {path.stem: [] for path in paths}

    def listen(until) -> None:
        while not until():
            event = json.loads(run.stdout.readline())
            said[event["source"]].append(event)

    with contextlib.ExitStack() as stack:
        speakers = {path.stem: stack.enter_context(open(path, "wb", buffering=0)) for path in paths}
        for speaker in speakers.values():
            speaker.write(pcm)
        listen(lambda: all(any(event["type"] == "partial" for event in events) for events in said.values()))
        os.kill(processes(run.pid, "ray::Worker")[0], signal.SIGKILL)
        began, failed = time.monotonic(), []
        while len(failed) < 2:  # all pipes are silent: only the loss is an event
            event = json.loads(run.stdout.readline())
            said[event["source"]].append(event)
            if event["type"] == "error":
                assert re.search(r"fifo: lost with worker \d on .*: its process died", event["problem"])
                failed.append(event["source"])
        took.append(time.monotonic() - began)
        for name in set(said) - set(failed):
            speakers[name].write(pcm)
    assert took[0] < 3, took  # less than a second, where nothing else runs
    out, err = run.communicate(timeout=60)
    for line in out.splitlines():
        event = json.loads(line)
        said[event["source"]].append(event)
    assert run.returncode == 1 and err.count(b"lost with worker") == 2
    for name, events in said.items():
        assert events[-1]["type"] == ("error" if name in failed else "end")
        if name not in failed:
            assert events[-1]["text"].startswith(CLIP_WORDS) and events[-1]["text"].endswith(CLIP_WORDS)
            assert len(events[-1]["tokens"]) > 12
