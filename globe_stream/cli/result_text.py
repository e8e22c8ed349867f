"""Results of sweep, eval and verify as text for people."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from globe_stream.cli.tables import table
from globe_stream.formatting import count_of, format_bytes

if TYPE_CHECKING:
    from globe_stream.commands.evaluate import Evaluation, RunErrors
    from globe_stream.commands.sweep.records import SweepResult, SweepRow
    from globe_stream.evaluation.comparison import ModelComparison, Row
    from globe_stream.evaluation.reconstruction import FamilyError, FamilyErrors
    from globe_stream.store.verify import Verification

_MODELS = {
    "original": "original",
    "dense": "bank, dense export",
    "patched": "bank, patched",
    "model": "bank, as a model",
    "svd": "truncated SVD, equal parameters",
    "rtn": "round to nearest",
    "svd-rtn": "truncated SVD, round to nearest",
    "dense-rtn": "bank, dense, round to nearest",
}


def sweep(result: "SweepResult") -> str:
    """`sweep`; columns in which all rows are alike are left out."""
    names = result.options
    several = len({row.unit for row in result.rows}) > 1
    trained = any(row.epoch for row in result.rows)
    scores = {point.name: point.bits_per_byte for point in result.points}
    heads = [
        *names,
        *(["bank"] if several else []),
        *("proxies", "kept", "relF", "SVD relF"),
        *(["seed relF"] if trained else []),
        *("explained", "support"),
        *("method s", "total s", "read", "passes", "peak memory"),
        *(["bits/byte"] if result.original_bits_per_byte is not None else []),
    ]
    rows = [
        [
            *(str(row.options.get(name, "-")) for name in names),
            *([row.unit] if several else []),
            *_swept(row, trained=trained),
            *([] if (score := scores[row.point]) is None else [f"{score:.4f}"]),
        ]
        for row in result.rows
    ]
    return "\n".join((table(heads, rows), "", *_shared(result)))


def _swept(row: "SweepRow", *, trained: bool) -> Iterator[str]:
    """The figures of one row; the error of the seed apart from that of the `trained` state."""
    yield row.proxies
    yield f"{row.parameter_ratio:.1%}"
    yield f"{row.relative_frobenius_error:.4f}"
    yield f"{row.svd_equal_parameters_relative_error:.4f}"
    if trained:
        yield f"{row.seed_relative_frobenius_error:.4f}"
    yield f"{row.explained_variance:.3f}"
    yield f"{row.median_support:g}"
    yield f"{row.method_seconds:.1f}"
    yield f"{row.seconds:.1f}"
    yield format_bytes(row.bytes_read)
    yield f"{row.passes:.2f}"
    yield format_bytes(row.peak_memory_bytes)


def _shared(result: "SweepResult") -> list[str]:
    """What a sweep shared, and what its scores are to be compared with."""
    passes, original = result.passes, result.original_bits_per_byte
    lines = [
        f"passes over the experts: {passes.done}, {passes.saved} fewer than the "
        f"{passes.alone} of {count_of(len(result.points), 'point')} by themselves; "
        f"warm starts made: {passes.warm_starts}, Gram matrices formed: {passes.gram_matrices}"
    ]
    if original is not None:
        lines.append(f"bits per byte of the original: {original:.4f}")
    return lines


def evaluation(found: "Evaluation") -> str:
    """`eval`."""
    shown = errors(found.errors)
    return shown if found.comparison is None else f"{shown}\n\n{comparison(found.comparison)}"


def errors(runs: Mapping[str, "RunErrors"]) -> str:
    """The errors of `eval`, by run."""
    heads = ("run", "family", "relF", "measured", "SVD relF", "best layer", "worst layer")
    rows = [
        (
            run,
            family,
            f"{recorded.relative_frobenius_error:.4f}",
            _family_error(found.measured, family),
            _family_error(found.svd_equal_parameters, family),
            f"{min(recorded.by_layer.values()):.4f}",
            f"{max(recorded.by_layer.values()):.4f}",
        )
        for run, found in runs.items()
        for family, recorded in found.recorded.items()
    ]
    return table(heads, rows)


def _family_error(
    known: "Mapping[str, FamilyErrors | FamilyError] | None",
    family: str,
) -> str:
    return "-" if known is None else f"{known[family].relative_frobenius_error:.4f}"


def comparison(found: "ModelComparison") -> str:
    """The scores of `eval --text`, in Markdown."""
    lines = [
        "| run | model | m x r | parameters kept | bits a weight | relF | bits per byte | "
        "perplexity | tokens/s | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    scored, wanted = found.rows[0].score.windows, found.windows.count
    note = f"Scored on {scored} windows of {found.windows.length} tokens."
    if scored < wanted:
        note += f" The text is too short for the {wanted} that were asked for."
    return "\n".join([*lines, *map(_scored_model, found.rows), "", note]) + "\n"


def _scored_model(row: "Row") -> str:
    size = f"{row.bases} x {row.rank}" if row.bases else f"rank {row.rank}" if row.rank else ""
    kept = f"{row.parameters_kept:.1%}" if row.parameters_kept else ""
    bits = f"{row.bits_per_weight:.2f}" if row.bits_per_weight else ""
    errors = ", ".join(f"{name} {value:.4f}" for name, value in row.relative_errors.items())
    score = row.score
    return (
        f"| {row.run} | {_model_name(row.model)} | {size} | {kept} | {bits} | {errors} | "
        f"{score.bits_per_byte:.4f} | {score.perplexity:.4f} | "
        f"{score.tokens_per_second:.0f} | {format_bytes(score.peak_memory_bytes)} |"
    )


def _model_name(name: str) -> str:
    """A variant in words: `rtn-4` is "round to nearest, 4 bits"."""
    kind = name.rstrip("-0123456789")
    bits = name[len(kind) + 1 :].replace("-", ",")
    return _MODELS[kind] + (f", {bits} bits" if bits else "")


def verification(found: "Verification") -> str:
    """`verify`."""
    looked = (
        f"{found.path}: {found.kind}, {count_of(found.arrays, 'array')} and "
        f"{count_of(found.files, 'file')}, {format_bytes(found.bytes)}"
    )
    return "\n".join((f"{looked}: {'all well' if found.ok else 'damaged'}", *found.problems))
