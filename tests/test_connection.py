"""The folder of a Ray that a run starts: other users of the host cannot read it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

START = """
import time
from nemotron_npu.cluster.connection import Connection
print(Connection(None, 1).folder, flush=True)
time.sleep(600)
"""
# What another user may try: prints a line for each attempt
INTRUDE = """
import os, socket, sys
folder, *paths = sys.argv[1:]
os.setgroups([]), os.setgid(65534), os.setuid(65534)
attempts = {"list": lambda: os.listdir(folder), "create": lambda: open(f"{folder}/x", "w")}
for path in paths:
    attempts[f"look at {path}"] = lambda path=path: os.lstat(path)
    attempts[f"move {path}"] = lambda path=path: os.rename(path, f"{path}~")
    attempts[f"read {path}"] = lambda path=path: open(path)
    if path.endswith(("/raylet", "/plasma_store")):
        attempts[f"connect to {path}"] = lambda path=path: socket.socket(socket.AF_UNIX).connect(path)
for name, attempt in attempts.items():
    try:
        attempt()
    except PermissionError:
        print("refused")
    except OSError as error:
        print(name, error)
    else:
        print(name)
"""


def assert_closed(folder: Path) -> int:
    """Return how many attempts of another user to get at anything below ``folder`` were refused: all."""
    status = folder.stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o700, os.geteuid())
    if os.geteuid():
        return 0  # only root can become another user
    command = [sys.executable, "-I", "-c", INTRUDE, folder, *folder.rglob("*")]
    found = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
    assert set(found.stdout.splitlines()) == {"refused"}
    return len(found.stdout.splitlines())


def test_ray_of_a_run_is_closed_to_other_users():
    """Nobody else reaches its sockets and logs while it runs, nor what is left when the run is killed."""
    pytest.importorskip("ray")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", START]
    run = subprocess.Popen(command, env=environment, umask=0, stdout=subprocess.PIPE, text=True)
    folder = Path(run.stdout.readline().strip())
    try:
        sockets = {path.name for path in folder.rglob("*") if path.is_socket()}
        assert sockets == {"raylet", "plasma_store"}
        assert all(len(os.fsencode(path)) < 100 for path in folder.rglob("sockets/*"))  # of 107 that Linux takes
        while_running = assert_closed(folder)
        run.kill()
        run.communicate()  # waits for the processes of Ray, which hold its stdout
        killed = assert_closed(folder)
        assert os.geteuid() or min(while_running, killed) > 50
    finally:
        run.kill()
        shutil.rmtree(folder)
