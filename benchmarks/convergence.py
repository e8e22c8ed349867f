"""Error against passes over the data: our trainer and what people use instead.

    python benchmarks/convergence.py --dataset minilm --passes 40,60,120,450
    python benchmarks/convergence.py MODEL --bases 60 --rank 99 --passes 40,80,150
    python benchmarks/convergence.py MODEL --bases 60 --rank 99 --target-support 12 --entries ours
    python benchmarks/convergence.py MODEL --bases 60 --rank 99 --entries ours --methods all

Every line has the same experts and the same number of parameters. Entries:

    ours   `seed` and `train` through the library, with any of their options given; a line for
           each of `--methods`, the seeding methods
    adam   Adam on adapters, bank and code logits together, full batch in memory; one global bank,
           and one bank a layer; `--adam-activations`, `--adam-codes`, `--adam-rate`
    mod    plain alternating minimisation: pseudo-inverse targets, no warm-up, no momentum
    svd    truncated SVD of each expert
    parts  our step after every U-th of a pass, `--updates`; see updates.py

A pass reads every expert once; the error printed for k passes is the one measured by the k-th. Adam
takes one step a pass, and each of its figures is a run of its own whose rate falls to zero.
Times are those of one run on the machine named at the end.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from adam import ACTIVATIONS, AdamSettings, train_adam
from minilm import write_minilm
from runs import Curve, Task, machine_line, markdown, scratch_folder, train_curve, worst_rise
from updates import updates_curve

from globe_stream.checkpoint.experts import ExpertMatrix
from globe_stream.checkpoint.reader import read_expert
from globe_stream.cli.options import options_of, record_from
from globe_stream.commands.experts import open_experts
from globe_stream.config import METHODS, RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.errors import GlobeError

ENTRIES = ("ours", "adam", "mod", "svd")
MINILM_SIZES = {"bases": 18, "rank": 96}
MOD = {
    "targets": "pinv",
    "guard": 1e9,
    "warmup_epochs": 0,
    "momentum": 0.0,
    "activation": "none",
    "coding_share": 1.0,
}
Line = list[str]


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.argument("model", required=False)
@click.option("--dataset", type=click.Choice(("minilm",)), help="Instead of MODEL.")
@click.option("--passes", default="40,80,150", show_default=True, metavar="K,K,...")
@click.option("--methods", metavar="A,B,...|all", help="Instead of one --method; for `ours`.")
@click.option("--adam-passes", metavar="K,K,...", help="Other passes for Adam; slow.")
@click.option("--entries", default=",".join(ENTRIES), show_default=True, help="Also: parts.")
@click.option(
    "--updates", default="1,2,3,4", show_default=True, help="Bank steps a pass; for parts."
)
@click.option("--adam-activations", default="silu,tanh,identity", show_default=True)
@click.option("--adam-scopes", default="global,layer", show_default=True)
@click.option("--adam-codes", default="softmax", type=click.Choice(("softmax", "exp")))
@click.option("--adam-rate", default=1.0, show_default=True, help="Factor on Adam's rates.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Where runs are kept meanwhile.")
@click.option("--target-support", default="none", show_default=True, metavar="N|none")
@options_of(SelectionConfig, skip=("families",))
@click.option("--families", default="up", type=click.Choice(("up", "gate")), show_default=True)
@options_of(SeedConfig, skip=("bank_scope", "lambda_a"))
@options_of(TrainConfig, skip=("epochs", "target_support"))
@options_of(RuntimeConfig, skip=("checkpoint_every", "wandb_project"))
def main(**given: Any) -> None:
    try:
        with scratch_folder(given["scratch"]) as scratch:
            _run(given, scratch)
    except GlobeError as error:
        raise click.ClickException(str(error)) from error


def _run(given: dict[str, Any], scratch: Path) -> None:
    task = _task(given, scratch)
    passes = _numbers(given["passes"])
    wanted = given["entries"].split(",")
    makers = {"ours": _ours, "adam": _adam, "mod": _mod, "svd": _svd, "parts": _parts}
    unknown = sorted(set(wanted) - set(makers))
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(makers)}", param=None)
    lines: list[Line] = []
    for entry in wanted:
        for line in makers[entry](task, given, passes, scratch):
            click.echo(" ".join(line), err=True)
            lines.append(line)
    _print(task, passes, lines)


def _print(task: Task, passes: list[int], lines: list[Line]) -> None:
    source = open_experts(task.model, task.selection, task.seeding)
    sizes = source.groups[0].sizes
    ratio = sizes.parameter_ratio(0)
    click.echo(
        f"{sizes.experts} experts of {sizes.p} x {sizes.d} ({task.selection.families}), "
        f"m = {sizes.bases}, r = {sizes.rank}: {ratio:.1%} of the parameters, codes not counted\n"
    )
    header = ["relF", *(f"{k} passes" for k in passes), "s / pass", "worst rise", "note"]
    click.echo(markdown(header, lines))
    click.echo(f"\n{machine_line()}")


# -- entries -------------------------------------------------------------------------------------


def _ours(task: Task, given: dict[str, Any], passes: list[int], scratch: Path) -> Iterator[Line]:
    training = _training(given, passes)
    support = training.support_target()
    named = training.activation if support is None else f"{training.activation}, support {support}"
    methods = given["methods"] or task.seeding.method
    for method in METHODS if methods == "all" else methods.split(","):
        seeded = replace(task, seeding=task.seeding.changed(method=method))
        curve = train_curve(seeded, training, record_from(RuntimeConfig, given), scratch)
        yield _curve_line(f"globe-stream, {method}, {named}", curve, passes)


def _mod(task: Task, given: dict[str, Any], passes: list[int], scratch: Path) -> Iterator[Line]:
    training = _training(given, passes).changed(**MOD)
    for kind in ("left_gram", "procrustes"):
        seeded = replace(task, seeding=task.seeding.changed(method="nn_dictionary", proxies=kind))
        curve = train_curve(seeded, training, record_from(RuntimeConfig, given), scratch)
        yield _curve_line(f"plain MOD (pinv targets), {kind} proxies", curve, passes)


def _curve_line(name: str, curve: Curve, passes: list[int]) -> Line:
    note = f"seed {curve.seed_error:.4f}, median support {curve.median_support:.0f}"
    if curve.rejected:
        note += f", {curve.rejected} steps taken back"
    if len(curve.errors) < max(passes):
        note += f", stopped early at {len(curve.errors)}"
    errors = [f"{curve.at(k)[0]:.4f}" for k in passes]
    rate = curve.seconds[-1] / len(curve.seconds)
    return [name, *errors, f"{rate:.2f}", f"{curve.worst_rise:.4f}", note]


def _adam(task: Task, given: dict[str, Any], passes: list[int], scratch: Path) -> Iterator[Line]:
    del scratch
    group = open_experts(task.model, task.selection, task.seeding).groups[0]
    weights = torch.stack([read_expert(expert) for expert in group.experts])
    chosen = _numbers(given["adam_passes"]) if given["adam_passes"] else passes
    for scope in given["adam_scopes"].split(","):
        groups = _groups(group.experts, scope)
        for activation in given["adam_activations"].split(","):
            if activation not in ACTIVATIONS:
                raise click.BadParameter(f"{activation!r} is not one of {', '.join(ACTIVATIONS)}")
            settings = AdamSettings(
                group.rank, group.bases, activation, given["adam_codes"], given["adam_rate"]
            )
            found = {k: train_adam(weights, groups, settings, k) for k in chosen}
            errors = [f"{found[k].error:.4f}" if k in found else "" for k in passes]
            rate = sum(r.seconds for r in found.values()) / sum(found)
            more = [f"{r.error:.4f} after {k}" for k, r in found.items() if k not in passes]
            note = f"{given['adam_codes']} codes" + "".join(f", {text}" for text in more)
            yield [f"Adam, {activation}, {scope} bank", *errors, f"{rate:.2f}", "", note]


def _svd(task: Task, given: dict[str, Any], passes: list[int], scratch: Path) -> Iterator[Line]:
    del given, scratch
    group = open_experts(task.model, task.selection, task.seeding).groups[0]
    lost = whole = 0.0
    for expert in group.experts:
        energy = torch.linalg.svdvals(read_expert(expert).double()).square()
        lost += float(energy[group.sizes.svd_rank :].sum())
        whole += float(energy.sum())
    error = f"{(lost / whole) ** 0.5:.4f}"
    yield ["truncated SVD", *[error] * len(passes), "", "", f"rank {group.sizes.svd_rank}"]


def _parts(task: Task, given: dict[str, Any], passes: list[int], scratch: Path) -> Iterator[Line]:
    training = _training(given, passes)
    settings = record_from(RuntimeConfig, given)
    for updates in (int(part) for part in given["updates"].split(",")):
        errors, seconds = updates_curve(task, training, settings, updates, scratch)
        shown = [f"{errors[k - 1]:.4f}" for k in passes]
        rate = f"{seconds / len(errors):.2f}"
        yield [
            f"{updates} bank steps a pass",
            *shown,
            rate,
            f"{worst_rise(errors):.4f}",
            "no step taken back",
        ]


# -- pieces --------------------------------------------------------------------------------------


def _task(given: dict[str, Any], scratch: Path) -> Task:
    model = given["model"]
    if (model is None) == (given["dataset"] is None):
        raise click.UsageError("give either MODEL or --dataset")
    seeding = record_from(SeedConfig, given).changed(bank_scope="global")
    if given["dataset"] == "minilm":
        model = str(write_minilm(scratch / "minilm"))
        if seeding.bases is None and seeding.rank is None:
            seeding = seeding.changed(**MINILM_SIZES)
    selection = record_from(SelectionConfig, given).changed(families=given["families"])
    return Task(str(model), selection, seeding)


def _training(given: dict[str, Any], passes: list[int]) -> TrainConfig:
    """The options that were given, with this command's own defaults."""
    own = {"target_support": given["target_support"], "epochs": max(passes)}
    return record_from(TrainConfig, given).changed(**own)


def _groups(experts: tuple[ExpertMatrix, ...], scope: str) -> list[list[int]]:
    """Positions of the experts that share a bank."""
    if scope == "global":
        return [list(range(len(experts)))]
    if scope != "layer":
        raise click.BadParameter(f"{scope!r} is not one of global, layer")
    layers = sorted({expert.layer for expert in experts})
    return [[k for k, e in enumerate(experts) if e.layer == layer] for layer in layers]


def _numbers(text: str) -> list[int]:
    """Ascending numbers of passes, of at least 2."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: whole numbers with commas are needed") from error
    if numbers[0] < 2:
        raise click.BadParameter(f"{text!r}: at least 2 passes are needed")
    return numbers


if __name__ == "__main__":
    main()
