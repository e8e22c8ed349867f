"""The page of a report: one HTML file with everything in it, pictures included."""

import base64
from collections.abc import Callable, Sequence
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
from globe_stream.report.captions import CAPTIONS
from globe_stream.report.data import GroupData, ReportData
from globe_stream.report.pooling import MANY_GROUPS, pool_histories, pool_stages
from globe_stream.report.themes import Drawn
from globe_stream.report.trajectories import (
    coherence,
    error_over_costs,
    memory_over_time,
    rates,
    rates_by_stage,
    steering,
)


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
    """A picture, what it shows, for readers who cannot see it, and what to look for in it."""

    title: str
    drawn: Drawn
    caption: str

    @property
    def png(self) -> bytes:
        """The PNG file for a light page."""
        return self.drawn.light

    @property
    def light(self) -> str:
        """The same as text."""
        return base64.b64encode(self.drawn.light).decode()

    @property
    def dark(self) -> str:
        """The PNG file for a dark page as text."""
        return base64.b64encode(self.drawn.dark).decode()


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
    """The page of one run as text."""
    status = data.status
    stages = pool_stages(data.memory)
    kinds = "stage" if len(stages) == len(data.memory) else "stage, highest peak of all banks"
    pictures = []
    if stages:
        pictures = [
            _image("price and peak by stage", plots.memory, stages),
            _image("memory over time", memory_over_time, data.memory_points,
                   status.memory_budget_bytes),
        ]  # fmt: skip
    return _TEMPLATES.get_template("report.html.jinja").render(
        title=status.config["model"],
        status=status,
        version=__version__,
        family_heads=_FAMILY_HEADS,
        family_rows=[_family(name, family) for name, family in status.families.items()],
        verdicts=_verdicts(status),
        sections=sections(data),
        cost_rows=_costs(status),
        memory_pictures=pictures,
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


def render_several(runs: Sequence[ReportData]) -> str:
    """The page of several runs side by side as text."""
    names = distinct_names([data.status.run for data in runs])
    rows = [
        (name, *_family(family, found), format_seconds(data.status.seconds))
        for name, data in zip(names, runs, strict=True)
        for family, found in data.status.families.items()
    ]
    settings = [dict(_flat(data.status.config)) for data in runs]
    keys = list(dict.fromkeys(key for own in settings for key in own))
    differing = [
        (key, *(own.get(key, "") for own in settings))
        for key in keys
        if len({own.get(key) for own in settings}) > 1
    ]
    return _TEMPLATES.get_template("compared.html.jinja").render(
        title=f"{len(runs)} runs side by side",
        version=__version__,
        family_heads=("run", *_FAMILY_HEADS, "time"),
        family_rows=rows,
        sections=compared([data for data in runs if data.groups]),
        setting_heads=("setting that differs", *names),
        settings=differing,
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


def sections(data: ReportData) -> list[Section]:
    """The pictures of a run under their headings; none before a group is seeded."""
    groups = data.groups
    if not groups:
        return []
    own = pool_histories(groups) if len(groups) > MANY_GROUPS else groups
    named = [(group.key, group) for group in own]
    found = [Section("Error by epoch", (_image("error by epoch", plots.error_curve, groups),))]
    if any(len(group.history) > 1 for group in groups):
        found += _training_sections(named)
    if data.stage_rates:
        arguments = (data.stage_rates, data.machine_rates)
        image = _image("rates by stage", rates_by_stage, *arguments)
        found.append(Section("Rates by stage", (image,)))
    families = dict.fromkeys(group.family for group in groups)
    maps = tuple(
        _image("error of every expert", plots.error_map, family, _of(groups, family), about=family)
        for family in families
    )
    found += [
        Section("Error by layer and expert", maps),
        Section("Supports", (_image("histogram of supports", plots.supports, groups),)),
        Section("Popularity of atoms", (_image("popularity", plots.popularity, groups),)),
    ]
    if any(group.eigenvalues is not None for group in groups):
        image = _image("eigenvalues of the Gram matrix", plots.spectrum, groups)
        found.append(Section("Spectrum of the proxies", (image,)))
    return found


def _training_sections(named: Sequence[tuple[str, GroupData]]) -> list[Section]:
    return [
        Section("What the error cost", (_image("error over costs", error_over_costs, named),)),
        Section("What steered training", (_image("schedule", steering, named),)),
        Section("Likeness of atoms", (_image("coherence", coherence, named),)),
        Section("Rates", (_image("rates", rates, named),)),
    ]


def compared(runs: Sequence[ReportData]) -> list[Section]:
    """The pictures of several runs side by side, a line for each run and family."""
    names = distinct_names([data.status.run for data in runs])
    named = [
        (f"{name} {group.family}", group)
        for name, data in zip(names, runs, strict=True)
        for group in pool_histories(data.groups)
    ]
    return _training_sections(named)


def distinct_names(paths: Sequence[str]) -> list[str]:
    """The last parts of `paths`, as many as it takes to tell them apart."""
    parts = [Path(path).parts for path in paths]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _image(title: str, plot: Callable[..., bytes], *arguments: object, about: str = "") -> Image:
    full = f"{title}, {about}" if about else title
    return Image(full, Drawn(plot, *arguments), CAPTIONS[title])


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
