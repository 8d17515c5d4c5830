"""``--doctor`` where there is an ``npu:0`` that computes, and where it computes wrong."""

import fake_npu
import pytest
import torch
from support import CLIP, ROOT

from nemotron_npu.doctor.host import Host
from nemotron_npu.doctor.run import check
from nemotron_npu.encoder import Encoder

fake_npu.install()

DEMO = ROOT / "demo" / "demo.nemo"


@pytest.fixture(scope="module")
def hosts():
    """Without and with a device that was asked for, and one with NeMo; the model is loaded once."""
    first, *others = (Host(device, engine=e, demo=DEMO, clip=CLIP) for device, e in [(None, None), ("npu:0", "nemo")])
    check(first, "engine")
    for host in others:
        host._reference = first._reference
    return first, *others


def one(host, name):
    (finding,) = check(host, name)["findings"]
    return finding["state"], finding["found"], finding["mend"]


def test_the_npu_is_the_default_and_gives_the_cpus_tokens(hosts):
    assert one(hosts[0], "torch_npu")[0] == "ok"
    assert one(hosts[0], "device")[:2] == ("ok", "npu:0: Ascend-fake (CPU)")
    state, found, _ = one(hosts[0], "forward pass")
    assert state == "ok" and "encoder of npu:0 (native) against the CPU" in found and "8 tokens equal" in found


def test_an_npu_that_computes_wrong_or_no_numbers_is_a_problem(hosts, monkeypatch):
    step = Encoder.step
    for wrong in (0.5, float("nan")):

        def spoiled(self, features, state, ends, wrong=wrong):
            encoded = step(self, features, state, ends)
            return encoded + wrong if encoded.device.type == "npu" else encoded

        monkeypatch.setattr(Encoder, "step", spoiled)
        state, found, mend = one(hosts[0], "forward pass")
        assert state == "problem" and ("60 %" in found or "nan" in found.lower())
        assert mend.startswith("python inference.py --device npu:0 --precision_compare")


def test_an_operator_that_the_npu_lacks_is_a_problem(hosts, monkeypatch):
    monkeypatch.setattr(fake_npu, "DENY", {"aten.mm", "aten.addmm", "aten.bmm"})
    state, found, _ = one(hosts[0], "forward pass")
    assert state == "problem" and found.startswith("fails on npu:0: ") and "not implemented on the npu" in found


def test_float64_and_stft_are_told_and_matter_to_nemo_alone(hosts, monkeypatch):
    assert one(hosts[0], "arithmetic")[:2] == (
        "ok",
        "npu:0 has stft, but no float64, which the native engine does without",
    )
    monkeypatch.setattr(fake_npu, "DENY", {"aten._fft_r2c"})
    assert one(hosts[0], "arithmetic")[0] == "ok"
    state, found, mend = one(hosts[1], "arithmetic")
    assert state == "warning" and "no float64 and stft" in found and mend == "--engine native"


def test_too_little_memory_on_the_npu(hosts, monkeypatch):
    monkeypatch.setattr(torch.npu, "mem_get_info", lambda device: (10**8, 64 * 10**9))
    device, host = check(hosts[0], "memory")["findings"]
    assert device["state"] == "problem" and "0.1 of 64.0 GB free on npu:0" in device["found"]
    assert device["mend"].startswith("npu-smi info") and host["state"] == "ok"


def test_an_npu_that_does_not_exist():
    state, found, mend = one(Host("npu:7", demo=DEMO), "device")
    assert state == "problem" and "npu:0 to npu:1" in found and mend == "python inference.py --device npu:0"


def test_what_is_missing_around_an_npu_that_works_is_a_warning(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("ASCEND_OPP_PATH", raising=False)
    host = Host("npu:0", demo=DEMO)
    assert {one(host, name)[0] for name in ("driver", "NPUs", "CANN")} == {"warning"}
