"""A .nemo file, or a Hugging Face id, and what its config says."""

import http.server
import io
import os
import tarfile
import threading
from pathlib import Path

import pytest
import yaml
from support import ROOT, run_process

from nemotron_npu.checkpoint import attention_contexts, choose_context, find_checkpoint, frame_seconds, read_config
from nemotron_npu.errors import SetupError

CONFIG = {
    "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
    "preprocessor": {"window_stride": 0.01},
    "encoder": {
        "subsampling_factor": 8,
        "att_context_style": "chunked_limited",
        "att_context_size": [[70, 13], [70, 6], [70, 1], [70, 0]],
    },
}


def archive(path, mode="w", name="./model_config.yaml", content=None):
    data = (yaml.safe_dump(CONFIG) if content is None else content).encode()
    with tarfile.open(path, mode) as tar:
        member = tarfile.TarInfo(name)
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


def _make(path, kind):
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut short":
        archive(path, "w:gz", content="a: " + "b" * 100_000)
        path.write_bytes(path.read_bytes()[:60])
    elif kind == "no config":
        archive(path, name="./other.yaml")
    elif kind == "bad yaml":
        archive(path, content="a: [1, 2")
    elif kind == "no encoder":
        archive(path, content="target: x.EncDecRNNTBPEModel")
    elif kind == "other class":
        archive(path, content=yaml.safe_dump({**CONFIG, "target": "nemo.models.EncDecCTCModelBPE"}))
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    "kind, words",
    [
        ("missing", "no such file"),
        ("folder", "directory"),
        ("text", "not a .nemo"),
        ("empty", "not a .nemo"),
        ("cut short", "not a .nemo"),
        ("no config", "no model_config.yaml"),
        ("bad yaml", "not valid YAML"),
        ("no encoder", "no encoder"),
        ("other class", "EncDecCTCModelBPE"),
    ],
)
def test_what_is_no_checkpoint_is_named_in_one_line(tmp_path, kind, words):
    path = _make(tmp_path / "model.nemo", kind)
    with pytest.raises(SetupError, match=words) as caught:
        read_config(find_checkpoint(str(path)))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face as a download needs: one file of one model."""

    content = b"weights"

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        if self.path.startswith("/acme/voice/resolve/main/voice.nemo"):
            self.send_response(200)
            for name, value in {
                "X-Repo-Commit": "0" * 40,
                "ETag": '"0123456789abcdef"',
                "Content-Length": str(len(self.content)),
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
        "import sys; from nemotron_npu.checkpoint import *\n"
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


def test_without_a_connection_the_remedy_is_to_fetch_the_file_elsewhere(find):
    assert "fetch voice.nemo elsewhere and give its path" in find("acme/voice", HF_HUB_OFFLINE="1")
