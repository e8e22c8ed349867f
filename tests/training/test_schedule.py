"""What the schedule decides after good epochs, bad ones and in the warm-up."""

from dataclasses import replace

import pytest
import torch

from globe_stream.config import TrainConfig
from globe_stream.training import schedule
from globe_stream.training.schedule import Schedule, ScheduleState

PLAIN = {"activation": "none", "target_support": "none", "warmup_epochs": 0}


def of(**options):
    return Schedule(TrainConfig(**{**PLAIN, **options}), bases=8, gamma=1.0)


def after(decisions, *errors):
    """The trajectory after epochs that measured `errors`, accepted or rejected as decided."""
    now = decisions.first(torch.ones(4, 8))
    for error in errors:
        worse = decisions.is_worse(now, error)
        now = decisions.reject(now) if worse else decisions.accept(now, error, 8.0)
    return now


def test_a_state_much_worse_than_the_best_is_rejected():
    decisions = of()
    creeping = [0.5 * 1.002**k for k in range(3)]
    now = after(decisions, *creeping[:2])
    assert now.rejected == 0
    assert decisions.is_worse(now, creeping[2]), "0.4 % above the best, 0.2 % above the last"


def test_a_rejection_keeps_the_saved_error_and_drops_the_momentum():
    decisions = of(momentum=0.9)
    now = after(decisions, 0.5, 0.4, 0.3)
    back = decisions.reject(now)
    assert (back.error, back.epoch, back.rejected) == (0.3, 4, 1)
    assert decisions.bank_update_settings(back).momentum == 0.0


def test_momentum_grows_with_the_steps_since_it_was_dropped_up_to_the_limit():
    decisions = of(momentum=0.9, warmup_epochs=0)
    errors = [0.5 * 0.99**k for k in range(40)]
    found = [decisions.bank_update_settings(after(decisions, *errors[:k])).momentum
             for k in (1, 3, 9, 40)]  # fmt: skip
    assert found == [1 / 4, 3 / 6, 9 / 12, 0.9]


def test_a_lone_step_that_fails_is_shortened_more_than_one_with_momentum():
    decisions = of(damping=0.2)
    gathered = after(decisions, 0.5, 0.4, 0.3, 0.2)
    lone = decisions.accept(decisions.reject(gathered), 0.2, 8.0)
    first = decisions.reject(gathered).damping / gathered.damping
    second = decisions.reject(lone).damping / lone.damping
    assert 1 < first < second


def test_damping_grows_with_small_rises_and_returns_while_the_error_falls():
    decisions = of(damping=0.2)
    risen = after(decisions, 0.5, 0.5005, 0.501)
    assert risen.damping == pytest.approx(0.2 * schedule.RISEN**2)
    assert after(decisions, 0.5, 0.5005, *[0.49 - 0.01 * k for k in range(20)]).damping == 0.2


def test_the_warm_up_neither_shortens_steps_nor_counts_as_standing_still():
    decisions = of(warmup_epochs=30, patience=3)
    now = after(decisions, 0.5, *[0.5] * 10, 0.6, 0.5005)
    assert now.damping == decisions.config.damping
    assert not decisions.stopped(now)
    later = replace(now, epoch=30, error=0.5)
    for _ in range(3):
        later = decisions.accept(later, 0.5, 8.0)
    assert decisions.stopped(later)


def test_a_rejected_step_of_lambda_is_halved_and_waits():
    decisions = of(activation="tanh", activation_steps=10)
    now = after(decisions, 0.5, 0.4)
    assert now.lam > now.saved_lam
    back = decisions.reject(now)
    assert (back.lam, back.lam_step) == (now.saved_lam, now.lam_step / 2)
    assert back.damping == now.damping
    waiting = decisions.accept(back, 0.4, 8.0)
    assert waiting.lam == back.lam


def test_lambda_reaches_one_only_after_the_warm_up():
    decisions = of(activation="tanh", activation_steps=4, warmup_epochs=3)
    now, seen = ScheduleState(lam_step=0.25), []
    for k in range(10):
        now = decisions.accept(now, 0.5 * 0.9**k, 8.0)
        seen.append(now.lam)
    assert seen[:2] == [0.0, 0.0]
    assert seen[-1] == 1.0
    assert seen == sorted(seen)


def test_pinv_targets_are_followed_less_far_after_a_rejection():
    decisions = of(targets="pinv")
    now = after(decisions, 0.5, 0.6)
    assert decisions.epoch_settings(decisions.first(torch.ones(4, 8))).target_weight == 1.0
    assert decisions.epoch_settings(now).target_weight > 1.0


def test_the_guard_may_be_opened():
    assert after(of(guard=9.0), 0.1, 0.5).rejected == 0
    assert after(of(guard=0.0), 0.1, 0.1001).rejected == 1
