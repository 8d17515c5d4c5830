"""Nothing leaves this machine unless a Hugging Face id was asked for.

That holds for all tests together: ``guard/sitecustomize.py`` watches this process and every Python that is started, and
``conftest.py`` fails the test in which one looks up or connects to another machine.  The tests here check
the guard itself.
"""

import socket
import subprocess
import sys

import pytest
from support import ROOT, run_process


@pytest.fixture
def caught(tmp_path, monkeypatch):
    """Return what the guard records, without failing this test for it."""
    log = tmp_path / "caught"
    log.touch()
    monkeypatch.setenv("NETWORK_GUARD", str(log))
    return log.read_text


def test_only_a_hugging_face_id_goes_online(caught, monkeypatch, tmp_path):
    """A Hugging Face id as --model_path is the one request that looks up another machine."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    code = (  # the hub's own client tries five times, and sleeps for 23 s between
        "import sys, time, inference; time.sleep = lambda seconds: None; "
        "sys.exit(inference.main(['--device', 'cpu', '--model_path', 'acme/voice']))"
    )
    result = run_process("-c", code, cwd=ROOT)
    assert result.returncode == 2 and "acme/voice: cannot be downloaded" in result.stderr
    assert "socket.getaddrinfo huggingface.co" in caught()


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 80), 1)",
        "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))",
        "socket.gethostbyname('example.com')",
    ],
)
def test_guard_records_every_connection_attempt(attempt, caught):
    """The guard records each attempt, in this process and in children, even if the error is suppressed."""
    code = f"import socket\ntry: {attempt}\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], check=True)  # in a child ...
    assert len(caught().splitlines()) == 1
    exec(code, {"socket": socket})  # ... and in this process
    assert len(caught().splitlines()) == 2


def test_guard_allows_connections_to_this_machine(caught):
    """Connections to this machine are allowed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    assert not caught()
