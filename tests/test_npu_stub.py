"""The command line over the real torch_npu on a stub of CANN: ``npu_stub/over_stub.py`` tells what that shows.

The wheel of torch_npu that belongs to the installed torch is downloaded once, see ``npu_stub/build.py``.
"""

import collections
import json
import os
import re
import shutil
import subprocess

import pytest
from checkpoints import FULL_SIZE, make_random_checkpoint
from npu_stub import build
from npu_stub.kernels import kernels
from support import CLIP, CLIP_WORDS, DEMO, ROOT, make_once, run_process

RUNS = {
    "doctor": ["--doctor"],  # first: it forks, and NPUs cannot be used on both sides of a fork
    "demo": [],
    "stream": [CLIP, "--stream", "--endpoint_ms", 0],
    "batch of 3": [CLIP, CLIP, CLIP, "--batch_size", 3],
    "decoder on the NPU": ["--decoder_device", "npu:0"],
    "bfloat16": ["--dtype", "bfloat16"],
    "float16": ["--dtype", "float16"],
    "graph": [CLIP, "--stream", "--endpoint_ms", 0, "--chunk_ms", 160, "--graph", "on"],
    "no capture": [CLIP, "--stream", "--endpoint_ms", 0, "--chunk_ms", 160, "--graph", "on"],
    "capture that breaks off": [CLIP, "--stream", "--endpoint_ms", 0, "--chunk_ms", 160, "--graph", "on"],
    "boosting": ["--boost_words", "words.txt", "--boost_alpha", 8, "--decoder_device", "npu:0"],
    "tiny": [CLIP, "--model_path", "tiny.nemo"],
    "full width": [CLIP, "--model_path", "wide.nemo", "--stream", "--endpoint_ms", 0],
    "fused": [CLIP, "--stream", "--endpoint_ms", 0, "--npu_fused"],
    "fused, full width": [CLIP, "--model_path", "wide.nemo", "--stream", "--endpoint_ms", 0, "--npu_fused"],
    "fused bfloat16": [CLIP, "--stream", "--endpoint_ms", 0, "--npu_fused", "--dtype", "bfloat16"],
    "precision": ["--precision_compare"],
}
POOLS = [1, 8, 64]
"""Live streams of pools over the bundled model."""
ENVIRON = {"no capture": {"STUB_NO_CAPTURE": "begin"}, "capture that breaks off": {"STUB_NO_CAPTURE": "end"}}
REPORTS = {"doctor", "precision"}
TRANSCRIPTS = [name for name in RUNS if name not in REPORTS]
WORDS = dict.fromkeys(TRANSCRIPTS, [CLIP_WORDS])
WORDS["batch of 3"] = [f"{CLIP}: {CLIP_WORDS}"] * 3
ON_CPU = {"boosting": "boosting", "tiny": "tiny", "full width": "full width", "fused, full width": "full width"}
"""Runs whose words are those of a run on the CPU."""
DEVICE_TO_HOST = {"aten._to_copy.default", "aten.copy_.default", "aten._local_scalar_dense.default"}
"""Operators that may copy to the host; one that falls back to the CPU copies its inputs."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny):
    """The results of ``over_stub.py`` by the names in ``RUNS``, and of some on the CPU, made once in one process."""
    try:
        problem = build.missing()
        environment = None if problem else build.environment()
    except subprocess.CalledProcessError as error:
        problem = f"the stub of CANN cannot be built: {error}"
    if problem:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(problem)

    lines = {name: ["--device", "npu:0", *map(str, args)] for name, args in RUNS.items()}
    on_cpu = set(ON_CPU.values())
    lines |= {f"{name} on the CPU": [arg.replace("npu:0", "cpu") for arg in lines[name]] for name in on_cpu}

    def make(folder):
        (folder / "words.txt").write_text("three two\n")
        shutil.copy(tiny, folder / "tiny.nemo")
        make_random_checkpoint(folder / "wide.nemo", {**FULL_SIZE, "layers": 1})
        described = [{"args": args, "environ": ENVIRON.get(name, {})} for name, args in lines.items()]
        described += [{"pool": streams, "model": str(DEMO), "clip": str(CLIP)} for streams in POOLS]
        (folder / "runs.json").write_text(json.dumps(described))
        command = [ROOT / "tests" / "npu_stub" / "over_stub.py", "runs.json", "out.json"]
        result = run_process(*command, env=environment, cwd=folder)
        assert result.returncode == 0, result.stdout + result.stderr

    folder = make_once(tmp_path_factory, "npu_stub", make)
    names = [*lines, *(f"pool of {streams}" for streams in POOLS)]
    return dict(zip(names, json.loads((folder / "out.json").read_text()), strict=True))


def launches(run):
    """Yield (phase, operator, line of the stub's log, how often) of a run."""
    for phase, step in run["steps"].items():
        for operator, lines in step["operators"].items():
            for line, count in lines.items():
                yield phase, operator, line, count


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_words_are_right_and_alone_on_stdout(runs, name):
    """Each run ends well, and its stdout has the words and nothing of torch_npu's own."""
    run = runs[name]
    assert run["code"] == 0, run["stderr"]
    wanted = runs.get(f"{ON_CPU.get(name)} on the CPU")
    assert run["stdout"].splitlines() == (wanted["stdout"].splitlines() if wanted else WORDS[name]), run["stderr"]


def test_doctor_finds_torch_npu_and_misses_the_rest(runs):
    """--doctor warns of what the stub is without, and of nothing else; the NPU's tokens are the CPU's."""
    run = runs["doctor"]
    assert run["code"] == 1, run["stdout"] + run["stderr"]
    assert f"{build.torch_npu_version()}, for torch" in run["stdout"] and "8 tokens equal" in run["stdout"]
    found = dict(re.findall(r"^(?:warning|PROBLEM)  (\S+) +(.*)", run["stdout"], re.MULTILINE))
    assert set(found) - {"triton"} == {"CANN", "driver", "NPUs"}, run["stdout"]


def test_precision_compare_passes_and_reports_alone(runs):
    """--precision_compare passes with all tokens equal; torch_npu's warnings are not in its table."""
    run = runs["precision"]
    assert run["code"] == 0, run["stdout"] + run["stderr"]
    assert len(re.findall(r"^  Verdict +PASSED", run["stdout"], re.MULTILINE)) == 2
    assert re.search(r"^  tokens +8 of 8 equal", run["stdout"], re.MULTILINE)
    assert "arning" not in run["stdout"]


@pytest.mark.parametrize("name", [*TRANSCRIPTS, "precision"])
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
    assert re.search(r"--graph on: captured a step of 2 frames, \d+\.\d MB of device memory", runs["graph"]["stderr"])


@pytest.mark.parametrize("name", ENVIRON)
def test_capture_that_fails_is_one_line(runs, name):
    """Where CANN refuses a capture the run goes on eagerly, and one line tells why."""
    lines = [line for *_, line, _ in launches(runs[name])]
    assert "REPLAY" not in lines
    (line,) = [line for line in runs[name]["stderr"].splitlines() if "--graph on" in line]
    assert line.startswith("--graph on: capture failed: ") and line.endswith("(continuing without a graph)")


@pytest.mark.parametrize(
    "name, phase, most",
    [
        ("full width", "steady step of 14 frames, 1 slots", (41, 71)),
        ("stream", "steady step of 14 frames, 1 slots", (145, 235)),
        ("graph", "steady step of 2 frames, 1 slots", (148, 239)),
        ("demo", "step of 112 frames, 1 slots", (149, 253)),
        ("bfloat16", "step of 112 frames, 1 slots", (151, 255)),
        ("fused, full width", "steady step of 14 frames, 1 slots", (37, 61)),
        ("fused", "steady step of 14 frames, 1 slots", (125, 170)),
        ("fused bfloat16", "steady step of 14 frames, 1 slots", (107, 152)),
    ],
)
def test_step_launches_no_more_than_before(runs, name, phase, most):
    """A step of the encoder launches no more calls, and no more kernels, than written here: write what it does."""
    found = collections.Counter()
    for at, _, line, count in launches(runs[name]):
        if at == phase and line.startswith("LAUNCH"):
            found.update(calls=count, kernels=count * len(kernels(line)))
    steps = runs[name]["steps"][phase]["calls"]
    assert (found["calls"] / steps, found["kernels"] / steps) == most


def test_step_waits_once_for_the_device(runs):
    """A step of a stream takes its features there without waiting, and waits once for its output."""
    lines = collections.Counter()
    for phase, _, line, count in launches(runs["stream"]):
        is_mask = phase.startswith("step of") and line.startswith("COPY h2d async")  # of the first seconds
        if phase != "encoder's start" and not is_mask:
            lines[line.rpartition(" ")[0] if line.startswith("COPY") else line] += count
    steps = runs["stream"]["steps"]["decoder"]["calls"]
    waits = {line: count for line, count in lines.items() if line.startswith(("COPY", "SYNC"))}
    assert waits == {"COPY h2d async": steps, "COPY d2h sync": steps, "SYNC stream": steps}


@pytest.mark.parametrize("streams", POOLS)
def test_step_of_a_pool_costs_the_same_for_all_sizes(runs, streams):
    """A step of many streams launches 11 calls more than a step of one, 1.7 % at full size, and waits once as well."""
    run = runs[f"pool of {streams}"]
    assert run["stdout"].splitlines() == [CLIP_WORDS] * streams
    found = collections.Counter()
    for phase, _, line, count in launches(run):
        if phase == "step of a pool" and line.startswith(("LAUNCH", "SYNC")):
            found[line.split()[0]] += count
    steps = run["steps"]["step of a pool"]["calls"]
    first = 5 if streams > 1 else 0  # a state of so many slots is cleared once
    assert (found["LAUNCH"] - first, found["SYNC"]) == ((11 if streams > 1 else 0) * steps, steps)
    steady = run["steps"][f"steady step of 14 frames, {streams} slots"]
    encoder = sum(n for lines in steady["operators"].values() for line, n in lines.items() if line.startswith("LAUNCH"))
    assert encoder == 145 * steady["calls"] > 0  # what test_step_launches_no_more_than_before counts for one stream


@pytest.mark.parametrize(
    "line, wanted",
    [
        ("aclnnMm f32[14,3072]+430080 f32[1024,3072](1,1024) f32[14,1024]", ["MatMul"]),
        ("aclnnAddmm f32[2,8] f32[8,8] f32[2,8] f32[8]", ["MatMul"]),
        ("aclnnAddmm f32[2,8] f32[8,8] f32[2,8] f32[2,8]", ["MatMul", "Axpy"]),
        ("aclnnBatchMatMul f32[8,14,97] f32[8,128,97](41600,325,1)+114 f32[8,14,128](128,1024,1)+14336",
         ["Transpose", "Slice", "MatMul"]),
        ("aclnnBaddbmm f32[8,14,84] f32[8,128,84](384,1,3072)+215168 f32[8,14,128](128,1024,1) "
         "f32[8,14,84](1358,96,1)+13", ["AsStrided", "Muls", "Transpose", "Slice", "Transpose", "MatMul", "Axpy"]),
        ("aclnnGlu f32[14,1024]+8192 f32[14,2048]", ["SplitV", "Sigmoid", "Mul"]),
        ("aclnnInplaceCopy f32[14,8,128](128,1792,1) f32[14,8,128]", ["Transpose"]),
        ("aclnnInplaceCopy f32[1,8,1,1024]+14336 f32[1,8,1,1024]", ["TensorMove"]),
        ("aclnnInplaceZero f32[32,39,11](1232,11,1)+803", ["InplaceZero", "ViewCopy"]),
    ],
)  # fmt: skip
def test_kernels_follow_the_rules_of_cann(line, wanted):
    """Strided inputs are copied first, and what a kernel cannot do by itself is another one."""
    assert kernels(f"LAUNCH {line}") == wanted
