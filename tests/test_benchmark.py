"""``--benchmark``: what is measured, and that it is measured."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch
from checkpoints import TINY_SIZE, make_random_checkpoint
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu.benchmark import measure
from nemotron_npu.benchmark.measure import Work, count_operators, in_turn, steady_step, step_work
from nemotron_npu.dtypes import left_out, offered_dtypes
from nemotron_npu.engine import ModelOptions
from nemotron_npu.recognizer import Recognizer

CPU = torch.device("cpu")
DEMO = ROOT / "demo" / "demo.nemo"


@pytest.fixture
def small(monkeypatch):
    """Few and short runs."""
    for name, value in dict(STARTS=1, ROUNDS=3, ROUND_SECONDS=0, OFFLINE_SECONDS=(2, 4), BATCH_SECONDS=2).items():
        monkeypatch.setattr(measure, name, value)
    monkeypatch.setattr(measure, "NEMO_SECONDS", 2)


def test_both_engines_and_all_dtypes_stand_side_by_side_in_the_table_the_report_and_the_plot(cli, small, tmp_path):
    code, out, _ = cli(CLIP, "--device", "cpu", "--benchmark", "--report", tmp_path)
    first, *table = out.splitlines()
    assert code == 0 and first == CLIP_WORDS
    names = ["nemo float32", *(f"native {dtype}" for dtype in offered_dtypes(CPU))]
    assert [name for name in names if name in table[2]] == names
    report = json.loads((tmp_path / "benchmark.json").read_text())
    figures = report["benchmark"]
    notes = [line for line in table if "is left out: " in line]
    assert [note.split()[0] for note in notes] == list(left_out(CPU)) == list(figures["left_out"])
    for label in (
        "from the shell",
        "peak memory",
        "forward pass of 1 s",
        "encoder step of 80 ms",
        "live step of 1120 ms",
    ):
        assert any(label in line for line in table), label
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
    assert native["start"]["peak_bytes"] < nemo["start"]["peak_bytes"], "of processes of their own"
    # from torch 2.14 on matrix products spare NeMo 36 copies
    most = 0.5 if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14) else 0.6
    assert native["forward_operators"] <= most * nemo["forward_operators"]
    assert (nemo["rtfx"].keys(), native["rtfx"].keys()) == ({"2"}, {"2", "4"})
    assert native["live"].keys() == native["steps"].keys() and not nemo["live"]
    assert report["environment"]["command"]
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_one_engine_and_one_dtype_can_be_measured_alone(cli, small):
    code, out, _ = cli("--device", "cpu", "--benchmark", "--engine", "native", "--dtype", "float32", "--quiet")
    assert code == 0 and "native float32" in out and "nemo float32" not in out and "int8" not in out


def test_a_checkpoint_that_cannot_stream_is_measured_without_steps(cli, small, tmp_path):
    path = tmp_path / "whole.nemo"
    whole = {"att_context_style": "regular", "att_context_size": [-1, -1]}
    make_random_checkpoint(path, TINY_SIZE, speak=False, encoder=whole)
    options = ["--device", "cpu", "--engine", "native", "--dtype", "float32", "--quiet"]
    code, out, err = cli("--model_path", path, CLIP, "--benchmark", *options, "--report", tmp_path)
    assert code == 0 and "RTFx" in out and "step of" not in out, err
    assert (tmp_path / "benchmark.json").exists() and not (tmp_path / "benchmark.png").exists()


def test_slots_and_blocks_are_those_asked_for(cli, small, monkeypatch):
    seen, results = [], Recognizer.results

    def watched(self, sources, slots=1, *rest):
        seen.append((len(sources), slots, self.encoder.largest_block))
        return results(self, sources, slots, *rest)

    monkeypatch.setattr(Recognizer, "results", watched)
    options = ["--engine", "native", "--dtype", "float32", "--device", "cpu", "--quiet"]
    assert cli(CLIP, "--benchmark", *options, "--batch_size", 3, "--block_ms", 2240, "--chunk_ms", 560)[0] == 0
    assert (measure.BATCH, 3, 28) in seen


def test_a_candidate_that_fails_is_one_line(cli, small, monkeypatch):
    started = measure.command()
    monkeypatch.setattr(measure, "command", lambda: [*started, "no-such-file.wav"])
    code, _, err = cli("--device", "cpu", "--benchmark", "--engine", "native", "--dtype", "float32", "--quiet")
    assert code == 2 and len(err.splitlines()) == 1 and "no-such-file.wav" in err and "native float32" in err


def test_every_round_times_each_call_once_and_more_rounds_are_taken_while_there_is_time():
    order = []
    calls = [lambda: order.append("a"), lambda: order.append("b") or time.sleep(0.002)]
    first, second = in_turn(calls, CPU, 5)
    assert order == ["a", "b"] * 5 and len(first.runs) == len(second.runs) == 5
    assert second.median >= 2 > first.median and second.p95 <= second.max
    assert len(in_turn(calls, CPU, 1, seconds=0.1)[0].runs) > 5


def test_the_work_of_a_step_is_that_of_its_products():
    recognizer = Recognizer(DEMO, CPU, options=ModelOptions(chunk_ms=560))
    work, twice = step_work(recognizer.encoder, 7), step_work(recognizer.encoder, 14)
    assert 0.7 * 4 * recognizer.parameters < work.bytes < 1.5 * 4 * recognizer.parameters
    assert twice.bytes < 1.1 * work.bytes and 1.9 * work.flop < twice.flop < 2.3 * work.flop
    if "int8" in offered_dtypes(CPU):
        assert (
            step_work(Recognizer(DEMO, CPU, options=ModelOptions(chunk_ms=560, dtype="int8")).encoder, 7).bytes
            < 0.5 * work.bytes
        )
    rates = {"read_gb_s": 10, "gflop_s": {"float32": 100}}
    assert Work(20_000_000, 1000).bound(rates, "float32") == 2 and Work(1, 300_000_000).bound(rates, "float32") == 3


def test_operators_are_counted_by_what_reaches_the_kernels_and_views_are_not():
    x = torch.ones(4, 4)
    assert count_operators(lambda: x.t()[1:]) == 0
    assert count_operators(lambda: torch.nn.functional.linear(x, x) + 1) == 2
    counts = {count_operators(steady_step(Recognizer(DEMO, CPU, options=ModelOptions(chunk_ms=80)))) for _ in range(2)}
    assert len(counts) == 1


def test_processes_are_started_as_this_one_was(monkeypatch):
    started = ["python", "-X", "utf8", "tests/fake_npu.py", "inference.py"]
    monkeypatch.setattr(sys, "orig_argv", [*started, "--benchmark", "talk.wav"])
    assert measure.command() == [sys.executable, *started[1:]]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest"])
    assert measure.command() == [sys.executable, str(ROOT / "inference.py")]
