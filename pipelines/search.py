"""An Optuna search over sizes and options, where a grid would have too many points.

    pip install globe-stream optuna
    python pipelines/search.py MODEL --out cache/search --trials 30 --epochs 10

Two objectives, the error and the parameters kept: what is printed in the end are the trials that no
other beats in both. Every trial is a run in `--out`; the same command goes on where the last one
ended, up to `--trials` in all. For a few values of a few options take `globe-stream sweep`, which
reads what its points share once.
"""

import argparse
from pathlib import Path

import optuna

from globe_stream.commands.seed import seed
from globe_stream.commands.train import train
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig


def main() -> None:
    """Search, and print the best trials."""
    given = _arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="globe-stream",
        storage=f"sqlite:///{given.out / 'study.db'}",
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=0),
        load_if_exists=True,
    )
    done = sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
    left = max(0, given.trials - done)
    study.optimize(lambda trial: objectives(trial, given), n_trials=left)
    for trial in sorted(study.best_trials, key=lambda one: one.values[1]):
        error, kept = trial.values
        print(f"trial {trial.number}: relF {error:.4f}, {kept:.1%} kept, {trial.params}")


def objectives(trial: optuna.Trial, given: argparse.Namespace) -> tuple[float, float]:
    """relF and parameters kept of one trial; change here what is searched over."""
    support = trial.suggest_int("target_support", 4, 24)
    seeding = SeedConfig(
        rank_ratio=trial.suggest_float("rank_ratio", 0.4, 0.9),
        basis_ratio=trial.suggest_float("basis_ratio", 0.05, 0.5, log=True),
        dictionary_support=2 * support,
    )
    training = TrainConfig(
        epochs=given.epochs,
        warmup_epochs=trial.suggest_int("warmup_epochs", 0, max(1, given.epochs // 3)),
        target_support=str(support),
        gain=trial.suggest_float("gain", 0.3, 1.5, log=True),
    )
    selection = SelectionConfig(families=given.families)
    runtime = RuntimeConfig(memory=given.memory)
    run = given.out / f"trial-{trial.number:04d}"
    seed(given.model, run, selection, seeding, runtime, silent=True)
    status = train(run, training, runtime, inherit=False, silent=True)
    families = status.families.values()
    whole = sum(own.experts * own.p * own.d for own in families)
    kept = sum(own.parameter_ratio * own.experts * own.p * own.d for own in families)
    return status.relative_frobenius_error, kept / whole


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the study")
    parser.add_argument("--trials", type=int, default=30, help="in all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--families", default="up")
    parser.add_argument("--memory", default="4GiB")
    return parser.parse_args()


if __name__ == "__main__":
    main()
