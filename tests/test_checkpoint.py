"""A .nemo file, or a Hugging Face id, and what its config says."""

import http.server
import io
import os
import tarfile
import threading
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import TINY_SIZE, nemotron_config
from support import ROOT, run_process

from nemotron_npu.checkpoint.load import attention_contexts, choose_context, frame_seconds, read_config
from nemotron_npu.checkpoint.weights import read_weights
from nemotron_npu.errors import SetupError

CONFIG = nemotron_config("", **TINY_SIZE) | {
    "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
    "tokenizer": {"type": "bpe", "model_path": "nemo:tokenizer.model"},
}


def archive(path, mode="w"):
    data = yaml.safe_dump(CONFIG).encode()
    with tarfile.open(path, mode) as tar:
        member = tarfile.TarInfo("./model_config.yaml")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_the_config_is_read_from_a_plain_and_a_gzipped_archive(tmp_path, mode):
    assert read_config(archive(tmp_path / "m.nemo", mode)) == CONFIG


def test_the_chunk_sizes_come_in_the_checkpoints_order_in_milliseconds():
    assert attention_contexts(CONFIG) == {1120: [70, 13], 560: [70, 6], 160: [70, 1], 80: [70, 0]}
    assert frame_seconds(CONFIG) == 0.08


def test_milliseconds_are_of_the_checkpoints_own_frame():
    encoder = {**CONFIG["encoder"], "subsampling_factor": 4, "att_context_size": [[56, 3]]}
    assert attention_contexts({**CONFIG, "encoder": encoder}) == {160: [56, 3]}


def test_one_context_need_not_be_a_list_of_lists():
    assert attention_contexts({**CONFIG, "encoder": {**CONFIG["encoder"], "att_context_size": [70, 13]}}) == {
        1120: [70, 13]
    }


def test_the_first_chunk_size_is_the_default():
    assert choose_context(CONFIG, None) == (1120, [70, 13])
    assert choose_context(CONFIG, 80) == (80, [70, 0])


def test_a_chunk_size_that_is_not_offered_names_those_that_are():
    with pytest.raises(SetupError, match="80, 160, 560, 1120"):
        choose_context(CONFIG, 100)


def test_a_checkpoint_that_does_not_attend_in_chunks_offers_none():
    regular = {**CONFIG, "encoder": {**CONFIG["encoder"], "att_context_style": "regular", "att_context_size": [-1, -1]}}
    assert choose_context(regular, None) == (None, None)
    with pytest.raises(SetupError, match="does not attend in chunks"):
        choose_context(regular, 80)


# ---------------------------------------------------------------- weights and tokenizer


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
def test_the_weights_are_those_that_torch_reads(tiny, tmp_path, mode):
    path = repack(tiny, tmp_path / "m.nemo", mode)
    expected = weights_by_torch(path)
    assert len(expected) > 50
    assert_same(read_weights(path), expected)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_kind_of_tensor_is_read_as_it_was_saved(tiny, tmp_path, mode):
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
def test_nothing_is_written_to_disk(tiny, tmp_path, mode):
    """In a process that the kernel does not let write to any file."""
    path = repack(tiny, tmp_path / "m.nemo", mode)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "from nemotron_npu.checkpoint.load import read_config, read_tokenizer\n"
        "from nemotron_npu.checkpoint.weights import read_weights\n"
        "path = Path(sys.argv[1])\n"
        "print(len(read_tokenizer(path, read_config(path))), len(read_weights(path)))"
    )
    result = run_process("-B", "-c", code, path, cwd=ROOT, env={**os.environ, "TMPDIR": str(scratch)})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["64", str(len(weights_by_torch(tiny)))]
    assert os.listdir(scratch) == []


def test_a_change_of_the_weights_in_memory_does_not_reach_the_file(tiny):
    before = tiny.read_bytes()
    for tensor in read_weights(tiny).values():
        tensor.zero_()
    assert tiny.read_bytes() == before


# ---------------------------------------------------------------- Hugging Face


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face as a download needs: one file of one model, and one that is cut off."""

    content = b"weights"

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        cut = self.path.startswith("/acme/cut/resolve/main/cut.nemo")
        if cut or self.path.startswith("/acme/voice/resolve/main/voice.nemo"):
            self.send_response(200)
            for name, value in {
                "X-Repo-Commit": "0" * 40,
                "ETag": '"0123456789abcdef"',
                "Content-Length": str(len(self.content) + cut),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(self.content)
        else:
            self.send_response(404)
            known = self.path.startswith("/acme/empty/")
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def find(tmp_path):
    """Find a checkpoint in a process that has an empty download cache and a mirror of the hub on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import sys; from nemotron_npu.checkpoint.load import *\n"
        "try: print(find_checkpoint(sys.argv[1]))\n"
        "except SetupError as error: print(error)"
    )

    def call(name, **environ):
        environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        result = run_process("-c", code, name, cwd=ROOT, env={**os.environ, **environ})
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    yield call
    server.shutdown()
    server.server_close()


def test_a_hugging_face_id_is_downloaded_from_the_mirror_and_then_taken_from_the_cache(find):
    path = Path(find("acme/voice"))
    assert path.name == "voice.nemo" and path.read_bytes() == b"weights"
    assert find("acme/voice", HF_HUB_OFFLINE="1") == str(path)


@pytest.mark.parametrize("name, words", [("acme/nothing", "no such model"), ("acme/empty", "has no file empty.nemo")])
def test_an_id_that_the_hub_does_not_have_is_named(find, name, words):
    assert words in find(name)


def test_a_download_that_is_cut_off_is_reported(find):
    assert "acme/cut: cannot be downloaded" in find("acme/cut")


def test_without_a_connection_the_remedy_is_to_fetch_the_file_elsewhere(find):
    assert "fetch voice.nemo elsewhere and give its path" in find("acme/voice", HF_HUB_OFFLINE="1")
