"""The page of a report: one HTML file with everything in it, pictures included."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from globe_stream import __version__
from globe_stream.engine.status import FamilySeeding, FamilyStatus, StatusDocument
from globe_stream.errors import GlobeError
from globe_stream.formatting import format_bytes, format_seconds
from globe_stream.io import files
from globe_stream.io.records import Json
from globe_stream.report import plots
from globe_stream.report.data import GroupData, ReportData
from globe_stream.report.pooling import pool_stages


def _encodable(value: Any) -> Any:
    """`value` as the page shows it: bytes of a path that are no text become replacement signs."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value


_TEMPLATES = Environment(
    loader=PackageLoader("globe_stream.report"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_encodable,
    trim_blocks=True,
    lstrip_blocks=True,
)
_FAMILY_HEADS = (
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


@dataclass(frozen=True)
class Image:
    """A PNG file and what it shows, for readers who cannot see it."""

    title: str
    png: bytes

    @property
    def base64(self) -> str:
        """The file as text."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Section:
    """Images under one heading."""

    title: str
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether a family's bank is better than the SVD of equal size."""

    family: str
    better: bool
    gain: str
    error: str
    svd: str


def write_page(target: Path, page: str) -> None:
    """Write the text of a page to `target`.

    Raises InputError when `target` cannot be written or the disk is full; nothing is then left
    behind.
    """
    made = files.make_folder(target.parent)
    try:
        files.write_text(target, page)
    except GlobeError:
        files.remove_empty(made)
        raise


def render(data: ReportData) -> str:
    """The page as text."""
    status = data.status
    stages = pool_stages(data.memory)
    kinds = "stage" if len(stages) == len(data.memory) else "stage, highest peak of all banks"
    return _TEMPLATES.get_template("report.html.jinja").render(
        status=status,
        version=__version__,
        family_heads=_FAMILY_HEADS,
        family_rows=[_family(name, family) for name, family in status.families.items()],
        verdicts=_verdicts(status),
        sections=sections(data.groups) if data.groups else [],
        cost_rows=_costs(status),
        memory_picture=Image("price and peak by stage", plots.memory(stages)) if stages else None,
        memory_heads=(kinds, "price", "peak", "peak / price"),
        memory_rows=[
            (
                one.stage,
                format_bytes(one.estimate_bytes),
                format_bytes(one.peak),
                f"{one.peak / one.estimate_bytes:.1%}",
            )
            for one in stages
        ],
        settings=_flat(status.config),
    )


def _family(name: str, family: FamilyStatus | FamilySeeding) -> tuple[Any, ...]:
    sizes = (name, family.experts, f"{family.p} x {family.d}", _banks(family))
    if isinstance(family, FamilySeeding):
        return (*sizes, "", family.seeding_method, *[""] * 5)
    svd = family.svd_equal_parameters_relative_error
    return (
        *sizes,
        f"{family.parameter_ratio:.1%}",
        family.seeding_method,
        f"{family.explained_variance:.3f}",
        family.passes,
        f"{family.relative_frobenius_error:.4f}",
        "" if svd is None else f"{svd:.4f}",
        f"{family.median_support:.0f}",
    )


def _banks(family: FamilyStatus | FamilySeeding) -> str:
    size, count = f"{family.bases} x {family.rank}", family.banks
    return size if count == 1 else f"{count} banks of {size}"


def _verdicts(status: StatusDocument) -> list[Verdict]:
    """Whether each family's bank is worth having. Source: docs/design.md, section Problem."""
    verdicts = []
    for name, family in status.families.items():
        if isinstance(family, FamilySeeding) or family.svd_equal_parameters_relative_error is None:
            continue
        error, svd = family.relative_frobenius_error, family.svd_equal_parameters_relative_error
        gain = f"{1 - error / svd:.0%}"
        verdicts.append(Verdict(name, error < svd, gain, f"{error:.4f}", f"{svd:.4f}"))
    return verdicts


def sections(groups: Sequence[GroupData]) -> list[Section]:
    """The pictures of `groups` under their headings."""
    families = dict.fromkeys(group.family for group in groups)
    maps = tuple(
        Image(f"error of every expert, {family}", plots.error_map(family, _of(groups, family)))
        for family in families
    )
    found = [
        Section("Error by epoch", (Image("error by epoch", plots.error_curve(groups)),)),
        Section("Error by layer and expert", maps),
        Section("Supports", (Image("histogram of supports", plots.supports(groups)),)),
        Section("Popularity of atoms", (Image("popularity", plots.popularity(groups)),)),
    ]
    if any(group.eigenvalues is not None for group in groups):
        image = Image("eigenvalues of the Gram matrix", plots.spectrum(groups))
        found.append(Section("Spectrum of the proxies", (image,)))
    return found


def _of(groups: Sequence[GroupData], family: str) -> list[GroupData]:
    return [group for group in groups if group.family == family]


def _costs(status: StatusDocument) -> list[tuple[str, str]]:
    return [
        ("peak memory", format_bytes(status.peak_memory_bytes)),
        ("memory budget", format_bytes(status.memory_budget_bytes)),
        ("read from the checkpoint", format_bytes(status.bytes_read)),
        ("time", format_seconds(status.seconds)),
    ]


def _flat(config: Json, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in config.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            rows.append((prefix + name, str(value)))
    return rows
