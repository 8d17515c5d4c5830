"""``--model_path`` as a Hugging Face id: a mirror of the hub on loopback."""

import http.server
import json
import os
import threading
from pathlib import Path

import pytest
from support import ROOT, run_process


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face as a download needs: one file of one model, and one that is cut off."""

    content = b"weights"

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        cut = self.path.startswith("/acme/cut/resolve/main/cut.nemo")
        known = self.path.startswith(("/acme/voice/resolve/main/voice.nemo", "/acme/voice/resolve/v2/voice.nemo"))
        if self.path.startswith("/api/models/acme/other/tree/main"):
            self._list("large.nemo", "README.md", "small.nemo")
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
            code = "EntryNotFound" if self.path.startswith(("/acme/empty/", "/acme/other/")) else "RepoNotFound"
            if self.path.startswith("/acme/voice/"):
                code = "RevisionNotFound"
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _list(self, *names):
        """The files of a repository."""
        content = json.dumps([{"type": "file", "path": n, "size": 1, "oid": "0"} for n in names]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


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
        environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
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


@pytest.mark.parametrize(
    "name, words",
    [
        ("acme/nothing", "no such model"),
        ("acme/empty", "has no file empty.nemo"),
        ("acme/other", "has no file other.nemo, but large.nemo, small.nemo (download one"),
        ("acme/voice@v3", "acme/voice@v3: no such revision"),
    ],
)
def test_unknown_id_is_reported(find, name, words):
    assert words in find(name)


def test_interrupted_download_is_reported(find):
    assert "acme/cut: cannot be downloaded" in find("acme/cut")


def test_missing_connection_hints_at_another_way(find):
    assert "fetch voice.nemo elsewhere and give its path" in find("acme/voice", HF_HUB_OFFLINE="1")
