"""Devices, GEMM precision, clocks and interrupts."""

import contextlib
import itertools
import signal
import sys
import threading
import time

import pytest
import torch

from globe_stream.engine import device as runtime
from globe_stream.engine import signals as interrupts
from globe_stream.engine.context import Clock
from globe_stream.errors import InputError

CPU = torch.device("cpu")


def faults(monkeypatch, **known):
    monkeypatch.setattr(runtime, "device_fault", lambda name: known.get(name, "is not available"))


def test_auto_takes_the_first_device_that_works_and_says_why(monkeypatch):
    faults(monkeypatch, cuda=None, mps=None)
    assert runtime.choose_device("auto") == (torch.device("cuda"), "first that works")
    faults(monkeypatch, cuda="is not available", mps=None)
    assert runtime.choose_device("auto") == (torch.device("mps"), "first that works")
    faults(monkeypatch, cuda="is not available", mps="computes a wrong Gram matrix")
    device, reason = runtime.choose_device("auto")
    assert device == CPU
    assert reason == "cuda is not available, mps computes a wrong Gram matrix"


def test_a_named_device_is_taken_or_refused(monkeypatch):
    faults(monkeypatch, mps=None, cuda="computes a wrong Cholesky factor")
    assert runtime.choose_device("cpu") == (CPU, "asked for")
    assert runtime.choose_device("mps") == (torch.device("mps"), "asked for")
    with pytest.raises(InputError, match="device cuda: cuda computes a wrong Cholesky factor"):
        runtime.choose_device("cuda")


@pytest.mark.parametrize(("error", "expected"), [(3e-7, "medium"), (2e-3, "highest")])
def test_the_quick_setting_is_taken_where_it_is_exact(monkeypatch, error, expected):
    monkeypatch.setattr(runtime, "product_error", lambda: error)
    machine = runtime.prepare(CPU, "asked for", None, None)
    assert machine.matmul_precision == torch.get_float32_matmul_precision() == expected
    assert f"{error:.1e}" in machine.matmul_reason


def test_no_clock_decides_how_products_are_computed(monkeypatch):
    """However time passes, the setting is the same; a race between settings once chose it."""
    expected = runtime.prepare(CPU, "asked for", None, None)
    for first, second in ((1.0, 0.1), (0.1, 1.0)):
        ticks = itertools.accumulate(itertools.cycle((first, second)))
        monkeypatch.setattr(time, "perf_counter", lambda ticks=ticks: next(ticks))
        assert runtime.prepare(CPU, "asked for", None, None) == expected


def test_the_chosen_setting_has_float32_error():
    runtime.prepare(CPU, "asked for", None, None)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(300, 300, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    assert float(((left @ right).double() - exact).norm() / exact.norm()) < 2e-6


def test_a_recorded_precision_is_kept_unless_another_is_asked_for():
    recorded = runtime.Machine("cpu", "asked for", 1, "highest", "as before", "bf16")
    assert runtime.prepare(CPU, "asked for", None, recorded).precision == "bf16"
    assert runtime.prepare(CPU, "asked for", "float32", recorded).precision == "float32"
    assert runtime.prepare(CPU, "asked for", None, None).precision == "float32"


def test_tensor_float_needs_cuda():
    with pytest.raises(InputError, match="cpu has no TensorFloat-32"):
        runtime.prepare(CPU, "asked for", "tf32", None)


def test_a_clock_is_due_once_an_interval(monkeypatch):
    now = iter([0.0, 5.0, 10.0, 12.0, 19.0, 20.0])
    monkeypatch.setattr("globe_stream.engine.context.time.monotonic", lambda: next(now))
    clock = Clock(10)
    assert [clock.due() for _ in range(5)] == [False, True, False, False, True]


# -- interrupts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number, capsys):
    def twice():
        with interrupts.graceful_interrupts() as interrupt:
            assert not interrupt.requested
            signal.raise_signal(number)
            assert interrupt.requested
            assert f"{number.name}: saving the state" in capsys.readouterr().err
            signal.raise_signal(number)
            raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        twice()


def as_an_error_of_its_own():
    """What a compiled library may make of Ctrl-C in the midst of it."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ValueError("KeyboardInterrupt") from None


def passed_over():
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def lost_in_a_destructor():
    class Object:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    Object()
    for _ in range(1000):
        pass
    raise AssertionError("the signal was not sent again")


def another_error():
    raise ValueError("other")


BODIES = pytest.mark.parametrize(("body", "kind"), [
    (as_an_error_of_its_own, KeyboardInterrupt), (passed_over, KeyboardInterrupt),
    (lost_in_a_destructor, KeyboardInterrupt), (another_error, ValueError),
])  # fmt: skip


@BODIES
def test_an_insistent_signal_ends_the_block_whatever_a_library_makes_of_it(body, kind):
    def after_a_first_one():
        with interrupts.graceful_interrupts(silent=True):
            signal.raise_signal(signal.SIGINT)
            body()

    with pytest.raises(kind):
        after_a_first_one()


@BODIES
def test_a_prompt_interrupt_ends_the_block_whatever_a_library_makes_of_it(body, kind):
    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    hook = sys.unraisablehook
    with pytest.raises(kind), interrupts.prompt_interrupts():
        body()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert sys.unraisablehook is hook


def test_sigterm_is_prompt_too():
    with pytest.raises(KeyboardInterrupt), interrupts.prompt_interrupts():
        signal.raise_signal(signal.SIGTERM)


def test_prompt_interrupts_leave_another_handler_alone():
    with interrupts.graceful_interrupts(silent=True) as interrupt, interrupts.prompt_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert interrupt.requested


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupts.graceful_interrupts():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_are_left_alone():
    asked = []

    def work():
        with interrupts.graceful_interrupts() as interrupt:
            asked.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
