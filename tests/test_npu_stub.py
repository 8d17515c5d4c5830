"""The command line over the real torch_npu on a stub of CANN: ``npu_stub/over_stub.py`` tells what that shows.

The wheel of torch_npu that belongs to the installed torch is downloaded once, see ``npu_stub/build.py``.
"""

import json
import os
import re
import subprocess

import pytest
from npu_stub import build
from support import CLIP, CLIP_WORDS, ROOT, make_once, run_process

RUNS = {
    "demo": [],
    "stream": [CLIP, "--stream"],
    "batch of 3": [CLIP, CLIP, CLIP, "--batch_size", 3],
    "decoder on the NPU": ["--decoder_device", "npu:0"],
    "bfloat16": ["--dtype", "bfloat16"],
    "float16": ["--dtype", "float16"],
    "graph": [CLIP, "--stream", "--chunk_ms", 160, "--graph", "on"],
}
WORDS = dict.fromkeys(RUNS, [CLIP_WORDS])
WORDS["batch of 3"] = [f"{CLIP}: {CLIP_WORDS}"] * 3
DEVICE_TO_HOST = {"aten._to_copy.default", "aten.copy_.default", "aten._local_scalar_dense.default"}
"""Operators that may copy to the host; one that falls back to the CPU copies its inputs."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The results of ``over_stub.py`` by the names in ``RUNS``, made once in one process."""
    try:
        problem = build.missing()
        environment = None if problem else build.environment()
    except subprocess.CalledProcessError as error:
        problem = f"the stub of CANN cannot be built: {error}"
    if problem:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(problem)

    def make(folder):
        args = [["--device", "npu:0", *map(str, args)] for args in RUNS.values()]
        (folder / "runs.json").write_text(json.dumps([{"args": each} for each in args]))
        command = [ROOT / "tests" / "npu_stub" / "over_stub.py", folder / "runs.json", folder / "out.json"]
        result = run_process(*command, env=environment)
        assert result.returncode == 0, result.stdout + result.stderr

    folder = make_once(tmp_path_factory, "npu_stub", make)
    return dict(zip(RUNS, json.loads((folder / "out.json").read_text()), strict=True))


def launches(run):
    """Yield (phase, operator, line of the stub's log, how often) of a run."""
    for phase, step in run["steps"].items():
        for operator, lines in step["operators"].items():
            for line, count in lines.items():
                yield phase, operator, line, count


@pytest.mark.parametrize("name", RUNS)
def test_words_are_right_and_alone_on_stdout(runs, name):
    """Each run ends well, and its stdout has the words and nothing of torch_npu's own."""
    run = runs[name]
    assert run["code"] == 0, run["stderr"]
    assert run["stdout"].splitlines() == WORDS[name], run["stderr"]


@pytest.mark.parametrize("name", RUNS)
def test_operators_are_native_kernels_without_float64(runs, name):
    """No operator falls back to the CPU, takes the legacy interface, or has a tensor of float64."""
    found = list(launches(runs[name]))
    assert sum(count for *_, line, count in found if line.startswith("LAUNCH")) > 100
    for phase, operator, line, _ in found:
        assert "fall back" not in line and not line.startswith("ACLOP"), (phase, operator, line)
        assert not re.search(r" f64\[", line), (phase, operator, line)
        assert not line.startswith("COPY d2h") or operator in DEVICE_TO_HOST, (phase, operator, line)


def test_graph_is_captured_and_replayed(runs):
    """--graph on captures a steady step once, in the mode thread_local (1), and replays it from then on."""
    lines = [line for *_, line, count in launches(runs["graph"]) for _ in range(count)]
    captured = [line for line in lines if line.startswith("CAPTURE")]
    steady = sum(step["calls"] for phase, step in runs["graph"]["steps"].items() if phase.startswith("steady"))
    assert (captured, steady) == (["CAPTURE 1"], 2)  # an eager step, and the captured one
    assert lines.count("REPLAY") == 7


@pytest.mark.parametrize(
    "name, phase, most",
    [
        ("stream", "steady step of 14 frames, 1 slots", 145),
        ("graph", "steady step of 2 frames, 1 slots", 148),
        ("demo", "step of 112 frames, 1 slots", 165),
        ("bfloat16", "step of 112 frames, 1 slots", 167),
    ],
)
def test_step_launches_no_more_than_before(runs, name, phase, most):
    """A step of the encoder launches as few operators as it did; fewer are to be written here."""
    step = runs[name]["steps"][phase]
    found = sum(count for at, _, line, count in launches(runs[name]) if at == phase and line.startswith("LAUNCH"))
    assert found / step["calls"] == most
