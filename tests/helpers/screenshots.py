"""Reports of made-up runs as a browser shows them, and small pictures of how they ought to look.

`python tests/helpers/screenshots.py` writes the pictures anew, to tests/report/screenshots. Pages
are set in the font that comes with matplotlib, and what is kept and compared is a page scaled down
until strokes are gone, so that neither fonts nor their rendering matter.
"""

import base64
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from globe_stream.engine.status import FamilyStatus, StatusDocument
from globe_stream.factorization.records import GroupState
from globe_stream.report.data import GroupData, ReportData, StageMemory
from globe_stream.report.history import EpochPoint, MachineRates, MemoryPoint, StageRate
from globe_stream.report.page import render, render_several

FOLDER = Path(__file__).parents[1] / "report" / "screenshots"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
THEMES = ("light", "dark")
KINDS = ("one", "several")
REDUCTION = {"desktop": 8, "phone": 4}
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
MOST_ON_AVERAGE = 2.0
"""Mean difference of colours, of 255, that rendering alone may make."""
MOST_IN_A_PATCH = 12.0
"""The same in any square of PATCH pixels."""
PATCH = 8
EPOCHS, LAYERS, EXPERTS, ATOMS = 24, 6, 16, 24
MIB = 1 << 20


def write_pages(folder: Path) -> dict[str, Path]:
    """The page of one run and of two side by side, in `folder`."""
    one, other = data("cache/first", 0.0), data("cache/second", 0.03)
    texts = {"one": render(one), "several": render_several([one, other])}
    found = {}
    for kind, text in texts.items():
        found[kind] = folder / f"{kind}.html"
        found[kind].write_text(text.replace("</style>", f"{_font()}</style>"))
    return found


def data(run: str, worse: float) -> ReportData:
    """A made-up run of two families, whose errors are larger by `worse`."""
    rates = (
        *(
            StageRate(f"seed/{s}", 2e10 + 4e9 * k, 3e8)
            for k, s in enumerate(("proxies", "measure"))
        ),
        StageRate("seed/gram", 4.5e10, None),
        StageRate("epoch", 3.8e10, 1.2e8),
    )
    stages = tuple(
        StageMemory(name, (500 + 90 * k) * MIB, (470 + 80 * k) * MIB)
        for k, name in enumerate(("up seed/proxies", "up seed/measure", "up train", "gate train"))
    )
    points = tuple(
        MemoryPoint(
            10.0 * k, (380 + k) * MIB, (420 + 9 * k) * MIB, 700 * MIB if k % 5 == 0 else None
        )
        for k in range(EPOCHS)
    )
    groups = tuple(_group(family, k, worse) for k, family in enumerate(("up", "gate")))
    return ReportData(_status(run, groups), groups, stages, points, rates, _MACHINE)


_MACHINE = MachineRates(6e10, 5e8)


def _group(family: str, number: int, worse: float) -> GroupData:
    draw = np.random.RandomState(number)
    errors = 0.2 + 0.03 * draw.rand(LAYERS * EXPERTS) + worse
    members = [(layer, expert, 0) for layer in range(LAYERS) for expert in range(EXPERTS)]
    history = tuple(_point(epoch, number, worse) for epoch in range(EPOCHS + 1))
    return GroupData(
        key=family,
        family=family,
        state=_state(float(errors.mean())),
        curve=tuple((point.epoch, point.error) for point in history),
        errors=errors,
        members=np.array(members),
        supports=8 + draw.randint(0, 9, LAYERS * EXPERTS),
        popularity=np.sort(draw.randint(5, 60, ATOMS)),
        eigenvalues=30 * 0.9 ** np.arange(LAYERS * EXPERTS),
        svd_error=0.32,
        history=history,
    )


def _point(epoch: int, number: int, worse: float) -> EpochPoint:
    warm = epoch <= 5
    error = 0.21 + 0.01 * number + worse + 0.2 * 0.85**epoch
    return EpochPoint(
        epoch=epoch,
        error=error,
        passes=4 + epoch,
        seconds=20.0 + 9 * epoch,
        operations=3e12 * epoch,
        activation_lambda=None if epoch == 0 else max(0.0, (epoch - 5) / EPOCHS),
        beta=None if epoch == 0 else float(not warm),
        temperature=None if epoch == 0 else 1 + 5 * (1 - 0.8**epoch),
        median_support=None if epoch == 0 else 12.0 + 8 * 0.6**epoch,
        target_support=None if epoch == 0 else 12.0,
        rejected=epoch == 14,
        coherence=None if epoch == 0 else 0.5 + 0.1 * number + 0.004 * epoch,
        bytes_per_second=None if epoch == 0 else 1.2e8,
        operations_per_second=None if epoch == 0 else (3.8 + 0.2 * (epoch % 3)) * 1e10,
        machine=_MACHINE,
    )


def _state(error: float) -> GroupState:
    return GroupState(
        stage="trained", epoch=EPOCHS, passes=EPOCHS + 4, relative_frobenius_error=error,
        squared_norm=100.0, svd_relative_error=0.32, svd_sampled=LAYERS * EXPERTS, mean=0.0,
        scale=1.0, lambda_a=1e-6, activation="tanh", activation_lambda=0.8, gamma=1.0,
        temperature=5.0, median_support=12.0, explained_variance=0.6,
        seeding_method="nn_dictionary", bytes_read=3 << 30, seconds=236.0,
    )  # fmt: skip


def _status(run: str, groups: tuple[GroupData, ...]) -> StatusDocument:
    family = FamilyStatus(
        experts=LAYERS * EXPERTS, p=1408, d=2048, rank=1056, bases=ATOMS, banks=1,
        seeding_method="nn_dictionary", parameter_ratio=0.83,
        svd_equal_parameters_relative_error=0.32, svd_sampled_experts=LAYERS * EXPERTS,
        explained_variance=0.6, epoch=EPOCHS, passes=EPOCHS + 4, relative_frobenius_error=0.0,
        median_support=12.0, temperature=5.0, activation_lambda=0.8,
    )  # fmt: skip
    families = {
        one.family: replace(family, relative_frobenius_error=one.state.relative_frobenius_error)
        for one in groups
    }
    config = {"model": "example/moe", "seed": {"bases": ATOMS, "rank": 1056, "run": run}}
    return StatusDocument(
        format=1, run=run, state="trained", config=config, fingerprint="0" * 64,
        peak_memory_bytes=700 * MIB, memory_budget_bytes=1024 * MIB, bytes_read=6 << 30,
        seconds=472.0, machine=None, relative_frobenius_error=0.22, warnings=(), zero_experts=(),
        families=families,
    )  # fmt: skip


def _font() -> str:
    """A style that sets everything in the font that matplotlib brings along."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    content = base64.b64encode(file.read_bytes()).decode()
    face = f"@font-face {{ font-family: Fixed; src: url(data:font/ttf;base64,{content}); }}"
    return f"{face} body {{ font-family: Fixed !important; }}"


# -- the browser -------------------------------------------------------------------------------


@contextmanager
def browser(library: Any) -> Iterator[Any]:
    """Chromium without a screen; `library` is playwright.sync_api."""
    with library.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@contextmanager
def shown(opened: Any, page: Path, size: str, theme: str) -> Iterator[Any]:
    """The file `page` in a window of `size`, with the reader's wish for `theme`."""
    width, height = SIZES[size]
    tab = opened.new_page(
        viewport={"width": width, "height": height}, color_scheme=theme, device_scale_factor=1
    )
    tab.goto(page.as_uri())
    tab.evaluate("document.fonts.ready")
    yield tab
    tab.close()


def shot(tab: Any) -> Image.Image:
    """All of the page."""
    return Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("RGB")


# -- comparison --------------------------------------------------------------------------------


def name(kind: str, size: str, theme: str) -> str:
    """Of the file of a stored picture."""
    return f"{kind}-{size}-{theme}.png"


def reduced(picture: Image.Image, size: str) -> Image.Image:
    """`picture` scaled down by averaging."""
    return picture.reduce(REDUCTION[size])


def difference(found: Image.Image, stored: Image.Image) -> str:
    """In what two reduced pictures differ by more than rendering explains; empty if in nothing."""
    if found.width != stored.width or abs(found.height - stored.height) > 0.01 * stored.height:
        return f"size {found.size}, expected {stored.size}"
    height = min(found.height, stored.height)
    pixels = [np.asarray(one.convert("RGB")).astype(float)[:height] for one in (found, stored)]
    apart = np.abs(pixels[0] - pixels[1]).mean(2)
    if apart.mean() > MOST_ON_AVERAGE:
        return f"colours by {apart.mean():.1f} on average"
    rows, columns = height // PATCH, found.width // PATCH
    cut = apart[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH)
    patches = cut.mean((1, 3))
    if patches.max() > MOST_IN_A_PATCH:
        row, column = np.unravel_index(int(patches.argmax()), patches.shape)
        return f"colours by {patches.max():.1f} near x {column * PATCH}, y {row * PATCH}"
    return ""


def main() -> None:
    from playwright import sync_api

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser(sync_api) as opened:
        pages = write_pages(Path(folder))
        for kind in KINDS:
            for size in SIZES:
                for theme in THEMES:
                    with shown(opened, pages[kind], size, theme) as tab:
                        small = reduced(shot(tab), size)
                    small.save(FOLDER / name(kind, size, theme), optimize=True)


if __name__ == "__main__":
    main()
