"""Documents as text for people."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from globe_stream.formatting import count_of, format_bytes, format_seconds

Document = dict[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under `heads`, the first left-aligned, the others right-aligned.

    Ruled and coloured on a terminal, plain lines elsewhere.
    """
    lines = [list(heads), *(list(row) for row in rows)]
    return _ruled(lines) if sys.stdout.isatty() else _plain(lines)


def _plain(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _ruled(lines: list[list[str]]) -> str:
    ruled = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, head in enumerate(lines[0]):
        ruled.add_column(Text(head), justify="left" if k == 0 else "right", overflow="fold")
    for line in lines[1:]:
        ruled.add_row(*map(Text, line))
    console = Console()
    with console.capture() as captured:
        console.print(ruled)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).rstrip()


def inventory(document: Document) -> str:
    """`inspect`."""
    heads = ("family", "experts", "layers", "a layer", "p x d", "dtype", "size")
    rows = [
        (
            name,
            str(family["experts"]),
            _ranges(family["layers"]),
            str(family["experts_per_layer"]),
            f"{family['p']} x {family['d']}",
            family["dtype"],
            format_bytes(family["bytes"]),
        )
        for name, family in document["families"].items()
    ]
    head = (
        f"{document['model']}: {document['model_type']}, layout {document['layout']}, "
        f"{count_of(document['shards'], 'shard')}, {format_bytes(document['bytes'])}"
    )
    return f"{head}\n\n{table(heads, rows)}"


def _spilled(document: Document) -> list[str]:
    """What banks on disk cost, if there are any."""
    traffic = document["spilled_epoch_bytes"]
    if not traffic:
        return []
    return [
        f"banks on disk: {format_bytes(traffic)} written and read an epoch; "
        "a larger --memory saves passes over them"
    ]


def estimate(document: Document) -> str:
    """`plan`."""
    heads = ("bank", "experts", "p x d", "m", "r", "kept", "SVD rank")
    rows = [
        (
            key,
            str(group["experts"]),
            f"{group['p']} x {group['d']}",
            str(group["bases"]),
            str(group["rank"]),
            f"{group['parameter_ratio']:.1%}",
            str(group["svd_rank"]),
        )
        for key, group in document["units"].items()
    ]
    stages = [
        (
            stage["stage"],
            format_bytes(stage["memory_bytes"]),
            str(stage["batch"]),
            "on disk" if stage["spill"] else "resident",
        )
        for stage in document["stages"]
    ]
    return "\n".join(
        (
            table(heads, rows),
            "",
            table(("stage", "peak memory", "batch", "bank"), stages),
            "",
            f"memory: {format_bytes(document['peak_memory_bytes'])} of "
            f"{format_bytes(document['memory_budget_bytes'])}, of which "
            f"{format_bytes(document['base_bytes'])} for the program itself; "
            f"--memory must be {document['least_memory_bytes'] >> 20}MiB at least",
            f"reading: {format_bytes(document['seed_bytes_read'])} to seed, "
            f"{format_bytes(document['epoch_bytes_read'])} an epoch, "
            f"{format_bytes(document['bytes_read'])} in {document['passes']} passes in all",
            f"arithmetic: {document['seed_flops'] / 1e12:.2f} TFLOP to seed, "
            f"{document['warmup_epoch_flops'] / 1e12:.2f} the first epoch, "
            f"{document['epoch_flops'] / 1e12:.2f} one after the warm-up",
            _time(document),
            *_spilled(document),
            f"disk: {format_bytes(document['disk_bytes'])} at most, "
            f"{format_bytes(document['disk_free_bytes'])} free",
        )
    )


def _time(document: Document) -> str:
    """What a run takes at the rates that were measured."""
    rates = document["rates"]
    disk = "no disk" if rates["disk"] is None else f"{rates['disk'] / 1e9:.1f} GB/s"
    seed, first, later, whole = (
        format_seconds(document[f"{part}seconds"])
        for part in ("seed_", "warmup_epoch_", "epoch_", "")
    )
    return (
        f"time: about {whole} here ({rates['single'] / 1e9:.0f} GFLOP/s in large products, "
        f"{disk}): {seed} to seed, {first} the first epoch, {later} one after the warm-up"
    )


def synthetic(document: Document) -> str:
    """`synth`."""
    return (
        f"{document['out']}: {count_of(document['shards'], 'shard')}, "
        f"{format_bytes(document['bytes'])} in {format_seconds(document['seconds'])}"
    )


def export(document: Document) -> str:
    """`export`."""
    errors = ", ".join(
        f"{family} relF {error:.4f}" for family, error in document["relative_errors"].items()
    )
    return "\n".join(
        filter(
            None,
            (
                f"{document['out']}: {document['kind']} in {document['dtype']}, "
                f"{count_of(document['files'], 'file')}, "
                f"{format_bytes(document['bytes'])} (the source has "
                f"{format_bytes(document['source_bytes'])})",
                errors,
                f"peak memory {format_bytes(document['peak_bytes'])}, priced "
                f"{format_bytes(document['price_bytes'])}",
                document["note"],
                document.get("url"),
            ),
        )
    )


def finished(document: Document) -> str:
    """`run` and `demo`."""
    parts = [status(document), *(export(item) for item in document["exports"])]
    if document["report"]:
        parts.append(f"report: {document['report']}")
    return "\n\n".join(parts)


def sweep(document: Document) -> str:
    """`sweep`."""
    names = document["options"]
    several = len({row["unit"] for row in document["rows"]}) > 1
    trained = any(row["epoch"] for row in document["rows"])
    scores = {point["name"]: point["bits_per_byte"] for point in document["points"]}
    heads = [
        *names,
        *(["bank"] if several else []),
        *("proxies", "kept", "relF", "SVD relF"),
        *(["seed relF"] if trained else []),
        *("explained", "support"),
        *("method s", "total s", "read", "passes", "peak memory"),
        *(["bits/byte"] if document["original_bits_per_byte"] is not None else []),
    ]
    rows = [
        [
            *(str(row["options"].get(name, "-")) for name in names),
            *([row["unit"]] if several else []),
            row["proxies"],
            f"{row['parameter_ratio']:.1%}",
            f"{row['relative_frobenius_error']:.4f}",
            f"{row['svd_equal_parameters_relative_error']:.4f}",
            *([f"{row['seed_relative_frobenius_error']:.4f}"] if trained else []),
            f"{row['explained_variance']:.3f}",
            f"{row['median_support']:g}",
            f"{row['method_seconds']:.1f}",
            f"{row['seconds']:.1f}",
            format_bytes(row["bytes_read"]),
            f"{row['passes']:.2f}",
            format_bytes(row["peak_memory_bytes"]),
            *([] if scores[row["point"]] is None else [f"{scores[row['point']]:.4f}"]),
        ]
        for row in document["rows"]
    ]
    return "\n".join((table(heads, rows), "", *_shared(document)))


def _shared(document: Document) -> list[str]:
    """What a sweep shared, and what its scores are to be compared with."""
    passes, original = document["passes"], document["original_bits_per_byte"]
    points = len(document["points"])
    lines = [
        f"passes over the experts: {passes['read']}, {passes['saved']} fewer than the "
        f"{passes['alone']} of {count_of(points, 'point')} by themselves; "
        f"warm starts made: {passes['warm_starts']}, Gram matrices formed: "
        f"{passes['gram_matrices']}"
    ]
    if original is not None:
        lines.append(f"bits per byte of the original: {original:.4f}")
    return lines


def evaluation(document: Document) -> str:
    """`eval`."""
    shown = errors(document)
    if "comparison" in document:
        shown += "\n\n" + comparison(document["comparison"])
    return shown


def errors(document: Document) -> str:
    """The errors of `eval`."""
    heads = ("run", "family", "relF", "measured", "SVD relF", "best layer", "worst layer")
    rows = []
    for run, kinds in document["errors"].items():
        for family, errors in kinds["recorded"].items():
            layers = errors["by_layer"].values()
            rows.append(
                (
                    run,
                    family,
                    f"{errors['relative_frobenius_error']:.4f}",
                    _family_error(kinds, "measured", family),
                    _family_error(kinds, "svd_equal_parameters", family),
                    f"{min(layers):.4f}",
                    f"{max(layers):.4f}",
                )
            )
    return table(heads, rows)


def _family_error(kinds: Document, kind: str, family: str) -> str:
    return f"{kinds[kind][family]['relative_frobenius_error']:.4f}" if kind in kinds else "-"


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


def comparison(document: Document) -> str:
    """The scores of `eval --text`, in Markdown."""
    lines = [
        "| run | model | m x r | parameters kept | bits a weight | relF | bits per byte | "
        "perplexity | tokens/s | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows, windows = document["rows"], document["windows"]
    scored, wanted = rows[0]["score"]["windows"], windows["count"]
    note = f"Scored on {scored} windows of {windows['length']} tokens."
    if scored < wanted:
        note += f" The text is too short for the {wanted} that were asked for."
    return "\n".join([*lines, *map(_scored_model, rows), "", note]) + "\n"


def _scored_model(row: Document) -> str:
    size = f"{row['bases']} x {row['rank']}" if row["bases"] else ""
    kept = f"{row['parameters_kept']:.1%}" if row["parameters_kept"] else ""
    bits = f"{row['bits_per_weight']:.2f}" if row["bits_per_weight"] else ""
    errors = ", ".join(f"{name} {value:.4f}" for name, value in row["relative_errors"].items())
    score = row["score"]
    return (
        f"| {row['run']} | {_model_name(row['model'])} | {size} | {kept} | {bits} | {errors} | "
        f"{score['bits_per_byte']:.4f} | {score['perplexity']:.4f} | "
        f"{score['tokens_per_second']:.0f} | {format_bytes(score['peak_memory_bytes'])} |"
    )


def _model_name(name: str) -> str:
    """A variant in words: `rtn-4` is "round to nearest, 4 bits"."""
    kind = name.rstrip("-0123456789")
    bits = name[len(kind) + 1 :].replace("-", ",")
    return _MODELS[kind] + (f", {bits} bits" if bits else "")


def verification(document: Document) -> str:
    """`verify`."""
    looked = (
        f"{document['path']}: {document['kind']}, {count_of(document['arrays'], 'array')} and "
        f"{count_of(document['files'], 'file')}, {format_bytes(document['bytes'])}"
    )
    return "\n".join(
        (f"{looked}: {'all well' if document['ok'] else 'damaged'}", *document["problems"])
    )


def status(document: Document) -> str:
    """`status`, `seed` and `train`."""
    heads = ("family", "epoch", "relF", "SVD relF", "kept", "m x r", "support", "lambda")
    rows = [_family_row(name, family) for name, family in document["families"].items()]
    return "\n".join(
        (
            f"{document['run']}: {document['state']}",
            "",
            table(heads, rows),
            "",
            f"peak memory {format_bytes(document['peak_memory_bytes'])} of "
            f"{format_bytes(document['memory_budget_bytes'])}, "
            f"{format_bytes(document['bytes_read'])} read, {format_seconds(document['seconds'])}",
            *_kept(document),
            *_warnings(document),
        )
    )


def _family_row(name: str, family: Document) -> tuple[str, ...]:
    size = f"{family['bases']} x {family['rank']}"
    if "epoch" not in family:
        return (name, "-", "-", "-", "-", size, "-", "-")
    svd = family["svd_equal_parameters_relative_error"]
    return (
        name,
        str(family["epoch"]),
        f"{family['relative_frobenius_error']:.4f}",
        "-" if svd is None else f"{svd:.4f}",
        f"{family['parameter_ratio']:.1%}",
        size,
        f"{family['median_support']:g}",
        f"{family['activation_lambda']:g}",
    )


def _kept(document: Document) -> list[str]:
    """A line on the experts that are in no bank because a matrix of theirs is zero everywhere."""
    places = ", ".join(f"{layer}:{number}" for layer, number in document["zero_experts"])
    return [f"zero everywhere, kept as stored (layer:expert): {places}"] if places else []


def _warnings(document: Document) -> list[str]:
    """One line for every family whose bank is not worth having (yet)."""
    lines = []
    for name, family in document["families"].items():
        svd = family.get("svd_equal_parameters_relative_error")
        if svd is not None and family["relative_frobenius_error"] >= svd:
            lines.append(
                f"{name}: the bank does not beat the truncated SVD of equal size "
                f"({svd:.4f}); train more epochs or choose another size"
            )
        if family.get("parameter_ratio", 0) >= 1:
            lines.append(
                f"{name}: bank and adapters are larger than the experts they replace; "
                "choose a smaller rank or fewer bases"
            )
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    """0-3, 5 for [0, 1, 2, 3, 5]."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
