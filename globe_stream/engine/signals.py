"""Ctrl-C and SIGTERM as a request that the pass at hand meets between two batches."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_UNTOUCHED = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""What the signals do where nobody asked for anything else."""


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
    with _handled(interrupt, tuple(_UNTOUCHED)):
        yield interrupt


@contextmanager
def prompt_interrupts() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the block with KeyboardInterrupt, in libraries too.

    A signal that already does something else keeps doing it, and other threads are left alone.
    """
    interrupt = Interrupt("stopping", silent=True)
    interrupt.requested = True
    numbers = [n for n, ordinary in _UNTOUCHED.items() if signal.getsignal(n) is ordinary]
    with _handled(interrupt, numbers):
        yield


@contextmanager
def _handled(interrupt: Interrupt, numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Let `interrupt` answer the signals `numbers` inside the block (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, interrupt.request) for number in numbers}
    try:
        with _insistence_seen(interrupt):
            yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if interrupt.requested and isinstance(outer, Interrupt):
                outer.requested = True


@contextmanager
def _insistence_seen(interrupt: Interrupt) -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of the block if `interrupt` raised one that got lost.

    Compiled libraries put a KeyboardInterrupt that meets them into errors of their own
    (pydantic-core: SchemaError) or pass over it (torch, while it imports numpy); so does Python in
    a `__del__`, where the signal is sent again.
    """
    ordinary = sys.unraisablehook

    def send_again(lost: "sys.UnraisableHookArgs") -> None:
        if lost.exc_type is KeyboardInterrupt and interrupt.insisted:
            _thread.interrupt_main()
        else:
            ordinary(lost)

    sys.unraisablehook = send_again
    try:
        yield
    except Exception as error:
        if interrupt.insisted:
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = ordinary
    if interrupt.insisted:
        raise KeyboardInterrupt
