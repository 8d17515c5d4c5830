"""The device is chosen or refused with one clear line."""

import sys
import types

import pytest
import torch

from nemotron_npu.device import choose_device, device_name, peak_memory
from nemotron_npu.errors import SetupError


@pytest.fixture
def torch_npu_without_cann(monkeypatch, tmp_path):
    """A torch_npu that fails as the real one does where CANN's libraries cannot be found."""
    package = tmp_path / "torch_npu"
    package.mkdir()
    error = "libhccl.so: cannot open shared object file: No such file or directory"
    (package / "__init__.py").write_text(f"raise ImportError({error!r})")
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_cpu_is_always_available():
    """The CPU can always be chosen."""
    assert choose_device("cpu") == (torch.device("cpu"), None)
    assert device_name(torch.device("cpu")) == "cpu"


def test_default_device_without_any_npu_is_the_cpu(no_torch_npu, monkeypatch):
    """Where nothing of Ascend is seen, the CPU needs no reason."""
    monkeypatch.setattr("nemotron_npu.device.ascend.is_here", lambda: False)
    monkeypatch.setattr("nemotron_npu.device.ascend.find_cann", lambda: None)
    monkeypatch.delenv("ASCEND_OPP_PATH", raising=False)
    assert choose_device(None) == (torch.device("cpu"), None)


@pytest.mark.parametrize("sign", ["CANN", "its settings", "an NPU"])
def test_default_device_on_an_ascend_host_has_a_reason(no_torch_npu, monkeypatch, tmp_path, sign):
    """Without torch_npu the default device is the CPU, with the reason where an NPU or CANN is seen."""
    if sign == "CANN":
        (tmp_path / "set_env.sh").touch()
        monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    elif sign == "its settings":
        monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path))
    else:
        (tmp_path / "davinci0").touch()
        monkeypatch.setattr("nemotron_npu.host.ascend.DEVICES", tmp_path)
    device, reason = choose_device(None)
    assert device == torch.device("cpu") and "torch_npu is not installed" in reason


def test_requested_npu_is_never_replaced_by_the_cpu(no_torch_npu):
    """An NPU that the user requests and that cannot be used is an error."""
    with pytest.raises(SetupError, match="npu:0: torch_npu is not installed"):
        choose_device("npu:0")


def test_npu_without_cann_hints_at_set_env_sh(torch_npu_without_cann):
    """Where CANN's libraries are missing, the hint is to source its set_env.sh."""
    with pytest.raises(SetupError, match=r"libhccl.so.*source /usr/local/Ascend/ascend-toolkit/set_env.sh"):
        choose_device("npu:0")
    device, reason = choose_device(None)
    assert device == torch.device("cpu") and "set_env.sh" in reason


def test_failing_driver_is_an_error_line(monkeypatch):
    """A driver error of several lines becomes an error of one line."""

    def fail():
        raise RuntimeError("drvGetDevNum failed\nERR99999 UNKNOWN application exception")

    npu = types.SimpleNamespace(is_available=fail, device_count=lambda: 1)
    monkeypatch.setitem(sys.modules, "torch_npu", types.ModuleType("torch_npu"))
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    with pytest.raises(SetupError) as caught:
        choose_device("npu:0")
    assert "drvGetDevNum failed" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU")
def test_missing_gpu_is_a_setup_error():
    """A GPU that this host lacks is an error that names the device."""
    with pytest.raises(SetupError, match="cuda:0: torch"):
        choose_device("cuda:0")


@pytest.mark.parametrize("name", ["tpu", "npu:", "npu:x", "cpu:0", "npu0", ""])
def test_unknown_device_name_is_a_setup_error(name):
    """A name that is no device is an error."""
    with pytest.raises(SetupError, match="no such device"):
        choose_device(name)


def test_peak_memory_on_the_cpu_is_that_of_this_process():
    """The peak memory on the CPU is that of this process."""
    assert peak_memory(torch.device("cpu"))["host"] > 50 * 2**20
