"""A stage of the pipeline: one thread that does its tasks in order, a few of them ahead."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Lane"]


class Lane:
    """Runs tasks one after another beside the thread that submits them.

    `submit` waits while `depth` tasks are queued, so a fast stage cannot fill the memory; an
    exception of a task is raised by the next `submit` or by `drain`, and no later task runs.

    Args:
        name: of the thread.
        depth: tasks that may wait or run at a time.
    """

    def __init__(self, name: str, depth: int) -> None:
        self.busy_seconds = 0.0
        self._depth = depth
        self._pending: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._is_broken = False

    def submit(self, task: Callable[[], None]) -> None:
        """Queues a task."""
        while len(self._pending) >= self._depth:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._timed, task))

    def _timed(self, task: Callable[[], None]) -> None:
        if self._is_broken:  # what comes after a failed task would build on what it left out
            return
        clock = time.perf_counter()
        try:
            task()
        except BaseException:
            self._is_broken = True
            raise
        finally:
            self.busy_seconds += time.perf_counter() - clock

    def drain(self) -> None:
        """Waits until all tasks are done."""
        while self._pending:
            self._pending.popleft().result()

    def close(self, *, finish: bool) -> None:
        """Ends the thread: after what is queued, or after the task that runs."""
        if not finish:
            for future in self._pending:
                future.cancel()
        with contextlib.suppress(BaseException):  # close after an error, which is on its way
            self.drain()
        self._pool.shutdown(wait=True, cancel_futures=not finish)
