"""The fake device runs a module end to end, and refuses what the real device refuses."""

import copy
import io

import fake_npu
import numpy as np
import pytest
import torch

fake_npu.install()
NPU = torch.device("npu:0")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(400, periodic=False))
        self.conv = torch.nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.bn = torch.nn.BatchNorm2d(4)
        self.lin = torch.nn.Linear(4 * 129, 32)
        self.ln = torch.nn.LayerNorm(32)
        self.lstm = torch.nn.LSTM(32, 16, num_layers=2, batch_first=True)
        self.att = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        self.emb = torch.nn.Embedding(10, 16, padding_idx=9)
        self.dw = torch.nn.Conv1d(16, 16, 5, groups=16)

    def forward(self, audio, lengths):
        x = torch.stft(audio, 512, 160, 400, self.window, center=True, return_complex=True, pad_mode="constant")
        x = torch.view_as_real(x).pow(2).sum(-1).clamp(min=1e-5).log()
        x = self.bn(self.conv(x.unsqueeze(1)))
        b, c, f, t = x.shape
        x = self.ln(self.lin(x.permute(0, 3, 1, 2).reshape(b, t, c * f)))
        n = torch.div(lengths, 320, rounding_mode="floor")
        mask = torch.arange(t, device=x.device)[None, :] >= n[:, None]
        x = x.masked_fill(mask.unsqueeze(-1), 0.0)
        h0 = torch.zeros(2, b, 16, device=x.device)
        x, (h, _) = self.lstm(x, (h0, h0.clone()))
        x, _ = self.att(x, x, x, key_padding_mask=mask)
        x = self.dw(torch.nn.functional.pad(x.transpose(1, 2), (4, 0))).transpose(1, 2)
        p = torch.softmax(x, dim=-1)
        k = p.argmax(-1)
        e = self.emb(k % 10)
        e[:, 0] = 0.5
        e[mask] = -1.0
        idx = torch.nonzero(k > 3)
        sel = torch.where(mask.unsqueeze(-1), torch.zeros_like(p), p)
        topv, topi = torch.topk(sel, 3, dim=-1)
        return x, p, e, sel.gather(-1, topi), topv, idx.shape[0], h


def both():
    torch.manual_seed(0)
    net = Net().eval()
    audio, lengths = torch.randn(2, 16000), torch.tensor([16000, 9000])
    with torch.inference_mode():
        ref = net(audio, lengths)
        dev = copy.deepcopy(net).to(NPU)
        got = dev(audio.to(NPU), lengths.to(NPU))
    return ref, got, dev, audio, lengths


def test_module_on_the_fake_equals_the_cpu(monkeypatch):
    """A module with all kinds of layers gives the CPU's results on the fake device, without HF32."""
    monkeypatch.setattr(torch.npu.conv, "allow_hf32", False)
    ref, got, dev, *_ = both()
    assert all(p.device == NPU for p in dev.parameters()) and all(b.device == NPU for b in dev.buffers())
    for r, g in zip(ref, got, strict=True):
        if isinstance(r, torch.Tensor):
            assert g.device == NPU and r.shape == g.shape and r.dtype == g.dtype
            torch.testing.assert_close(g.cpu(), r, rtol=1e-5, atol=1e-6)  # LSTM, attention: other CPU kernels
        else:
            assert r == g


def test_mixed_devices_raise():
    """Operators refuse tensors of different devices, but for a CPU tensor without dimensions."""
    _, _, dev, audio, lengths = both()
    with pytest.raises(RuntimeError, match="same device"):
        dev(audio, lengths)
    x = torch.ones(3, device="npu:0")
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3) + x
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([x, torch.ones(3)])
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3, device="npu:1")
    assert (x + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2]  # 0-dim CPU is allowed, as on any accelerator


def test_host_access_is_limited_as_on_the_device():
    """numpy refuses device tensors, and scalars can be read."""
    x = torch.ones(3, device="npu:0")
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(TypeError):
        np.asarray(x)
    assert x.tolist() == [1, 1, 1] and x[0].item() == 1 and bool(x.sum() > 2) and int(x.sum()) == 3
    assert x.is_npu and not x.is_cuda and not x.is_cpu and x.device.type == "npu"
    assert torch.from_numpy(np.ones(3)).float().to(NPU).device == NPU
    assert torch.tensor([1, 2], device="npu:0").tolist() == [1, 2]
    assert torch.as_tensor([1.0, 2.0], device=NPU).device == NPU


def test_float64_is_refused_by_operators():
    """``double()`` gives float32 with a warning, and operators refuse float64."""
    with pytest.warns(UserWarning, match="do not support double"):
        assert torch.ones(2, device="npu").double().dtype == torch.float32
    x = torch.ones(2, dtype=torch.float64).to("npu:0")  # a copy keeps the dtype, as torch_npu does
    assert x.dtype == torch.float64
    with pytest.raises(RuntimeError, match="float64"):
        x * 2


def test_missing_device_index_raises():
    """A device that does not exist raises the error of torch_npu."""
    with pytest.raises(RuntimeError, match="107001"):
        torch.ones(2).to("npu:7")
    with pytest.raises(RuntimeError, match="107001"):
        torch.npu.set_device(9)


def test_torch_npu_functions_are_available():
    """``torch.npu`` offers devices, streams, events, memory counts and synchronization."""
    import torch_npu

    assert torch_npu.__fake__ and torch.npu.is_available() and torch.npu.device_count() == 2
    torch.npu.set_device("npu:1")
    assert torch.zeros(1, device="npu").device.index == 1
    torch.npu.set_device(0)
    torch.npu.synchronize()
    torch.npu.empty_cache()
    before = torch.npu.memory_allocated()
    held = torch.zeros(1024, device="npu:0")
    assert torch.npu.memory_allocated() == before + held.nbytes == before + 4096
    s = torch.npu.Stream()
    e0, e1 = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    with torch.npu.stream(s):
        e0.record()
    e1.record()
    e1.synchronize()
    assert e0.elapsed_time(e1) >= 0 and "synchronize()" in fake_npu.CALLS
    assert torch.accelerator.current_accelerator().type == "npu" and torch.accelerator.is_available()


def test_views_and_in_place_operators_equal_the_cpu():
    """Views, in-place operators and ``out=`` give the CPU's results."""
    x = torch.zeros(4, 6, device="npu")
    x[1:3, ::2].add_(5)
    x.view(-1)[0] = 7
    x.t()[5, 3] = 9
    ref = torch.zeros(4, 6)
    ref[1:3, ::2].add_(5)
    ref.view(-1)[0] = 7
    ref.t()[5, 3] = 9
    assert torch.equal(x.cpu(), ref)
    y = torch.empty(0, device="npu")
    torch.add(x, 1, out=y)
    assert torch.equal(y.cpu(), ref + 1)
    z = torch.zeros(3, device="npu")
    z.unsqueeze_(0)
    assert z.shape == (1, 3)
    z.copy_(torch.ones(1, 3))
    assert z.sum().item() == 3
    assert x.contiguous().is_contiguous() and not x.t().is_contiguous() and x.t().stride() == (1, 6)


def test_state_dict_is_loaded_into_device_weights():
    """A state dict is copied into the weights on the device."""
    net = torch.nn.Linear(3, 3)
    buf = io.BytesIO()
    torch.save(net.state_dict(), buf)
    buf.seek(0)
    dev = torch.nn.Linear(3, 3).to(NPU)
    dev.load_state_dict(torch.load(buf, map_location="cpu", weights_only=True))
    assert torch.equal(dev.weight.cpu(), net.weight)
    assert dev.weight.device == NPU and isinstance(dev.weight, torch.nn.Parameter)


def test_gradients_are_on_the_device():
    """Gradients of device weights are on the device."""
    net = torch.nn.Linear(3, 1).to(NPU)
    net(torch.ones(2, 3, device=NPU)).sum().backward()
    assert net.weight.grad.device == NPU and net.weight.grad.cpu().tolist() == [[2, 2, 2]]


def test_scripted_function_runs_on_the_device():
    """A scripted function runs on the device."""

    @torch.jit.script
    def f(x: torch.Tensor, n: int) -> torch.Tensor:
        y = torch.zeros_like(x)
        for i in range(n):
            y = y + x * i
        return y

    assert f(torch.ones(2, device=NPU), 3).device == NPU


def test_transfers_are_counted():
    """Transfers in both directions are counted with their sizes."""
    fake_npu.COPIES.clear()
    x = torch.zeros(256).to(NPU)
    x.cpu()
    x[0].item()
    assert fake_npu.COPIES[:2] == [("h2d", 1024), ("d2h", 1024)]


def test_weight_data_can_be_replaced_and_halved():
    """The data of a weight can be replaced, filled and cast to float16."""
    net = torch.nn.Linear(3, 3).to(NPU)
    net.weight.data = torch.ones(3, 3).to(NPU)
    assert net.weight.sum().item() == 9 and net.half()(torch.ones(1, 3, device=NPU).half()).dtype == torch.float16
    net.weight.data.fill_(2)
    assert net.weight.sum().item() == 18


def test_pinned_and_non_blocking_copies_are_accepted():
    """Pinned memory and non-blocking copies are accepted."""
    assert next(iter(torch.utils.data.DataLoader([torch.ones(2)], pin_memory=True))).device.type == "cpu"
    assert torch.zeros(4).to(NPU, non_blocking=True).device == NPU


def test_load_to_the_device_raises():
    """``torch.load`` cannot map to the device: a limit of the fake."""
    buf = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buf)
    buf.seek(0)
    with pytest.raises(NotImplementedError):  # a limit of the fake: no storage allocator
        torch.load(buf, map_location="npu:0")


def test_autocast_is_accepted_without_effect():
    """Autocast is accepted and casts nothing: a limit of the fake."""
    with torch.autocast("npu", dtype=torch.float16):
        y = torch.nn.Linear(3, 3).to(NPU)(torch.ones(1, 3, device=NPU))
    assert y.dtype == torch.float32  # a limit of the fake: autocast is accepted, but casts nothing


def test_default_device_context_is_respected():
    """Tensors and layers are made on the device of the context."""
    with torch.device("npu:0"):
        assert torch.zeros(3).device == NPU and torch.nn.Linear(2, 2).weight.device == NPU


def test_denied_operator_raises():
    """An operator in ``DENY`` is not implemented."""
    fake_npu.DENY.add("aten.softmax")
    fake_npu.DENY.add("aten._softmax")
    try:
        with pytest.raises(NotImplementedError):
            torch.softmax(torch.ones(2, device="npu"), -1)
    finally:
        fake_npu.DENY.clear()
