"""The page in a real browser, light and dark, on a desk and in a hand, as it ought to look."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import screenshots
from PIL import Image, ImageDraw

from globe_stream.report.themes import DARK, LIGHT

BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(screenshots.CHROMIUM is None, reason="no Chromium on this machine"),
]
PAPER = {"light": LIGHT.paper, "dark": DARK.paper}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return screenshots.write_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with screenshots.browser(library) as opened:
        yield opened


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def stored(kind: str, size: str, theme: str) -> Image.Image:
    return Image.open(screenshots.FOLDER / screenshots.name(kind, size, theme)).convert("RGB")


@pytest.mark.parametrize("kind", screenshots.KINDS)
@pytest.mark.parametrize("theme", screenshots.THEMES)
@pytest.mark.parametrize("size", screenshots.SIZES)
class TestShown:
    pytestmark = BROWSER

    def test_the_page_looks_as_it_should(
        self, browser: Any, pages: dict[str, Path], kind: str, theme: str, size: str
    ) -> None:
        width, _ = screenshots.SIZES[size]
        with screenshots.shown(browser, pages[kind], size, theme) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            boxes = page.evaluate(
                "[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().x,"
                " i.getBoundingClientRect().y + scrollY, i.clientWidth, i.clientHeight])"
            )
            assert len(boxes) == page.locator("figcaption").count() >= 1
            picture = screenshots.shot(page)
        shot = np.asarray(picture)
        paper = np.array(rgb(PAPER[theme]))
        assert (np.abs(shot[:, :4].astype(int) - paper) <= 2).all(), "paper to the edge"
        for natural, x, y, shown, tall in boxes:
            assert x + shown <= width
            assert shown >= min(natural, 0.85 * min(width, 900)) - 40
            inside = shot[int(y) : int(y + tall), int(x) : int(x + shown)].reshape(-1, 3)
            apart = np.abs(inside.astype(int) - paper).sum(1)
            assert 0.1 < (apart <= 6).mean() < 0.995, "drawn on the page's paper, and not empty"
            assert apart.max() > 300, "ink stands out from paper"
        small = screenshots.reduced(picture, size)
        assert screenshots.difference(small, stored(kind, size, theme)) == ""


def test_what_is_missing_or_of_another_colour_is_a_difference() -> None:
    """The comparison can fail: another theme, a picture that is gone, a page that is longer."""
    light = stored("one", "phone", "light")
    assert screenshots.difference(light, light) == ""
    assert "on average" in screenshots.difference(stored("one", "phone", "dark"), light)
    assert "size" in screenshots.difference(stored("several", "phone", "light"), light)
    gone = light.copy()
    ImageDraw.Draw(gone).rectangle((4, 300, light.width - 4, 420), fill=LIGHT.paper)
    assert "near x" in screenshots.difference(gone, light)
