"""The comparison measures what it says, and fails when it should."""

import numpy as np
import pytest
import torch
from support import CLIP

from nemotron_npu.audio import read_audio, sine
from nemotron_npu.precision import compare, difference, to_table
from nemotron_npu.recognizer import load_recognizer

CPU = torch.device("cpu")


class Spoiled:
    """A recognizer whose encoder output is changed by ``spoil`` on its way out."""

    def __init__(self, recognizer, spoil):
        self.recognizer, self.spoil, self.device = recognizer, spoil, recognizer.device
        self.preprocess = recognizer.preprocess

    def encode(self, features, lengths):
        encoded, frames = self.recognizer.encode(features, lengths)
        return self.spoil(encoded.clone()), frames


@pytest.fixture(scope="module")
def recognizer(tiny):
    return load_recognizer(tiny, CPU)


@pytest.fixture(scope="module")
def nemo(tiny):
    return load_recognizer(tiny, CPU, engine="nemo")


def test_the_figures_are_those_of_their_formulas():
    a, b = torch.tensor([1.0, 2.0, -3.0, 4.0]), torch.tensor([1.0, 2.5, -3.0, 3.0])
    d = difference(a, b)
    assert d.mae == pytest.approx(1.5 / 4) and d.mse == pytest.approx(1.25 / 4) and d.max_error == 1.0
    assert d.relative_error_percent == pytest.approx(100 * 1.5 / 9.5)


def test_two_silent_outputs_are_equal_and_an_error_on_silence_is_infinite():
    zero = torch.zeros(3)
    assert difference(zero, zero).relative_error_percent == 0
    assert difference(zero + 1, zero).relative_error_percent == float("inf")


def test_outputs_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        difference(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("engine", ["native", "nemo"])
def test_independent_instances_on_the_cpu_agree_to_the_last_bit(tiny, engine):
    comparison = compare(load_recognizer(tiny, CPU, engine=engine), load_recognizer(tiny, CPU, engine=engine), sine())
    assert comparison.passed
    assert comparison.encoder.max_error == comparison.preprocessor.max_error == 0
    assert comparison.features_shape == [1, 128, 101]
    assert comparison.encoded_shape == [1, 64, 14]
    assert comparison.device_range == comparison.cpu_range


@pytest.mark.parametrize("engine", ["native", "nemo"])
def test_they_still_agree_after_one_has_transcribed(tiny, recognizer, nemo, engine):
    used = load_recognizer(tiny, CPU, engine=engine)
    used.transcribe([sine()])  # NeMo's transcribe() leaves its modules in training mode
    assert compare(used, {"native": recognizer, "nemo": nemo}[engine], sine()).encoder.max_error == 0


@pytest.mark.parametrize("chunk_ms", [80, 160, 560, 1120])
def test_the_native_engine_passes_against_nemo(tiny, chunk_ms):
    native, nemo = (load_recognizer(tiny, CPU, chunk_ms, engine) for engine in ("native", "nemo"))
    for waveform in (sine(), read_audio(str(CLIP))):
        comparison = compare(native, nemo, waveform)
        assert comparison.passed and comparison.encoder.max_error < 1e-4 and comparison.preprocessor.max_error < 1e-3
        assert comparison.cpu_against_cpu.max_error == 0


def test_an_error_of_two_percent_fails_and_one_of_half_a_percent_passes(recognizer):
    wrong = compare(Spoiled(recognizer, lambda x: x * 1.02), recognizer, sine())
    assert not wrong.passed and wrong.encoder.relative_error_percent == pytest.approx(2, rel=1e-3)
    assert "FAILED: relative error 2.0" in to_table(wrong, "sine", "npu:0")
    close = compare(Spoiled(recognizer, lambda x: x * 1.005), recognizer, sine())
    assert close.passed and "PASSED (< 1 %)" in to_table(close, "sine", "npu:0")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_fails(recognizer, value):
    def spoil(encoded):
        encoded[0, 0, 3] = value
        return encoded

    comparison = compare(Spoiled(recognizer, spoil), recognizer, sine())
    assert comparison.failures == ["encoder output is not finite"]


def test_a_cpu_that_disagrees_with_itself_makes_the_method_worthless(recognizer):
    drift = iter(np.linspace(0, 1e-7, 4))
    unsteady = Spoiled(recognizer, lambda x: x + float(next(drift)))
    comparison = compare(recognizer, unsteady, sine())
    assert not comparison.passed and "two runs on the CPU differ" in comparison.failures[0]


def test_the_table_has_the_rows_of_the_write_up(recognizer):
    table = to_table(compare(recognizer, recognizer, sine()), "1 s sine", "npu:0")
    labels = [line.strip().split("  ")[0] for line in table.splitlines()[1:]]
    assert labels == [
        "Preprocessor MAE",
        "Preprocessor Max Error",
        "Encoder MSE",
        "Encoder MAE",
        "Max Absolute Error",
        "Relative Error",
        "Output range, npu:0",
        "Output range, cpu",
        "cpu against cpu",
        "Verdict",
    ]
