"""The connection to Ray: a running cluster, or a Ray that this run starts on this host."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import SetupError, first_line
from ..host import signals
from ..host.packages import can_import, install_command

QUIET = {"log_to_driver": False, "logging_level": logging.CRITICAL}
CONNECT_SECONDS = 10.0  # Ray's own limit is minutes
ANSWER_SECONDS = 2.0  # within which a node has to answer
STORE_BYTES = 100 << 20  # of Ray's object store: results are small
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes Ray listen on 127.0.0.1 alone
    "RAY_worker_niceness": "0",  # workers have the priority of this process
    "MALLOC_ARENA_MAX": "1",  # Ray calls actors in a thread, whose own arena would be freed and allocated again
    "RAY_AUTH_MODE": "token",
}
# Ray's processes ask the metadata servers of clouds where they run.  No setting prevents that, but a proxy that does
# not exist does.
NO_PROXY_OUTSIDE = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}


def check_ray() -> None:
    """Raise SetupError where Ray is not installed."""
    if not can_import("ray"):
        raise SetupError("Ray", "not installed; more than one worker needs it", install_command("ray"))


class Connection:
    """Ray, connected or started.  ``close`` ends what was started.

    Parameters
    ----------
    address : of a Ray cluster; None starts Ray on this host, which only this process can reach.
    cores : CPU cores that the workers need together; only for a Ray that is started here.

    Raises SetupError when Ray is not installed, does not answer or does not start.
    """

    def __init__(self, address: str | None, cores: int) -> None:
        os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # otherwise Ray prints on stdout which workers have died
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not address:
            for name, value in LOCAL.items():
                os.environ.setdefault(name, value)
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray keeps one in ~/.ray for all runs
        self.ray = import_ray()
        self.folder: str | None = None
        try:
            if address:
                self._join(address)
            else:
                self._start(cores)
        except BaseException:
            self.close()
            raise

    def _join(self, address: str) -> None:
        try:
            host, _, port = address.rpartition(":")
            if port.isdigit() and "/" not in host:
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
            with signals.kept():
                self.ray.init(address=address, **QUIET)
        except Exception as error:
            raise SetupError(
                f"--ray_address {address}",
                f"no connection: {first_line(error)}",
                f"start the cluster with the same Ray ({self.ray.__version__}), RAY_AUTH_MODE and token as this host",
            ) from error

    def _start(self, cores: int) -> None:
        # Ray's default folder would remain, with a log of each process; its sockets need a short path.  Ray opens its
        # own folders to every user of the host, so they lie in one that only this user can enter.
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        try:
            with _environment(NO_PROXY_OUTSIDE), signals.kept():
                self.ray.init(
                    address="local",
                    num_cpus=max(cores, len(os.sched_getaffinity(0))),  # --threads may ask for more than there are
                    include_dashboard=False,
                    object_store_memory=STORE_BYTES,
                    _temp_dir=f"{self.folder}/ray",
                    **QUIET,
                )
        except Exception as error:
            raise SetupError("--num_workers", f"Ray does not start on this host: {first_line(error)}") from error

    def resources_of(self, node: str) -> dict[str, float]:
        """Return the resources of a node by Ray's names."""
        return next(entry["Resources"] for entry in self.ray.nodes() if entry["NodeID"] == node)

    def is_alive(self, node: str | None) -> bool:
        """Return whether a node answers, True for None; Ray itself takes some seconds to notice a lost node."""
        for entry in self.ray.nodes():
            if entry["NodeID"] == node:
                try:
                    address = entry["NodeManagerAddress"], entry["NodeManagerPort"]
                    socket.create_connection(address, ANSWER_SECONDS).close()
                except OSError:
                    return False
                return entry["Alive"]
        return node is None

    def close(self) -> None:
        """Disconnect; end the Ray that was started here and remove its folder."""
        if self.ray.is_initialized():
            self.ray.shutdown()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def import_ray() -> Any:
    """Import Ray: after its environment variables are set, which it reads when it is imported, and only if needed."""
    check_ray()
    import ray

    return ray
