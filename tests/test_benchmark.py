"""``benchmark/``: what ``--benchmark`` measures, its table, report and plot."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import TINY_SIZE, make_random_checkpoint
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu.benchmark import effort, recordings, run, startup
from nemotron_npu.benchmark.machine import step_work
from nemotron_npu.benchmark.plot import plot_steps
from nemotron_npu.benchmark.results import Candidate, Rates, Start, Work
from nemotron_npu.benchmark.steps import steady_step
from nemotron_npu.benchmark.table import BUSY
from nemotron_npu.benchmark.timing import count_operators, measure_in_turn
from nemotron_npu.dtypes import instructions, left_out, offered_dtypes
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.host.resources import thread_seconds
from nemotron_npu.recognizer import Recognizer

CPU = torch.device("cpu")
DEMO = ROOT / "demo" / "demo.nemo"
SMALL = {"STARTS": 1, "ROUNDS": 3, "ROUND_SECONDS": 0, "OFFLINE_SECONDS": (2, 4), "MAX_NEMO_SECONDS": 2}
SMALL |= {"BATCH_SECONDS": 2}
NATIVE = ["--device", "cpu", "--engine", "native", "--dtype", "float32", "--quiet"]


@pytest.fixture
def small(monkeypatch):
    """Make runs few and short."""
    for name, value in SMALL.items():
        monkeypatch.setattr(effort, name, value)


@pytest.fixture
def unstarted(small, monkeypatch):
    """Start no processes: one test does."""
    monkeypatch.setattr(run, "measure_start", lambda *_: Start(2.0, 0.5, 0.5, 1e8, 1.0, 1))


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> SimpleNamespace:
    """Benchmark both engines in all dtypes: exit code, lines of stdout, and the folder of the report."""
    import inference

    folder = tmp_path_factory.mktemp("both")
    started: dict[str, Start] = {}
    measure_start = run.measure_start

    def once_an_engine(name: str, *rest):
        """Other dtypes take the times of the engine's first: a process takes seconds to start."""
        engine = name.split()[0]
        if engine not in started:
            started[engine] = measure_start(name, *rest)
        return started[engine]

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        for name, value in SMALL.items():
            patch.setattr(effort, name, value)
        patch.setattr(run, "measure_start", once_an_engine)
        code = inference.main([str(CLIP), "--device", "cpu", "--benchmark", "--quiet", "--report", str(folder)])
        out.flush()
    return SimpleNamespace(code=code, lines=out.buffer.getvalue().decode().splitlines(), folder=folder)


@pytest.fixture(scope="module")
def report(both) -> dict:
    return json.loads((both.folder / "benchmark.json").read_text())


def test_benchmark_table_has_a_column_for_each_candidate(both):
    """After the transcript comes a table with NeMo and each native dtype; notes name the dtypes left out."""
    first, *table = both.lines
    assert both.code == 0 and first == CLIP_WORDS
    engines, dtypes = next((line, below) for line, below in pairwise(table) if line.split()[0] == "nemo")
    assert engines.split() == ["nemo", *("native" for _ in offered_dtypes(CPU))]
    assert dtypes.split() == ["float32", *offered_dtypes(CPU)]
    assert max(map(len, table)) <= 80, table
    notes = [line for line in table if "is left out: " in line]
    assert [note.split()[0] for note in notes] == list(left_out(CPU))
    labels = ["start to first words", "peak memory", "forward pass of 1 s", "encoder step 80 ms", "live step 1120 ms"]
    for label in labels:
        assert any(label in line for line in table), label


def test_benchmark_json_has_every_figure(report):
    """Rates, starts, forward passes, steps and recordings of both engines are in benchmark.json."""
    figures = report["benchmark"]
    assert list(figures["left_out"]) == list(left_out(CPU))
    assert figures["rates"]["read_gb_s"] > 0 and figures["rates"]["gflop_s"].keys() == set(offered_dtypes(CPU))
    nemo, native, *_ = figures["candidates"]
    for row in (nemo, native):
        start = row["start"]
        assert start["total_s"] == pytest.approx(start["import_s"] + start["load_s"] + start["first_s"])
        assert 50e6 < start["peak_bytes"] < 3e9
        assert len(row["forward"]["runs"]) == 10
        assert min(row["forward"]["runs"]) <= row["forward"]["median"] <= row["forward"]["p95"] <= row["forward"]["max"]
        assert row["steps"].keys() == {"80", "160", "560", "1120"}
        assert all(0 < share < 1 for share in row["search_share"].values())
    assert (nemo["rtfx"].keys(), native["rtfx"].keys()) == ({"2"}, {"2", "4"})
    assert native["live"].keys() == native["steps"].keys() and not nemo["live"]
    assert report["environment"]["command"]


def test_recordings_that_would_take_minutes_are_left_out(monkeypatch):
    """On a slow machine the longer recordings and the batch are left out, each with a line."""
    monkeypatch.setattr(recordings, "measure_ms", lambda *args: 40_000.0)
    engine = SimpleNamespace(
        engine="native", device=CPU, decoder=SimpleNamespace(step=None), transcribe=lambda audio: None
    )
    candidate, lines = Candidate("native", "float32"), []
    recordings.measure_recordings(candidate, engine, np.zeros(16000, np.float32), None, lines.append)
    assert candidate.rtfx == {10: 0.25} and candidate.batch_rtfx is None
    assert lines == [
        "native float32: a recording of 60 s is left out: it would take 240 s",
        "native float32: the batch is left out: it would take 320 s",
    ]


def test_native_engine_takes_less_memory_and_fewer_operators(report):
    """The native engine's process is smaller than NeMo's, and its forward pass has half the operators."""
    nemo, native, *_ = report["benchmark"]["candidates"]
    assert native["start"]["peak_bytes"] < nemo["start"]["peak_bytes"], "of processes of their own"
    # from torch 2.14 on matrix products spare NeMo 36 copies
    largest = 0.5 if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14) else 0.6
    assert native["forward_operators"] <= largest * nemo["forward_operators"]


def test_benchmark_tells_instruction_sets_and_a_busy_machine(both, report):
    """The table names the CPU's instruction sets, and says so where other programs took the core."""
    figures = report["benchmark"]
    assert figures["instructions"] == instructions() and f"({instructions()})" in both.lines[1]
    assert 0 <= figures["waited"] < 1
    assert any("Other programs used the CPU" in line for line in both.lines) == (figures["waited"] > BUSY)


def test_a_thread_that_shares_its_core_waits():
    """A thread that shares a core with a busy process waits for it about as long as it runs."""
    if not any(thread_seconds()):
        pytest.skip("this kernel does not count the time that a thread waits")
    core = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, [{core}])\nprint(flush=True)\nwhile True: pass"
    mine = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout
            other.stdout.readline()
            os.sched_setaffinity(0, [core])
            ran, waited = thread_seconds()
            began = time.process_time()
            while time.process_time() - began < 0.3:
                pass
            ran, waited = (now - before for now, before in zip(thread_seconds(), (ran, waited), strict=True))
        finally:
            os.sched_setaffinity(0, mine)
            other.kill()
    assert ran >= 0.25 and waited > 0.2 * ran, (ran, waited)


def test_benchmark_plot_is_a_png(both):
    """--report writes the latency plot next to the figures."""
    assert (both.folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_plot_takes_any_name(tmp_path):
    """Dollars in a model's name are no formula, and escape codes no glyphs."""
    step = SimpleNamespace(median=2.0, p95=3.0)
    candidate = SimpleNamespace(name="native", steps={80: step}, live={})
    result = SimpleNamespace(candidates=[candidate], title="cpu $x_{$")
    plot_steps(result, "a$\\frac{$\x1b[2J\n.nemo", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_benchmark_uses_the_options_of_one_candidate(cli, unstarted, monkeypatch):
    """With --engine and --dtype there is one column; batch slots, block and chunk are those of the options."""
    seen, results = [], Recognizer.results

    def watched(self, sources, slots=1, *rest):
        seen.append((len(sources), slots, self.encoder.largest_block))
        return results(self, sources, slots, *rest)

    monkeypatch.setattr(Recognizer, "results", watched)
    options = ["--batch_size", 3, "--block_ms", 2240, "--chunk_ms", 560]
    code, out, _ = cli(CLIP, "--benchmark", *NATIVE, *options)
    assert code == 0 and re.search(r"\n +native\n +float32\n", out) and "in brackets" not in out
    assert (effort.BATCH, 3, 28) in seen


def test_switches_of_the_device_reach_the_commands(tmp_path):
    """What is switched on for the device, and the language, are in the commands of the processes that are started."""
    options = ModelOptions(dtype="float32", graph=True, npu_fused=True, allow_hf32=True, language="en-US")
    assert options.switches == ["--graph", "on", "--allow_hf32", "--npu_fused"]
    words = run.command_options(tmp_path, torch.device("cpu"), options)
    assert words[-6:] == ["--language", "en-US", *options.switches]
    assert ModelOptions().switches == []


def test_benchmark_of_a_model_that_cannot_stream_has_no_steps(cli, unstarted, tmp_path):
    """A checkpoint with full attention is measured on recordings only, and there is no plot."""
    path = tmp_path / "whole.nemo"
    whole = {"att_context_style": "regular", "att_context_size": [-1, -1]}
    make_random_checkpoint(path, TINY_SIZE, speak=False, encoder=whole)
    code, out, err = cli("--model_path", path, CLIP, "--benchmark", *NATIVE, "--report", tmp_path)
    assert code == 0 and "RTFx" in out and " step " not in out, err
    assert (tmp_path / "benchmark.json").exists() and not (tmp_path / "benchmark.png").exists()


def test_failing_candidate_gives_one_error_line(cli, small, monkeypatch):
    """The line of the process that failed is passed on with the candidate's name."""
    started = startup.command()
    monkeypatch.setattr(startup, "command", lambda: [*started, "no-such-file.wav"])
    code, _, err = cli("--benchmark", *NATIVE)
    assert code == 2 and len(err.splitlines()) == 1 and "no-such-file.wav" in err and "native float32" in err
    assert err.count("inference.py: ") == 1
    with pytest.raises(SetupError, match=r"no-such-file.wav.*\(--engine native measures without it\)$"):
        startup.measure_start("nemo float32", np.zeros(16_000, np.float32), ["--device", "cpu"])


def test_measure_in_turn_times_each_call_once_a_round():
    """Calls alternate, and more rounds are taken while there is time."""
    order = []
    calls = [lambda: order.append("a"), lambda: order.append("b") or time.sleep(0.002)]
    first, second = measure_in_turn(calls, CPU, 5)
    assert order == ["a", "b"] * 5 and len(first.runs) == len(second.runs) == 5
    assert second.median >= 2 > first.median and second.p95 <= second.max
    assert len(measure_in_turn(calls, CPU, 1, seconds=0.1)[0].runs) > 5


def test_step_work_is_that_of_the_products():
    """Bytes are about those of the weights, operations grow with the frames, and the bound is the slower of both."""
    recognizer = Recognizer(DEMO, CPU, options=ModelOptions(chunk_ms=560))
    work, twice = step_work(recognizer.encoder, 7), step_work(recognizer.encoder, 14)
    assert 0.7 * 4 * recognizer.parameters < work.bytes < 1.5 * 4 * recognizer.parameters
    assert twice.bytes < 1.1 * work.bytes and 1.9 * work.flop < twice.flop < 2.3 * work.flop
    if "int8" in offered_dtypes(CPU):
        small = Recognizer(DEMO, CPU, options=ModelOptions(chunk_ms=560, dtype="int8"))
        assert step_work(small.encoder, 7).bytes < 0.5 * work.bytes
    rates = Rates(10, {"float32": 100})
    assert Work(20_000_000, 1000).bound(rates, "float32") == 2 and Work(1, 300_000_000).bound(rates, "float32") == 3


def test_count_operators_counts_kernels_but_no_views():
    """Composite operators count by their parts, views do not, and a steady step always has the same number."""
    x = torch.ones(4, 4)
    assert count_operators(lambda: x.t()[1:]) == 0
    assert count_operators(lambda: torch.nn.functional.linear(x, x) + 1) == 2
    recognizer = Recognizer(DEMO, CPU, options=ModelOptions(chunk_ms=80))
    assert len({count_operators(steady_step(recognizer)) for _ in range(2)}) == 1


def test_command_is_that_of_this_process(monkeypatch):
    """Processes are started with Python's options and script as this one was; under pytest it is inference.py."""
    started = ["python", "-X", "utf8", "tests/fake_npu.py", "inference.py"]
    monkeypatch.setattr(sys, "orig_argv", [*started, "--benchmark", "talk.wav"])
    assert startup.command() == [sys.executable, *started[1:]]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest"])
    assert startup.command() == [sys.executable, str(Path(ROOT, "inference.py"))]
