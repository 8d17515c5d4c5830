"""``--model_path`` as a Hugging Face id: a mirror of the hub on loopback."""

import http.server
import json
import os
import re
import shutil
import threading
import zlib
from pathlib import Path
from typing import ClassVar

import pytest
from golden_transformers import FOLDERS
from shards import sharded
from support import ROOT, run_process

from nemotron_npu.checkpoint.transformers_config import INDEX
from nemotron_npu.errors import SetupError

PROMPTED = FOLDERS / "prompted"
ENTRIES = tuple(f"/acme/{name}/" for name in ("empty", "other", "parts", "port", "tdt"))
"""Models that exist: what they lack is a file."""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face as a download needs: one file of one model, and one that is cut off."""

    content = b"weights"
    parts = Path()
    """A folder with the files of acme/parts, whose weights are several files."""
    asked: ClassVar[list[str]] = []
    """The files of acme/parts that were sent."""

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        cut = self.path.startswith("/acme/cut/resolve/main/cut.nemo")
        known = self.path.startswith(("/acme/voice/resolve/main/voice.nemo", "/acme/voice/resolve/v2/voice.nemo"))
        content = self._ported()
        status = re.match("/acme/s([0-9]+)/", self.path)
        if status:
            self.send_response(int(status[1]))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.startswith("/api/models/acme/other/tree/main"):
            self._list("large.nemo", "README.md", "small.nemo")
        elif self.path.startswith("/api/models/acme/tdt/tree/main"):
            self._list("config.json", "model.safetensors", "tokenizer.json")
        elif self.path.startswith("/api/models/acme/port/tree/main"):
            self._list("README.md", *(path.name for path in PROMPTED.iterdir()))
        elif self.path.startswith("/api/models/acme/parts/tree/main"):
            self._list(*(path.name for path in self.parts.iterdir()))
        elif content:
            if body and "/parts/" in self.path:
                self.asked.append(Path(self.path).name)
            self._send(content, {"X-Repo-Commit": "3" * 40, "ETag": f'"{zlib.crc32(content)}"'}, body=body)
        elif cut or known:
            self.send_response(200)
            for name, value in {
                "X-Repo-Commit": ("2" if "/v2/" in self.path else "0") * 40,
                "ETag": '"0123456789abcdef"',
                "Content-Length": str(len(self.content) + cut),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(self.content)
        else:
            self.send_response(404)
            code = "EntryNotFound" if self.path.startswith(ENTRIES) else "RepoNotFound"
            if self.path.startswith("/acme/voice/"):
                code = "RevisionNotFound"
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _ported(self):
        """A file of a model of transformers; of acme/tdt, which is of another kind, there is only the config."""
        owner, name = Path(self.path).parent, Path(self.path).name
        folder = {"/acme/port/resolve/main": PROMPTED, "/acme/parts/resolve/main": self.parts}.get(str(owner))
        if folder and (folder / name).exists():
            return (folder / name).read_bytes()
        return b'{"model_type": "parakeet_tdt"}' if self.path == "/acme/tdt/resolve/main/config.json" else b""

    def _list(self, *names):
        """The files of a repository."""
        content = json.dumps([{"type": "file", "path": n, "size": 1, "oid": "0"} for n in names]).encode()
        self._send(content, {"Content-Type": "application/json"})

    def _send(self, content, headers, *, body=True):
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The folder of acme/parts."""
    folder = tmp_path / "parts"
    shutil.copytree(PROMPTED, folder)
    sharded(folder)
    monkeypatch.setattr(Hub, "parts", folder)
    monkeypatch.setattr(Hub, "asked", [])
    return folder


@pytest.fixture
def find(tmp_path):
    """Find a checkpoint in a process that has an empty download cache and a mirror of the hub on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import sys; from nemotron_npu.checkpoint.hub import *\n"
        "try: print(find_checkpoint(sys.argv[1]))\n"
        "except SetupError as error: print(error)"
    )

    def call(name, **environ):
        environ = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)} | environ
        result = run_process("-c", code, name, cwd=ROOT, env={**os.environ, **environ})
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    yield call
    server.shutdown()
    server.server_close()


def test_id_is_downloaded_once_from_the_mirror(find):
    path = Path(find("acme/voice"))
    assert path.name == "voice.nemo" and path.read_bytes() == b"weights"
    assert find("acme/voice", HF_HUB_OFFLINE="1") == str(path)


def test_downloaded_id_needs_no_connection(find):
    """Nor does it try to connect: a closed port would be tried for many seconds."""
    path = find("acme/voice")
    assert find("acme/voice", HF_ENDPOINT="http://127.0.0.1:9") == path


def test_revision_is_downloaded_beside_the_main_branch(find):
    main, other = find("acme/voice"), find("acme/voice@v2")
    assert Path(main).read_bytes() == Path(other).read_bytes() and "0" * 40 in main and "2" * 40 in other
    assert find("acme/voice@v2", HF_HUB_OFFLINE="1") == other
    assert "no connection to Hugging Face" in find("acme/voice@v3", HF_HUB_OFFLINE="1")


def test_weights_in_several_files_are_downloaded_once(find, parts):
    """All files of the index come, after the config; a download that was interrupted fetches what is missing."""
    folder = Path(find("acme/parts"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in parts.iterdir()
    }
    assert Hub.asked[0] == "config.json" and sorted(Hub.asked) == sorted(path.name for path in parts.iterdir())
    assert find("acme/parts", HF_ENDPOINT="http://127.0.0.1:9") == str(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "cannot be downloaded" in find("acme/parts", HF_ENDPOINT="http://127.0.0.1:9")
    Hub.asked.clear()
    assert find("acme/parts") == str(folder) and Hub.asked in ([], ["model-00002-of-00003.safetensors"])
    assert (folder / "model-00002-of-00003.safetensors").exists()


def test_index_is_followed_inside_its_repository_alone(find, parts):
    index = json.loads((parts / INDEX).read_text())
    index["weight_map"]["x"] = "../../secret.safetensors"
    (parts / INDEX).write_text(json.dumps(index))
    assert re.match(r"acme/parts: .* names ../../secret.safetensors, which the repository lacks", find("acme/parts"))
    assert not [name for name in Hub.asked if "secret" in name]


def test_model_of_transformers_is_downloaded_once(find):
    folder = Path(find("acme/port"))
    assert {path.name for path in folder.iterdir()} == {path.name for path in PROMPTED.iterdir()}
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in PROMPTED.iterdir())
    assert find("acme/port", HF_ENDPOINT="http://127.0.0.1:9") == str(folder)


@pytest.mark.parametrize(
    "name, words",
    [
        ("acme/tdt", "config.json: has the model_type parakeet_tdt"),
        ("acme/nothing", "no such model"),
        ("acme/empty", "has no file empty.nemo"),
        ("acme/other", "has no file other.nemo, but large.nemo, small.nemo (download one"),
        ("acme/voice@v3", "acme/voice@v3: no such revision"),
    ],
)
def test_unknown_id_is_reported(find, name, words):
    assert words in find(name)


@pytest.mark.parametrize("status", [500, 403, 418, 302])
def test_answer_of_the_hub_is_reported(find, status):
    """An answer that is no file is reported for what it is."""
    reason = "a redirect without a target" if status == 302 else f"status {status}"
    assert f"acme/s{status}: cannot be downloaded: Hugging Face answers with {reason} (" in find(f"acme/s{status}")


def test_password_of_a_url_is_not_shown(cli):
    """The password of a URL does not get into a message."""
    code, out, err = cli("--model_path", "https://someone:secret@example.org/x", "--device", "cpu")
    assert code == 2 and "https://...@example.org/x: no such file" in err and "secret" not in out + err
    assert str(SetupError("http://a:b@c@host/x", "bad")) == "http://...@host/x: bad"


def test_interrupted_download_is_reported(find):
    assert "acme/cut: cannot be downloaded" in find("acme/cut")


def test_missing_connection_hints_at_another_way(find):
    assert "fetch voice.nemo elsewhere and give its path" in find("acme/voice", HF_HUB_OFFLINE="1")
