"""The report is one file that says what the run's record says."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_runs import Recipe, make_run

from globe_stream.errors import InputError
from globe_stream.report.data import gather
from globe_stream.report.page import render, write_report
from globe_stream.store import arrays
from globe_stream.store.run import Run


def _row(stage: str, family: str, epoch: int | None, **values: float) -> str:
    named = {
        "relf": "recon/relative_frobenius_error",
        "price": "memory/price_bytes",
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
        _row("seed/measure", "up", None, relf=0.8, price=300 << 20, peak=290 << 20)
        + _row("train", "up", 1, relf=0.7)
        + _row("train", "up", 2, relf=0.65)
        + _row("train", "up", 2, relf=0.6)
        + _row("train", "gate", 1, relf=0.5)
        + _row("train/memory", "up", None, price=500 << 20, peak=480 << 20)
    )
    return run


class _Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.cells: list[str] = []
        self.links: list[str] = []
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._open = tag
        if tag == "img":
            self.images.append(found["src"] or "")
        self.links += [found[name] or "" for name in ("href", "src") if name in found]

    def handle_data(self, data: str) -> None:
        if self._open in ("td", "p", "h1"):
            self.cells.append(data)


def test_data_are_those_of_the_run(told: Path) -> None:
    data = gather(told)
    up = next(unit for unit in data.units if unit.key == "up")
    assert up.curve == ((0, 0.8), (1, 0.7), (2, 0.6))
    with Run(told, writable=False) as run:
        indices = arrays.read(run.array("up/codes/indices"))
        relative = arrays.read(run.array("up/errors")) / arrays.read(run.array("up/norms"))
    assert up.popularity.tolist() == [int((indices == atom).sum()) for atom in range(5)]
    assert up.errors.tolist() == pytest.approx((relative**0.5).tolist())
    assert [(one.stage, one.price >> 20, one.peak >> 20) for one in data.memory] == [
        ("up seed/measure", 300, 290),
        ("up train", 500, 480),
    ]
    assert json.loads(json.dumps(data.document()))["curves"]["gate"] == [[1, 0.5]]


def test_page_is_complete_in_itself(told: Path, tmp_path: Path) -> None:
    path = write_report(told, tmp_path / "deep" / "page.html")
    outline = _Outline()
    outline.feed(path.read_text())
    assert len(outline.images) == 6
    for image in outline.images:
        kind, data = image.split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert all(link.startswith("data:") for link in outline.links)
    status = gather(told).status["families"]["up"]
    assert f"{status['relative_frobenius_error']:.4f}" in outline.cells
    assert "500.00 MiB" in outline.cells
    assert "96.0%" in outline.cells


def test_report_lies_in_the_run_by_default(told: Path) -> None:
    assert write_report(told) == told / "report.html"
    assert (told / "report.html").exists()


def test_a_bank_worse_than_the_svd_is_called_that(told: Path) -> None:
    data = gather(told)
    up = data.status["families"]["up"]
    error = up["relative_frobenius_error"]
    up["svd_equal_parameters_relative_error"] = error / 2
    assert "not worth" in render(data)
    up["svd_equal_parameters_relative_error"] = error * 2
    assert "50% below" in render(data)
    assert "not worth" not in render(data)


def test_text_is_escaped(told: Path) -> None:
    data = gather(told)
    data.status["config"]["model"] = "<script>x</script>"
    assert "<script>" not in render(data)


def test_layer_scopes_and_shared_experts(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run", model, Recipe(per_layer=True))
    assert len(re.findall("<img", render(gather(run)))) == 5
    run = make_run(tmp_path / "shared", model, Recipe(families=("up",), include_shared=True))
    assert len(re.findall("<img", render(gather(run)))) == 4


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        write_report(tmp_path)
