"""The page in a real browser, light and dark, on a desk and in a hand.

A screenshot is compared with what it ought to show: its size, the colours of paper, pictures as
wide as the page allows and drawn on the same paper, nothing to be scrolled sideways.
"""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sample_runs import make_run

from globe_stream.commands.report import report
from globe_stream.report.themes import DARK, LIGHT

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
PAPER = {"light": LIGHT.paper, "dark": DARK.paper}


@pytest.fixture(scope="module")
def pages(run: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    other = make_run(folder / "other", model)
    return {
        "one": report([run], folder / "one.html"),
        "several": report([run, other], folder / "several.html"),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with library.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


@pytest.mark.parametrize("kind", ["one", "several"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_the_page_looks_as_it_should(
    browser: Any, pages: dict[str, Path], kind: str, theme: str, size: str
) -> None:
    width, height = SIZES[size]
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=theme, device_scale_factor=1
    )
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(pages[kind].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(
        "[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().x,"
        " i.getBoundingClientRect().y + scrollY, i.clientWidth, i.clientHeight])"
    )
    assert len(boxes) == page.locator("figcaption").count() >= 1
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB"))
    page.close()
    assert not problems
    assert shot.shape[1] == width
    paper = np.array(rgb(PAPER[theme]))
    assert (np.abs(shot[:, :4].astype(int) - paper) <= 2).all(), "paper to the edge"
    for natural, x, y, shown, tall in boxes:
        assert natural > 300
        assert x + shown <= width
        assert shown >= min(natural, 0.85 * min(width, 900)) - 40
        inside = shot[int(y) : int(y + tall), int(x) : int(x + shown)].reshape(-1, 3).astype(int)
        near = (np.abs(inside - paper).sum(1) <= 6).mean()
        assert 0.1 < near < 0.995, "drawn on the page's paper, and not empty"
        contrast = np.abs(inside - paper).sum(1).max()
        assert contrast > 300, "ink stands out from paper"
