"""Where runs stand and what was exported of them, as text for people."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from globe_stream.cli.tables import table
from globe_stream.formatting import count_of, format_bytes, format_seconds

if TYPE_CHECKING:
    from globe_stream.commands.run_recipe import RecipeDocument
    from globe_stream.engine.status import FamilySeeding, FamilyStatus, StatusDocument
    from globe_stream.export.result import ExportResult


def status(run: "StatusDocument") -> str:
    """`status`, `seed`, `train` and `merge`."""
    heads = ("family", "epoch", "relF", "SVD relF", "kept", "m x r", "support", "lambda")
    rows = [_family_row(name, family) for name, family in run.families.items()]
    return "\n".join(
        (
            f"{run.run}: {run.state}",
            "",
            table(heads, rows),
            "",
            f"peak memory {format_bytes(run.peak_memory_bytes)} of "
            f"{format_bytes(run.memory_budget_bytes)}, "
            f"{format_bytes(run.bytes_read)} read, {format_seconds(run.seconds)}",
            *_kept(run),
            *_warnings(run),
        )
    )


def _family_row(name: str, family: "FamilyStatus | FamilySeeding") -> tuple[str, ...]:
    from globe_stream.engine.status import FamilySeeding

    size = f"{family.bases} x {family.rank}"
    if isinstance(family, FamilySeeding):
        return (name, "-", "-", "-", "-", size, "-", "-")
    svd = family.svd_equal_parameters_relative_error
    return (
        name,
        str(family.epoch),
        f"{family.relative_frobenius_error:.4f}",
        "-" if svd is None else f"{svd:.4f}",
        f"{family.parameter_ratio:.1%}",
        size,
        f"{family.median_support:g}",
        f"{family.activation_lambda:g}",
    )


def _kept(run: "StatusDocument") -> list[str]:
    """A line on the experts that are in no bank because a matrix of theirs is zero everywhere."""
    places = ", ".join(f"{layer}:{number}" for layer, number in run.zero_experts)
    return [f"zero everywhere, kept as stored (layer:expert): {places}"] if places else []


def _warnings(run: "StatusDocument") -> Iterator[str]:
    """One line for every family whose bank is not worth having (yet)."""
    from globe_stream.engine.status import FamilySeeding

    for name, family in run.families.items():
        if isinstance(family, FamilySeeding):
            continue
        svd = family.svd_equal_parameters_relative_error
        if svd is not None and family.relative_frobenius_error >= svd:
            yield (
                f"{name}: the bank does not beat the truncated SVD of equal size "
                f"({svd:.4f}); train more epochs or choose another size"
            )
        if family.parameter_ratio >= 1:
            yield (
                f"{name}: bank and adapters are larger than the experts they replace; "
                "choose a smaller rank or fewer bases"
            )


def export(made: "ExportResult") -> str:
    """`export`."""
    errors = ", ".join(
        f"{family} relF {error:.4f}" for family, error in made.relative_errors.items()
    )
    calibration = made.calibration
    if calibration is not None:
        weighted = ", ".join(
            f"{family} {error:.4f}" for family, error in calibration.input_weighted_error.items()
        )
        errors += f"; weighted by the inputs of {calibration.tokens:,} tokens of text: {weighted}"
    lines = (
        f"{made.out}: {made.kind} in {made.dtype}, {count_of(made.files, 'file')}, "
        f"{format_bytes(made.bytes)} (the source has {format_bytes(made.source_bytes)})",
        errors,
        f"peak memory {format_bytes(made.peak_bytes)}, priced {format_bytes(made.price_bytes)}",
        made.note,
        made.url,
    )
    return "\n".join(filter(None, lines))


def finished(recipe: "RecipeDocument") -> str:
    """`run` and `demo`."""
    parts = [status(recipe), *map(export, recipe.exports)]
    if recipe.report:
        parts.append(f"report: {recipe.report}")
    return "\n\n".join(parts)
