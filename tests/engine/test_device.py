"""Devices, GEMM precision, clocks and interrupts."""

import signal
import threading

import pytest
import torch

from globe_stream.engine import device as runtime
from globe_stream.engine import signals as interrupts
from globe_stream.engine.context import Clock
from globe_stream.errors import InputError

CPU = torch.device("cpu")


def faults(monkeypatch, **known):
    monkeypatch.setattr(runtime, "_fault", lambda name: known.get(name, "is not available"))


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


def test_the_canary_accepts_right_arithmetic_and_catches_wrong(monkeypatch):
    assert runtime._canary(CPU) is None
    good = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda g: (good(g)[0] * 1.01, good(g)[1]))
    assert runtime._canary(CPU) == "computes a wrong Cholesky factor"
    monkeypatch.undo()
    monkeypatch.setattr(runtime, "_relative_error", lambda *_: 1e-4)
    assert runtime._canary(CPU) == "computes a wrong Gram matrix"


@pytest.mark.parametrize(("seconds", "errors", "expected"), [
    ((1.0, 0.5), (3e-7, 3e-7), "medium"), ((1.0, 0.5), (3e-7, 2e-3), "highest"),
    ((1.0, 0.95), (3e-7, 3e-7), "highest"), ((0.5, 1.0), (3e-7, 3e-7), "highest"),
])  # fmt: skip
def test_precision_is_the_faster_of_the_exact_ones(monkeypatch, seconds, errors, expected):
    found = {"highest": (seconds[0], errors[0]), "medium": (seconds[1], errors[1])}
    monkeypatch.setattr(runtime, "_time_gemm", lambda: found[torch.get_float32_matmul_precision()])
    machine = runtime.prepare(CPU, "asked for", None)
    assert machine.matmul_precision == torch.get_float32_matmul_precision() == expected
    assert f"error {errors[1]:.1e}" in machine.matmul_reason


def test_the_chosen_precision_has_float32_error():
    runtime.prepare(CPU, "asked for", None)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(300, 300, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    assert float(((left @ right).double() - exact).norm() / exact.norm()) < 2e-6


def test_a_recorded_choice_is_kept(monkeypatch):
    monkeypatch.setattr(runtime, "_time_gemm", lambda: pytest.fail("measured again"))
    recorded = runtime.Machine("cpu", "asked for", 1, "highest", "as before")
    machine = runtime.prepare(CPU, "asked for", recorded)
    assert (machine.matmul_precision, machine.matmul_reason) == ("highest", "as before")
    assert machine.threads == torch.get_num_threads()


def test_a_clock_is_due_once_an_interval(monkeypatch):
    now = iter([0.0, 5.0, 10.0, 12.0, 19.0, 20.0])
    monkeypatch.setattr("globe_stream.engine.context.time.monotonic", lambda: next(now))
    clock = Clock(10)
    assert [clock.due() for _ in range(5)] == [False, True, False, False, True]


# -- interrupts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number, capsys):
    with interrupts.graceful_interrupts() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(number)
        assert interrupt.requested
        assert f"{number.name}: saving the state" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


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
