"""Graceful shutdown on SIGTERM (a machine is taken away) and Ctrl-C."""

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jax.experimental import multihost_utils

from instruct_jax.errors import InstructError
from instruct_jax.runtime.hosts import is_multihost


class Interrupted(InstructError):
    """A signal stopped the run, after a checkpoint; the message says how to resume."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        # SIGTERM 0: a preempted run is no failure; Ctrl-C 130, as shells have it
        self.exit_code = exit_code


class StopRequest:
    """Which signal is to stop the run, if any."""

    caught: signal.Signals | None = None
    # Counts for the whole process: the processes agree on the number to stop at, so a second stage
    # must not begin with 1 again.
    calls = itertools.count(1)

    def reached(self) -> bool:
        """Whether to stop after this step.

        Several processes stop after the same one, whichever got the signal; jax sees to that.
        """
        if is_multihost() and multihost_utils.reached_preemption_sync_point(next(self.calls)):
            self.caught = signal.SIGTERM
        return self.caught is not None

    @property
    def name(self) -> str:
        """The signal, as a person calls it."""
        return "Ctrl-C" if self.caught == signal.SIGINT else "SIGTERM"

    @property
    def exit_code(self) -> int:
        """The exit code of a run that this signal stopped."""
        return 130 if self.caught == signal.SIGINT else 0


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """While it lasts, the first SIGTERM or Ctrl-C is only noted; a second Ctrl-C kills at once.

    Python handles signals in the main thread only; in other threads this changes nothing.
    """
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        if is_multihost():
            os.kill(os.getpid(), signal.SIGTERM)  # jax tells the others
            return
        request.caught = request.caught or signal.Signals(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        text = (
            f"\n{request.name}: finishing this step, then saving a checkpoint (Ctrl-C now stops at"
            " once, without one)\n"
        )
        os.write(2, text.encode())  # print is not safe in a signal handler

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handled = [signal.SIGINT]
    if not is_multihost():  # of several processes, jax catches SIGTERM
        handled.append(signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
