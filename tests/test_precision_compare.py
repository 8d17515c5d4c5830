"""A correct engine passes: every stage, token and word, at all chunk lengths and in every dtype."""

import json

import numpy as np
import pytest
from support import DEMO

from nemotron_npu.device import choose_device
from nemotron_npu.dtypes import offered_dtypes
from nemotron_npu.engine import ModelOptions
from nemotron_npu.formats import dump
from nemotron_npu.precision.compare import Precision
from nemotron_npu.precision.summary import format_precision
from nemotron_npu.precision.tolerances import TOLERANCES
from nemotron_npu.recognizer import load_recognizer

CPU, _ = choose_device("cpu")
CHUNKS = [80, 160, 560, 1120]
CANDIDATE = {"device": "cpu", "engine": "native", "dtype": "float32"}


def test_every_stage_token_and_word_passes(comparison):
    """All stages of the bundled clip stay under 0.001 %, and all tokens and words are equal, at all chunk lengths."""
    assert comparison.passed and comparison.failures == []
    assert list(comparison.totals) == ["recording", *(f"stream, {ms} ms" for ms in CHUNKS)]
    for name, total in comparison.totals.items():
        assert total.decisions.token_errors == total.decisions.word_errors == total.decisions.undecided == 0
        assert total.decisions.reference_tokens == 8 and total.decisions.safety > 100
        for stages in (total.accumulated, total.alone):
            for stage, tally in stages.tallies.items():
                assert tally.elements and tally.percent < 1e-3, (name, stage)
    assert {"log-mel", "subsampling", "layer 0", "layer 4", "encoder output", "prediction network", "joint"} <= set(
        comparison.totals["recording"].accumulated.tallies
    )
    caches = set(comparison.totals["stream, 80 ms"].accumulated.tallies)
    assert {f"{cache} of layer {i}" for cache in ("keys", "values", "convolution cache") for i in range(5)} <= caches


def test_both_sides_repeat_the_same_bits(comparison):
    """Two runs of each side on the same input agree to the last bit."""
    recording = comparison.totals["recording"]
    for repeat in (recording.candidate_repeat, recording.reference_repeat):
        assert repeat.max_error == 0 and repeat.stage is None


def test_words_are_compared_with_the_spoken_text(comparison):
    """A recording with a reference text counts the candidate's word errors against it."""
    decisions = comparison.totals["recording"].decisions
    assert (decisions.written_words, decisions.candidate_written_errors) == (8, 0)
    assert (decisions.transcript_words, decisions.candidate_transcript_errors) == (1, 0)  # normalized: 31415926


def test_nemo_against_nemo_is_equal_to_the_last_bit(tiny, clip):
    """Two instances of NeMo agree in every stage."""
    candidate, reference = (load_recognizer(tiny, CPU, options=ModelOptions("nemo")) for _ in range(2))
    precision = Precision(candidate, reference, chunk_ms=560)
    precision.add_recording("clip", clip)
    assert precision.passed
    for total in precision.totals.values():
        assert total.decisions.reference_tokens > 10 and total.decisions.largest_error == 0
        assert all(tally.max_error == 0 for s in (total.accumulated, total.alone) for tally in s.tallies.values())


@pytest.mark.parametrize("samples", [0, 100, 700])
def test_a_recording_without_a_frame_or_decision_passes(demo_native, demo_nemo, samples):
    """Recordings too short for a frame, or for a token, are equal, in JSON and in the table."""
    precision = Precision(demo_native, demo_nemo, chunk_ms=80)
    assert precision.add_recording("short", np.zeros(samples, np.float32)).passed
    json.loads(dump(precision.as_dict({}, {})))
    assert "PASSED" in format_precision(precision, CANDIDATE)


def test_a_checkpoint_that_cannot_stream_is_compared_whole(tmp_path, clip):
    """A model with unlimited attention has no streams to compare."""
    from checkpoints import TINY_SIZE, make_random_checkpoint

    path = tmp_path / "whole.nemo"
    make_random_checkpoint(path, TINY_SIZE, encoder={"att_context_style": "regular", "att_context_size": [-1, -1]})
    precision = Precision(load_recognizer(path, CPU), load_recognizer(path, CPU, options=ModelOptions("nemo")))
    assert precision.add_recording("clip", clip).passed and list(precision.totals) == ["recording"]


@pytest.mark.parametrize("dtype", [dtype for dtype in offered_dtypes(CPU) if dtype != "float32"])
def test_a_smaller_dtype_has_its_own_tolerances(demo_nemo, clip, dtype):
    """A smaller dtype passes its own tolerances, and fails those of float32."""
    precision = Precision(load_recognizer(DEMO, CPU, options=ModelOptions(dtype=dtype)), demo_nemo, chunk_ms=1120)
    precision.add_recording("digits.wav", clip)
    assert precision.passed, precision.failures
    assert precision.totals["recording"].accumulated["encoder output"].percent > 0.05
    strict = Precision(precision.candidate, demo_nemo, tolerances=TOLERANCES["float32"], chunk_ms=1120)
    strict.add_recording("digits.wav", clip[:16000])
    assert not strict.passed
