"""The doctor checks an ``npu:0`` that computes, and one that computes wrong values."""

import fake_npu
import pytest
import torch
from doctors import DEMO, found
from support import CLIP

from nemotron_npu.doctor.finding import Context
from nemotron_npu.encoder import Encoder

fake_npu.install()


@pytest.fixture(scope="module")
def contexts():
    """Without a device, and with a device and NeMo requested; the model is loaded once."""
    first = Context(demo=DEMO, clip=CLIP)
    second = Context("npu:0", engine="nemo", demo=DEMO, clip=CLIP)
    found("engine", first)
    second.reference = first.reference
    return first, second


def one(context, name):
    (finding,) = found(name, context)
    return finding.state, finding.found, finding.fix


def test_npu_is_the_default_and_gives_the_tokens_of_the_cpu(contexts):
    """The doctor finds the NPU by default, and that it gives the tokens of the CPU."""
    assert one(contexts[0], "torch_npu")[0] == "ok"
    assert one(contexts[0], "device")[:2] == ("ok", "npu:0: Ascend-fake (CPU)")
    state, text, _ = one(contexts[0], "forward pass")
    assert state == "ok" and "encoder of npu:0 (native) against the CPU" in text and "8 tokens equal" in text


def test_npu_with_wrong_or_no_numbers_is_a_problem(contexts, monkeypatch):
    """Wrong or NaN encoder output of the NPU is a problem with a fix."""
    step = Encoder.step
    for wrong in (0.5, float("nan")):

        def spoiled(self, features, state, ends, wrong=wrong):
            encoded = step(self, features, state, ends)
            return encoded + wrong if encoded.device.type == "npu" else encoded

        monkeypatch.setattr(Encoder, "step", spoiled)
        state, text, fix = one(contexts[0], "forward pass")
        assert state == "problem" and ("largest difference 0.5 (" in text or "nan" in text.lower())
        assert fix.startswith("python inference.py --device npu:0 --precision_compare")


def test_operator_that_the_npu_lacks_is_a_problem(contexts, monkeypatch):
    """An operator that the NPU lacks is a problem."""
    monkeypatch.setattr(fake_npu, "DENY", {"aten.mm", "aten.addmm", "aten.bmm"})
    state, text, _ = one(contexts[0], "forward pass")
    assert state == "problem" and text.startswith("fails on npu:0: ") and "not implemented on the npu" in text


def test_float64_and_stft_are_reported_and_only_nemo_needs_them(contexts, monkeypatch):
    """Missing float64 and stft are reported, and are a warning only with NeMo."""
    assert one(contexts[0], "arithmetic")[:2] == (
        "ok",
        "npu:0 lacks float64, which the native engine does not need",
    )
    monkeypatch.setattr(fake_npu, "DENY", {"aten._fft_r2c"})
    assert one(contexts[0], "arithmetic")[0] == "ok"
    state, text, fix = one(contexts[1], "arithmetic")
    assert state == "warning" and "lacks float64 and stft" in text and fix == "--engine native"


def test_memory_of_the_npu_that_is_too_small_is_a_problem(contexts, monkeypatch):
    """Too little free memory on the NPU is a problem with a fix."""
    monkeypatch.setattr(torch.npu, "mem_get_info", lambda device: (10**8, 64 * 10**9))
    device, host = found("memory", contexts[0])
    assert device.state == "problem" and "0.1 of 64.0 GB free on npu:0" in device.found
    assert device.fix.startswith("npu-smi info") and host.state == "ok"


def test_npu_that_does_not_exist_is_a_problem():
    """An NPU that does not exist is a problem whose fix names one that does."""
    state, text, fix = one(Context("npu:7", demo=DEMO), "device")
    assert state == "problem" and "npu:0 to npu:1" in text and fix == "python inference.py --device npu:0"


def test_missing_parts_around_a_working_npu_are_warnings(monkeypatch):
    """A missing driver, npu-smi or CANN is a warning where the NPU works."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("ASCEND_OPP_PATH", raising=False)
    context = Context("npu:0", demo=DEMO)
    assert one(context, "device")[0] == "ok"
    assert {one(context, name)[0] for name in ("driver", "NPUs", "CANN")} == {"warning"}
