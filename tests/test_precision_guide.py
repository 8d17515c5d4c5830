"""The comparison of the reference guide: preprocessor and encoder of one signal."""

import numpy as np
import pytest

from nemotron_npu.audio import sine
from nemotron_npu.engine import ModelOptions
from nemotron_npu.precision.guide import compare_signal, format_signal
from nemotron_npu.recognizer import load_recognizer

CHUNKS = [80, 160, 560, 1120]


class Spoiled:
    """A recognizer whose encoder output is changed by ``spoil`` on its way out."""

    def __init__(self, recognizer, spoil):
        self.recognizer, self.spoil, self.device = recognizer, spoil, recognizer.device
        self.preprocess = recognizer.preprocess

    def encode(self, features, lengths):
        encoded, frames = self.recognizer.encode(features, lengths)
        return self.spoil(encoded.clone()), frames


@pytest.mark.parametrize("engine", ["native", "nemo"])
def test_two_instances_agree_to_the_last_bit(tiny, tiny_native, tiny_nemo, engine):
    """Two instances of an engine give the same bits, also after one has transcribed.

    NeMo's own ``transcribe`` leaves its modules in training mode.
    """
    one, other = (
        load_recognizer(tiny, "cpu", options=ModelOptions(engine)),
        {"native": tiny_native, "nemo": tiny_nemo}[engine],
    )
    fresh = compare_signal(one, other, sine())
    assert fresh.passed and fresh.encoder.max_error == fresh.preprocessor.max_error == 0
    assert fresh.features_shape == [1, 128, 101]
    assert fresh.encoded_shape == [1, 64, 14]
    assert fresh.device_range == fresh.cpu_range
    one.transcribe([sine()])
    assert compare_signal(one, other, sine()).encoder.max_error == 0


@pytest.mark.parametrize("chunk_ms", CHUNKS)
def test_native_engine_passes_against_nemo(tiny_native, tiny_nemo, chunk_ms, clip):
    """Sine and speech pass with errors far below the threshold, at every chunk length."""
    native = tiny_native.at_chunk(chunk_ms)
    default = tiny_nemo.chunk_ms
    tiny_nemo.at_chunk(chunk_ms)
    try:
        for waveform in (sine(), clip):
            found = compare_signal(native, tiny_nemo, waveform)
            assert found.passed and found.encoder.max_error < 1e-4 and found.preprocessor.max_error < 1e-3
            assert found.cpu_against_cpu.max_error == 0
    finally:
        tiny_nemo.at_chunk(default)


def test_an_error_above_the_threshold_fails(tiny_native):
    """2 % of relative error fail, 0.5 % pass."""
    wrong = compare_signal(Spoiled(tiny_native, lambda x: x * 1.02), tiny_native, sine())
    assert not wrong.passed and wrong.encoder.relative_error_percent == pytest.approx(2, rel=1e-3)
    assert "FAILED: relative error 2.0" in format_signal(wrong, "sine", "npu:0")
    close = compare_signal(Spoiled(tiny_native, lambda x: x * 1.005), tiny_native, sine())
    assert close.passed and "PASSED (< 1 %)" in format_signal(close, "sine", "npu:0")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_fails(tiny_native, value):
    """One NaN or infinity in the encoder output fails, whatever the error."""

    def spoil(encoded):
        encoded[0, 0, 3] = value
        return encoded

    found = compare_signal(Spoiled(tiny_native, spoil), tiny_native, sine())
    assert found.failures == ["encoder output is not finite"]


def test_a_cpu_that_differs_from_itself_fails(tiny_native):
    """The comparison means nothing when two runs on the CPU differ."""
    drift = iter(np.linspace(0, 1e-7, 4))
    unsteady = Spoiled(tiny_native, lambda x: x + float(next(drift)))
    found = compare_signal(tiny_native, unsteady, sine())
    assert not found.passed and "two runs on the CPU differ" in found.failures[0]


def test_table_has_the_rows_of_the_reference_guide(tiny_native):
    """The labels and their order are those of the guide's table."""
    table = format_signal(compare_signal(tiny_native, tiny_native, sine()), "1 s sine", "npu:0")
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
