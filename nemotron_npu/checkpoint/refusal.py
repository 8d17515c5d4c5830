"""An error in one member of a checkpoint, raised where the checkpoint's path is not known."""

from __future__ import annotations

from pathlib import Path

from ..errors import SetupError

AGAIN = "download it again"
UNSAFE = "not safe to load"
NOT_FLOATS = "use a checkpoint in float32, float16 or bfloat16"
STRANGER = "it belongs to another checkpoint"


class Refusal(Exception):
    """A member cannot be used; ``problem`` and ``hint`` as in ``SetupError``."""

    def __init__(self, problem: str, hint: str = AGAIN) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def of(self, path: Path, member: str) -> SetupError:
        """Return the error line ``path: member: problem (hint)``."""
        return SetupError(f"{path}: {member}", self.problem, self.hint)
