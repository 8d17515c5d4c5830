"""A worker as the driver sees it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .jobs import Job


@dataclass(eq=False)
class Member:
    """One of the workers, by number; when its process is lost, the next one keeps the number."""

    number: int
    actor: Any = None
    """Ray's handle of the process; None when this worker has been given up."""
    node: str | None = None
    host: str = "?"
    is_loaded: bool = False
    failures: int = 0
    """Consecutive failures to load or of the device."""
    jobs: deque[Job] = field(default_factory=deque)
    seconds_read: float = 0.0
    """Audio that the process has read, as far as it has been reported."""
    seconds_done: float = 0.0
    """The part of it that belongs to jobs that are done."""
    is_asked: bool = False
    """Whether the process has been asked how much it has read, and has not answered yet."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"worker {self.number + 1} on {self.host}"

    def start(self, actor: Any) -> None:
        """Continue with a new process."""
        self.actor = actor
        self.node = None
        self.is_loaded = False
        self.is_asked = False
        self.seconds_read = 0.0
        self.seconds_done = 0.0


@dataclass(frozen=True)
class Loss:
    """Why a worker was lost."""

    reason: str
    error: Exception | None = None
    """What loading, the device or the model raised; None where the process or the node died."""
    job: Job | None = None
    """The job that may be the cause."""
    is_node: bool = False
