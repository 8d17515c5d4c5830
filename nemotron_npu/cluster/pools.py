"""The pools of workers: live streams are spread over them, and end with the worker that transcribes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import SetupError, first_line
from ..pool_exchange import Answer, Request
from .member import Member


class WorkerPool:
    """The pool of one worker, in its process."""

    def __init__(self, ray: Any, member: Member, slots: int) -> None:
        self.ray = ray
        self.member = member
        self.slots = slots
        """Files that it is given at once."""

    def send(self, requests: list[Request], answered: Callable[[Answer | Exception], None]) -> None:
        """Have requests answered: ``answered`` is called in another thread, with a SetupError if the worker is lost."""
        call = self.member.actor.exchange.remote(requests)
        call.future().add_done_callback(lambda future: answered(self._result(future)))

    def watch(self, lost: Callable[[Answer | Exception], None]) -> None:
        """Have ``lost`` called, in another thread, with a SetupError as soon as the worker is lost."""
        call = self.member.actor.outlast.options(concurrency_group="status").remote()
        call.future().add_done_callback(lambda future: lost(self._result(future)))

    def _result(self, future: Any) -> Answer | Exception:
        try:
            return future.result()
        except self.ray.exceptions.RayTaskError as error:
            return SetupError(self.member.name, first_line(error.cause))
        except self.ray.exceptions.RayError:
            return SetupError(self.member.name, "its process died")
