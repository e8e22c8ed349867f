"""`report`: one HTML file with everything in it, pictures included."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from globe_stream import __version__
from globe_stream.engine.status import FamilySeeding, FamilyStatus, StatusDocument
from globe_stream.errors import GlobeError, InputError, option
from globe_stream.formatting import format_bytes, format_seconds
from globe_stream.io import files
from globe_stream.io.records import Json
from globe_stream.report import plots as pictures
from globe_stream.report.data import GroupData, ReportData, gather
from globe_stream.report.pooling import pool_stages

NAME = "report.html"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d8dee6; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; display: block; }
.good { color: #1c6b32; } .bad { color: #a3260f; font-weight: 600; }
"""


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of the run directory `run` to `out` (default RUN/report.html).

    The file is complete in itself: nothing is loaded from elsewhere. Returns its path. Raises
    InputError when `run` is no run directory, `out` cannot be written or the disk is full;
    nothing is then left behind.
    """
    target = out or run / NAME
    if target.is_dir():
        raise InputError(
            f"{target}: is a folder. Give the HTML file to write, with {option('out')}"
        )
    page = render(gather(run))
    made = files.make_folder(target.parent)
    try:
        files.write_text(target, page)
    except GlobeError:
        files.remove_empty(made)
        raise
    return target


def render(data: ReportData) -> str:
    """The page as text."""
    status = data.status
    parts = [
        f"<h1>{_text(status.config['model'])}</h1>",
        f"<p>Run {_text(status.run)}: {_text(status.state)}. globe-stream {__version__}.</p>",
        "<h2>Result</h2>",
        _families(status),
        *(_verdicts(status)),
    ]
    if data.groups:
        parts += _pictures(data)
    parts += [
        "<h2>Memory and time</h2>",
        _costs(data),
        "<h2>Settings</h2>",
        _table(("setting", "value"), _flat(status.config)),
    ]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>globe-stream: {_text(status.run)}</title><style>{_STYLE}</style></head>"
        f"<body>\n{body}\n</body></html>\n"
    )


def _families(status: StatusDocument) -> str:
    head = (
        "family",
        "experts",
        "p x d",
        "atoms m x r",
        "parameters kept",
        "seeding",
        "explained variance",
        "passes",
        "relF",
        "SVD of equal size",
        "median support",
    )
    rows = []
    for name, one in status.families.items():
        sizes = (name, one.experts, f"{one.p} x {one.d}", _banks(one))
        if isinstance(one, FamilySeeding):
            rows.append((*sizes, "", one.seeding_method, *[""] * 5))
            continue
        rows.append(
            (
                *sizes,
                f"{one.parameter_ratio:.1%}",
                one.seeding_method,
                f"{one.explained_variance:.3f}",
                one.passes,
                f"{one.relative_frobenius_error:.4f}",
                _number(one.svd_equal_parameters_relative_error, "{:.4f}"),
                f"{one.median_support:.0f}",
            )
        )
    return _table(head, rows)


def _banks(family: FamilyStatus | FamilySeeding) -> str:
    size, count = f"{family.bases} x {family.rank}", family.banks
    return size if count == 1 else f"{count} banks of {size}"


def _verdicts(status: StatusDocument) -> list[str]:
    """Whether each family's bank is worth having. Source: docs/design.md, section Problem."""
    lines = []
    for name, one in status.families.items():
        if isinstance(one, FamilySeeding) or one.svd_equal_parameters_relative_error is None:
            continue
        found, svd = one.relative_frobenius_error, one.svd_equal_parameters_relative_error
        if found < svd:
            lines.append(
                f'<p class="good">{_text(name)}: the bank\'s error is '
                f"{1 - found / svd:.0%} below that of the SVD of equal size.</p>"
            )
        else:
            lines.append(
                f'<p class="bad">{_text(name)}: the truncated SVD of equal size is '
                f"better ({svd:.4f} against {found:.4f}): this bank is not worth "
                "having. Train longer, or change its size.</p>"
            )
    return lines


def _pictures(data: ReportData) -> list[str]:
    groups = data.groups
    families = dict.fromkeys(group.family for group in groups)
    maps = [
        _image(pictures.error_map(family, _of(groups, family)), f"error of every expert, {family}")
        for family in families
    ]
    parts = [
        "<h2>Error by epoch</h2>",
        _image(pictures.error_curve(groups), "error by epoch"),
        "<h2>Error by layer and expert</h2>",
        *maps,
        "<h2>Supports</h2>",
        _image(pictures.supports(groups), "histogram of supports"),
        "<h2>Popularity of atoms</h2>",
        _image(pictures.popularity(groups), "popularity"),
    ]
    if any(group.eigenvalues is not None for group in groups):
        parts += [
            "<h2>Spectrum of the proxies</h2>",
            _image(pictures.spectrum(groups), "eigenvalues of the Gram matrix"),
        ]
    return parts


def _of(groups: Sequence[GroupData], family: str) -> list[GroupData]:
    return [group for group in groups if group.family == family]


def _costs(data: ReportData) -> str:
    status = data.status
    table = _table(
        ("", ""),
        [
            ("peak memory", format_bytes(status.peak_memory_bytes)),
            ("memory budget", format_bytes(status.memory_budget_bytes)),
            ("read from the checkpoint", format_bytes(status.bytes_read)),
            ("time", format_seconds(status.seconds)),
        ],
    )
    if not data.memory:
        return table
    stages = pool_stages(data.memory)
    head = "stage" if len(stages) == len(data.memory) else "stage, highest peak of all banks"
    rows = [
        (
            one.stage,
            format_bytes(one.estimate_bytes),
            format_bytes(one.peak),
            f"{one.peak / one.estimate_bytes:.1%}",
        )
        for one in stages
    ]
    return "\n".join(
        (
            table,
            _image(pictures.memory(stages), "price and peak by stage"),
            _table((head, "price", "peak", "peak / price"), rows),
        )
    )


def _flat(config: Json, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in config.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            rows.append((prefix + name, str(value)))
    return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _image(png: bytes, title: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{_text(title)}" src="data:image/png;base64,{data}">'


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _text(value: Any) -> str:
    return html.escape(str(value))
