"""Ctrl-C and SIGTERM as a request that the pass at hand meets between two batches."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether somebody asked the process to stop."""

    def __init__(self, answer: str, silent: bool = False, patient: bool = False) -> None:
        self.requested = False
        self.insisted = False
        self._patient = patient
        self._silent = silent
        self._answer = answer

    def request(self, number: int, _frame: FrameType | None) -> None:
        """Signal handler: the first signal asks, a second one stops at once or is the same."""
        if self.requested and self._patient:
            return
        if self.requested:
            self.insisted = True
            raise KeyboardInterrupt
        self.requested = True
        if self._silent:
            return
        name = signal.Signals(number).name
        again = "" if self._patient else " (again to stop at once)"
        print(f"\n{name}: {self._answer}{again}", file=sys.stderr)


@contextmanager
def graceful_interrupts(
    answer: str = "saving the state of this pass, then stopping",
    *,
    silent: bool = False,
    patient: bool = False,
) -> Iterator[Interrupt]:
    """Handle SIGINT and SIGTERM as requests inside the block (main thread only).

    `answer` says to whoever asked what happens now, unless `silent`. When `patient`, further
    signals are the same request: torchrun passes on what the terminal has sent already. Blocks may
    be nested: what was asked of the inner one was asked of the outer one, too.
    """
    interrupt = Interrupt(answer, silent, patient)
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    old = {
        number: signal.signal(number, interrupt.request)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with _insistence_seen(interrupt):
            yield interrupt
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if interrupt.requested and isinstance(outer, Interrupt):
                outer.requested = True


@contextmanager
def prompt_interrupts() -> Iterator[Interrupt]:
    """Let SIGINT end the block with KeyboardInterrupt wherever it arrives, in libraries too.

    Nothing changes where SIGINT does something else already, and outside the main thread. Where a
    library passes over the KeyboardInterrupt, the block goes on, and `insisted` tells.
    """
    interrupt = Interrupt("stopping", silent=True)
    interrupt.requested = True
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupt
        return
    signal.signal(signal.SIGINT, interrupt.request)
    try:
        with _insistence_seen(interrupt):
            yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _insistence_seen(interrupt: Interrupt) -> Iterator[None]:
    """Raise KeyboardInterrupt for any error after `interrupt` raised one.

    Compiled libraries put a KeyboardInterrupt that meets them into errors of their own
    (pydantic-core: SchemaError).
    """
    try:
        yield
    except Exception as error:
        if interrupt.insisted:
            raise KeyboardInterrupt from error
        raise
