"""Weights and tokenizer of a ``.nemo`` file: the tensors equal torch's, without trusting the file."""

import io
import mmap
import os
import pickle
import struct
import tarfile
from pathlib import Path

import pytest
import torch
from support import CLIP, DEMO, ROOT, run_process

from nemotron_npu.checkpoint.refusal import Refusal
from nemotron_npu.checkpoint.unpickler import TensorUnpickler
from nemotron_npu.checkpoint.weights import read_weights
from nemotron_npu.recognizer import Recognizer


def repack(source, path, mode="w", without=(), replaced=None) -> Path:
    """The checkpoint ``source`` again, without some members and with others replaced, both by the end of their name."""
    with tarfile.open(source) as whole, tarfile.open(path, mode) as part:
        for member in whole:
            if not member.isfile() or member.name.endswith(tuple(without)):
                continue
            data = whole.extractfile(member).read()
            data = next((new for end, new in (replaced or {}).items() if member.name.endswith(end)), data)
            member.size = len(data)
            part.addfile(member, io.BytesIO(data))
    return path


def saved(thing, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, **options)
    return buffer.getvalue()


def weights_by_torch(path) -> dict:
    with tarfile.open(path) as archive:
        member = next(m for m in archive if m.name.endswith("model_weights.ckpt"))
        return torch.load(io.BytesIO(archive.extractfile(member).read()), map_location="cpu", weights_only=True)


def assert_same(read: dict, expected: dict) -> None:
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        found = read[name]
        assert (found.dtype, found.shape, found.stride()) == (tensor.dtype, tensor.shape, tensor.stride()), name
        assert found.device.type == "cpu" and torch.equal(found, tensor), name


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_weights_equal_those_that_torch_reads(tiny, tmp_path, mode):
    path = repack(tiny, tmp_path / "m.nemo", mode)
    expected = weights_by_torch(path)
    assert len(expected) > 50
    assert_same(read_weights(path), expected)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_kind_of_tensor_is_read_as_saved(tiny, tmp_path, mode):
    noise = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)) * 10
    dtypes = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    tensors = {dtype: noise.to(getattr(torch, dtype)) for dtype in dtypes}
    tensors |= {"turned": noise.t(), "cut": noise[2:, ::3], "scalar": torch.tensor(7), "empty": torch.zeros(0, 4)}
    tensors |= {"parameter": torch.nn.Parameter(noise), "shared": noise, "one element": noise[5, 9]}
    path = repack(tiny, tmp_path / "m.nemo", mode, replaced={"model_weights.ckpt": saved(tensors)})
    weights = read_weights(path)
    assert_same(weights, tensors)
    assert weights["shared"].data_ptr() == weights["parameter"].data_ptr(), "stored once, held once"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_reading_writes_nothing_to_disk(tiny, tmp_path, mode):
    """In a process that the kernel does not let write to any file."""
    path = repack(tiny, tmp_path / "m.nemo", mode)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "from nemotron_npu.checkpoint.config_reader import read_config\n"
        "from nemotron_npu.checkpoint.tokenizer import read_tokenizers\n"
        "from nemotron_npu.checkpoint.weights import read_weights\n"
        "path = Path(sys.argv[1])\n"
        "print(len(read_tokenizers(path, read_config(path))[0]), len(read_weights(path)))"
    )
    result = run_process("-B", "-c", code, path, cwd=ROOT, env={**os.environ, "TMPDIR": str(scratch)})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["64", str(len(weights_by_torch(tiny)))]
    assert os.listdir(scratch) == []


def test_changed_weights_do_not_reach_the_file(tiny):
    before = tiny.read_bytes()
    for tensor in read_weights(tiny).values():
        tensor.zero_()
    assert tiny.read_bytes() == before


class MakesFolder:
    """Pickles as a call that makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def resident_pages(tensor: torch.Tensor) -> tuple[int, int]:
    """Return how many of the whole pages of a tensor this process has mapped in memory, and how many there are."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE)
    count = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE - first
    with open("/proc/self/pagemap", "rb") as pages:
        pages.seek(8 * first)
        entries = struct.unpack(f"<{count}Q", pages.read(8 * count))
    return sum(entry >> 63 for entry in entries), count


def test_positions_leave_no_weights_in_memory():
    """A weight that is read for the first block of a size does not stay resident, but for what lies near others."""
    recognizer = Recognizer(DEMO, "cpu")
    recognizer.transcribe(CLIP)
    weights = [layer.attention.position for layer in recognizer.encoder.layers]
    assert all(weight.sum() for weight in weights)
    resident, total = map(sum, zip(*map(resident_pages, weights), strict=True))
    assert resident == total > 50
    with recognizer.stream() as stream:
        stream.feed(torch.zeros(16000))
    resident, _ = map(sum, zip(*map(resident_pages, weights), strict=True))
    assert resident < total / 2


def test_unpickler_refuses_names_that_are_not_allowed(tmp_path):
    """Nothing is called, not even to find out what it is."""
    pickled = pickle.dumps(MakesFolder(tmp_path / "made"), protocol=2)
    with pytest.raises(Refusal, match=r"names posix\.mkdir"):
        TensorUnpickler(pickled, bytearray(), {}).load()
    assert not (tmp_path / "made").exists()


def test_unpickler_does_not_hash_nested_tuples():
    """A tuple of tuples, 60 levels of two each, would take 2 ** 60 steps to hash as a key."""
    nested = b"\x80\x02}" + b")" + b"q\x000h\x00h\x00\x86" + b"q\x000h\x00h\x00\x86" * 60 + b"N" + b"s."
    with pytest.raises(Refusal, match="something other than named tensors"):
        TensorUnpickler(nested, bytearray(), {}).load()
