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
        now = decisions.reject(now) if worse else decisions.accept(now, error, 8.0, 1.0)
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
    lone = decisions.accept(decisions.reject(gathered), 0.2, 8.0, 1.0)
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
        later = decisions.accept(later, 0.5, 8.0, 1.0)
    assert decisions.stopped(later)


def test_a_rejected_step_of_lambda_is_halved_and_waits():
    decisions = of(activation="tanh", activation_steps=10)
    now = after(decisions, 0.5, 0.4)
    assert now.lam > now.saved_lam
    back = decisions.reject(now)
    assert (back.lam, back.lam_step) == (now.saved_lam, now.lam_step / 2)
    assert back.damping == now.damping
    waiting = decisions.accept(back, 0.4, 8.0, 1.0)
    assert waiting.lam == back.lam


def test_lambda_reaches_one_only_after_the_warm_up():
    decisions = of(activation="tanh", activation_steps=4, warmup_epochs=3)
    now, seen = ScheduleState(lam_step=0.25), []
    for k in range(10):
        now = decisions.accept(now, 0.5 * 0.9**k, 8.0, 1.0)
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


def stay(decisions, now, epochs, stability):
    for _ in range(epochs):
        now = decisions.accept(now, now.error, 8.0, stability)
    return now


def test_a_plateau_does_not_stop_training_while_supports_change():
    decisions = of(patience=4)
    start = after(decisions, 0.5)
    assert not decisions.stopped(stay(decisions, start, 20, 0.8))
    assert decisions.stopped(stay(decisions, start, 4, 0.99))
    late = stay(decisions, stay(decisions, start, 20, 0.8), 3, 0.99)
    assert not decisions.stopped(late)
    assert decisions.stopped(stay(decisions, late, 1, 0.99))


def test_training_that_only_takes_steps_back_stops():
    decisions = of(patience=4)
    now = decisions.accept(after(decisions, 0.5), 0.5, 8.0, 0.1)
    for _ in range(4):
        now = decisions.reject(now)
    assert decisions.stopped(now)


@pytest.mark.parametrize("damping", [0.2, 4.0, 8.0, 16.0])
def test_damping_never_becomes_less_when_the_error_rises(damping):
    decisions = of(damping=damping)
    now = after(decisions, 0.5)
    risen = decisions.accept(now, 0.5005, 8.0, 1.0)
    assert risen.damping > damping
    for _ in range(20):
        before, now = now, decisions.reject(now)
        assert now.damping >= before.damping >= damping


def test_the_first_temperature_respects_its_limits():
    codes = torch.rand(20, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    for limits in ((0.01, 0.5), (3.0, 9.0)):
        low, high = limits
        decisions = of(target_support="4", temperature_min=low, temperature_max=high)
        assert low <= decisions.first(codes).temperature <= high


def test_a_lone_warm_up_step_that_is_rejected_becomes_shorter():
    decisions = of(warmup_epochs=30)
    now = after(decisions, 0.5)
    assert decisions.bank_update_settings(now).length == 1.0
    first = decisions.reject(now)
    again = decisions.reject(decisions.accept(first, 0.5, 8.0, 1.0))
    lengths = [decisions.bank_update_settings(state).length for state in (now, first, again)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < lengths[0]
    assert decisions.epoch_settings(again).coding_share == lengths[-1]
    for errors in ((0.5, 0.45), (0.5, 0.45, 0.4, 0.35)):
        dropped = decisions.reject(after(decisions, *errors))
        assert decisions.bank_update_settings(dropped).length == 1.0, "the momentum is to blame"
