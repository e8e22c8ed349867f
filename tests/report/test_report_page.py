"""The report is one file that says what the run's record says."""

import base64
import errno
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image as PixelImage
from sample_runs import Recipe, make_run

from globe_stream.commands.report import report
from globe_stream.errors import InputError
from globe_stream.report import page as pages
from globe_stream.report import plots as pictures
from globe_stream.report.data import GroupData, StageMemory, gather
from globe_stream.report.history import MachineRates, StageRate
from globe_stream.report.page import render, render_several
from globe_stream.report.pooling import pool_curves, pool_histories, pool_stages
from globe_stream.report.themes import Drawn
from globe_stream.store import arrays
from globe_stream.store.run import Run


def _row(stage: str, family: str, epoch: int | None, **values: float) -> str:
    named = {
        "relf": "recon/relative_frobenius_error",
        "estimate_bytes": "memory/price_bytes",
        "peak": "memory/peak_bytes",
    }
    return (
        json.dumps(
            {
                "time": 0.0,
                "stage": stage,
                "family": family,
                "epoch": epoch,
                "step": None,
                **{named[key]: value for key, value in values.items()},
            }
        )
        + "\n"
    )


@pytest.fixture
def told(run: Path) -> Path:
    """The run with a history: an epoch logged twice, and memory of two stages."""
    (run / "metrics.jsonl").write_text(
        _row("seed/measure", "up", None, relf=0.8, estimate_bytes=300 << 20, peak=290 << 20)
        + _row("train", "up", 1, relf=0.7)
        + _row("train", "up", 2, relf=0.65)
        + _row("train", "up", 2, relf=0.6)
        + _row("train", "gate", 1, relf=0.5)
        + _row("train/memory", "up", None, estimate_bytes=500 << 20, peak=480 << 20)
    )
    return run


@pytest.fixture
def _dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of one dot each, where it does not matter what they show."""
    buffer = io.BytesIO()
    PixelImage.new("RGB", (1, 1)).save(buffer, "PNG")
    dot = Drawn(buffer.getvalue)
    monkeypatch.setattr(pages, "Drawn", lambda *_: dot)


DOTS = pytest.mark.usefixtures("_dots")


class _Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.dark: list[str] = []
        self.captions = 0
        self.cells: list[str] = []
        self.links: list[str] = []
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._open = tag
        if tag == "img":
            self.images.append(found["src"] or "")
        if tag == "source":
            assert found["media"] == "(prefers-color-scheme: dark)"
            self.dark.append(found["srcset"] or "")
        self.captions += tag == "figcaption"
        self.links += [found[name] or "" for name in ("href", "src") if name in found]

    def handle_data(self, data: str) -> None:
        if self._open in ("td", "p", "h1"):
            self.cells.append(data)


def test_data_are_those_of_the_run(told: Path) -> None:
    data = gather(told)
    up = next(group for group in data.groups if group.key == "up")
    assert up.curve == ((0, 0.8), (1, 0.7), (2, 0.6))
    with Run(told, writable=False) as run:
        indices = arrays.read(run.array("up/codes/indices"))
        relative = arrays.read(run.array("up/errors")) / arrays.read(run.array("up/norms"))
    assert up.popularity.tolist() == [int((indices == atom).sum()) for atom in range(5)]
    assert up.errors.tolist() == pytest.approx((relative**0.5).tolist())
    assert [(one.stage, one.estimate_bytes >> 20, one.peak >> 20) for one in data.memory] == [
        ("up seed/measure", 300, 290),
        ("up train", 500, 480),
    ]
    assert [group.curve for group in data.groups if group.key == "gate"] == [((1, 0.5),)]


@DOTS
def test_page_is_complete_in_itself(told: Path, tmp_path: Path) -> None:
    path = report([told], tmp_path / "deep" / "page.html")
    outline = _Outline()
    outline.feed(path.read_text())
    assert len(outline.images) == len(outline.dark) == outline.captions == 11
    for image in outline.images + outline.dark:
        kind, data = image.split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert all(link.startswith("data:") for link in outline.links)
    status = gather(told).status.families["up"]
    assert f"{status.relative_frobenius_error:.4f}" in outline.cells
    assert "500.00 MiB" in outline.cells
    assert "96.0%" in outline.cells


@DOTS
def test_report_lies_in_the_run_by_default(told: Path) -> None:
    assert report([told]) == told / "report.html"
    assert (told / "report.html").exists()


@pytest.mark.slow
@DOTS
def test_a_bank_worse_than_the_svd_is_called_that(told: Path) -> None:
    data = gather(told)
    up = data.status.families["up"]
    error = up.relative_frobenius_error
    data.status.families["up"] = replace(up, svd_equal_parameters_relative_error=error / 2)
    assert "not worth" in render(data)
    data.status.families["up"] = replace(up, svd_equal_parameters_relative_error=error * 2)
    assert "50% below" in render(data)
    assert "not worth" not in render(data)


@DOTS
def test_text_is_escaped(told: Path) -> None:
    data = gather(told)
    data.status.config["model"] = "<script>x</script>"
    assert "<script>" not in render(data)


@pytest.mark.slow
@DOTS
def test_layer_scopes_and_shared_experts(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run", model, Recipe(per_layer=True))
    assert len(re.findall("<img", render(gather(run)))) == 5
    run = make_run(tmp_path / "shared", model, Recipe(families=("up",), include_shared=True))
    assert len(re.findall("<img", render(gather(run)))) == 4


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        report([tmp_path])


def test_a_folder_is_no_report(told: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: is a folder. Give the HTML file"):
        report([told], tmp_path)
    assert list(tmp_path.iterdir()) == []


@DOTS
@pytest.mark.parametrize("place", ["/proc/x.html", "file/x.html"])
def test_places_that_cannot_be_written(told: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"while (making the folder|writing)\."):
        report([told], tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@DOTS
def test_a_full_disk_leaves_nothing(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("globe_stream.io.files._sync", full)
    with pytest.raises(InputError, match="the disk is full while writing"):
        report([told], tmp_path / "deep" / "page.html")
    assert list(tmp_path.iterdir()) == []


def _size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _many(group: GroupData, count: int) -> list[GroupData]:
    """`count` units of two families with errors 0.01 apart."""
    return [
        replace(
            group,
            key=f"{family}/{k}",
            family=family,
            state=replace(group.state, squared_norm=1.0 + k),
            curve=((0, 0.5 + k / 100), (1, 0.4 + k / 100)),
            svd_error=0.45,
            eigenvalues=np.linspace(1.0, 0.1, 12),
        )
        for family in ("up", "gate")
        for k in range(count)
    ]


def test_many_groups_are_pooled_by_family(told: Path) -> None:
    groups = _many(gather(told).groups[0], 24)
    up, gate = pool_curves(groups)
    weights, errors = np.arange(1, 25), 0.5 + np.arange(24) / 100
    assert (up.family, gate.family, up.epochs) == ("up", "gate", (0, 1))
    assert up.pooled[0] == pytest.approx(np.sqrt((weights * errors**2).sum() / weights.sum()))
    assert (up.lowest[0], up.highest[0]) == (0.5, 0.73)
    assert up.svd_error == pytest.approx(0.45)
    for picture in (pictures.error_curve, pictures.popularity, pictures.spectrum):
        assert _size(picture(groups)) < (900, 500)
    missing = pool_curves([replace(group, svd_error=None) for group in groups[:1]] + groups[1:])
    assert [one.svd_error is None for one in missing] == [True, False]


def test_many_stages_are_the_highest_of_their_kind() -> None:
    kinds = ("seed/statistics", "seed/atoms", "train")
    stages = [
        StageMemory(f"up/layers-{k:03d} {kind}", 100 + k, 90 + k)
        for k in range(24)
        for kind in kinds
    ]
    assert pool_stages(stages) == [StageMemory(kind, 123, 113) for kind in kinds]
    assert _size(pictures.memory(pool_stages(stages)))[1] < 500
    assert pool_stages(stages[:12]) == stages[:12]


def test_ticks_of_counted_things_are_whole(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []

    def draw(figure: Figure, **_: object) -> bytes:
        drawn.append(figure)
        return b""

    monkeypatch.setattr(pictures, "png_of", draw)
    groups = _many(gather(told).groups[0], 1)
    for picture in (pictures.error_curve, pictures.popularity, pictures.supports):
        picture(groups)
    for figure in drawn:
        ticks = figure.axes[0].get_xticks()
        assert all(tick == round(tick) for tick in ticks)


@pytest.mark.slow
@DOTS
def test_the_table_tells_how_many_banks(model: Path, tmp_path: Path, told: Path) -> None:
    run = make_run(tmp_path / "run", model, Recipe(per_layer=True))
    assert "<td>2 banks of 5 x 18</td>" in render(gather(run))
    assert "<td>5 x 18</td>" in render(gather(told))


@DOTS
def test_a_path_that_is_no_text_in_this_locale(told: Path, tmp_path: Path) -> None:
    """As in a C locale, whose decoder keeps the bytes beyond ASCII as lone surrogates."""
    run = tmp_path / "r\udcc3\udcbcn"
    shutil.copytree(told, run)
    page = report([run]).read_text(encoding="utf-8")
    assert "rün" in page


def test_a_torn_line_of_metrics_is_left_out(told: Path, tmp_path: Path) -> None:
    run = shutil.copytree(told, tmp_path / "run")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"time": 1.0, "sta')
    assert [group.curve for group in gather(run).groups] == [
        group.curve for group in gather(told).groups
    ]
    (run / "metrics.jsonl").write_bytes(b'{"time": 1.0, "sta\n' + b"{}\n")
    with pytest.raises(InputError, match=r"metrics.jsonl: line 1: .*Delete the line"):
        report([run])


def _rows(count: int) -> list[dict[str, object]]:
    """Metrics as training leaves them, with numbers that tell what went wrong."""
    stamps = {"family": "up", "step": None}
    seeding = [
        {**stamps, "time": 10.0 + k, "stage": f"seed/{stage}", "epoch": None, "time/seconds": 2.0,
         "io/bytes_read": bytes_, "memory/peak_bytes": 100 << 20, "memory/price_bytes": 200 << 20}
        for k, (stage, bytes_) in enumerate([("statistics", 5), ("proxies", 5), ("gram", 0)])
    ]  # fmt: skip
    measure = {
        **stamps, "time": 14.0, "stage": "seed/measure", "epoch": None, "time/seconds": 1.0,
        "io/bytes_read": 5, "recon/relative_frobenius_error": 0.9,
    }  # fmt: skip
    epochs = [
        {**stamps, "time": 20.0 + k, "stage": "train", "epoch": k, "io/bytes_read": 500,
         "recon/relative_frobenius_error": 0.9 - k / 10, "time/step_seconds": 4.0,
         "compute/operations": 6e6, "compute/operations_per_second": 1.5e6,
         "io/bytes_per_second": 1000.0, "schedule/lambda": k / 4, "schedule/beta": 1.0,
         "schedule/rejected": k == 2, "alpha/temperature": 1.5, "alpha/median_support": 12.0 + k,
         "alpha/target_support": 12, "bank/coherence_offdiag_max": 0.5,
         "memory/rss_bytes": 90 << 20, "memory/peak_bytes": 120 << 20}
        for k in range(1, count + 1)
    ]  # fmt: skip
    machine = [
        {"family": "", "step": None, "epoch": None, "time": time, "stage": "machine",
         "machine/operations_per_second": single, "machine/bytes_per_second": disk}
        for time, single, disk in ((20.5, 1e9, 2e6), (21.5, 3e9, None))
    ]  # fmt: skip
    return [*seeding, measure, *machine, *epochs, epochs[-1]]


def test_the_history_adds_up_what_epochs_cost(run: Path, tmp_path: Path) -> None:
    told = shutil.copytree(run, tmp_path / "run")
    (told / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in _rows(3)))
    data = gather(told)
    group = next(group for group in data.groups if group.key == "up")
    each = 6e6
    assert [point.epoch for point in group.history] == [0, 1, 2, 3]
    assert [point.error for point in group.history] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert [point.passes for point in group.history] == [3, 4, 5, 6]
    assert [point.seconds for point in group.history] == [7, 11, 15, 19]
    assert [point.operations for point in group.history] == [0, each, 2 * each, 3 * each]
    assert [point.rejected for point in group.history] == [False, False, True, False]
    last = group.history[-1]
    assert (last.activation_lambda, last.median_support, last.target_support) == (0.75, 15, 12)
    assert last.operations_per_second == each / 4
    assert [point.machine for point in group.history[1:]] == [
        MachineRates(1e9, 2e6), MachineRates(3e9, None), MachineRates(3e9, None)
    ]  # fmt: skip
    assert data.machine_rates == MachineRates(3e9, None)
    assert data.stage_rates == (StageRate("epoch", 1.5e6, 1000.0),)
    assert [point.seconds for point in data.memory_points] == [0, 1, 2, 11, 12, 13, 13]
    assert {point.price for point in data.memory_points} == {200 << 20, None}
    pooled = pool_histories([group, replace(group, state=replace(group.state, squared_norm=1e9))])
    (one,) = pooled
    assert [point.seconds for point in one.history] == [14, 22, 30, 38]
    assert one.history[1].error == pytest.approx(0.8)
    assert one.history[1].passes == 4


@DOTS
def test_several_runs_side_by_side(told: Path, model: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other" / "run", model, Recipe(bases=4))
    with pytest.raises(InputError, match="Give the HTML file to write, with out"):
        report([told, other])
    page = report([told, other], tmp_path / "both.html").read_text()
    outline = _Outline()
    outline.feed(page)
    assert len(outline.images) == len(outline.dark) == outline.captions == 4
    for path in (told, other):
        for family in gather(path).status.families.values():
            assert f"{family.relative_frobenius_error:.4f}" in outline.cells
    one, two = gather(told), gather(other)
    one.status.config["gain"], two.status.config["gain"] = 0.5, 0.75
    settings = render_several([one, two]).split("<h2>Settings</h2>")[1]
    assert "<td>gain</td><td>0.5</td><td>0.75</td>" in settings
    assert "<td>model</td>" not in settings, "settings that all share are left out"
    alone = report([told, told], tmp_path / "alone.html").read_text()
    assert alone == render(gather(told))
