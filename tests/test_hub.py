"""``--model_path`` as a Hugging Face id: a mirror of the hub on loopback."""

import http.server
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


@pytest.mark.parametrize("name, words", [("acme/nothing", "no such model"), ("acme/empty", "has no file empty.nemo")])
def test_unknown_id_is_reported(find, name, words):
    assert words in find(name)


def test_interrupted_download_is_reported(find):
    assert "acme/cut: cannot be downloaded" in find("acme/cut")


def test_missing_connection_hints_at_another_way(find):
    assert "fetch voice.nemo elsewhere and give its path" in find("acme/voice", HF_HUB_OFFLINE="1")
