"""What scripts use is at the top of the package, and importing it stays cheap."""

import subprocess
import sys
from pathlib import Path

import pytest

import globe_stream
from globe_stream.export.factors import export_factors


def test_importing_the_package_does_not_import_torch() -> None:
    command = "import sys, globe_stream; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_functions_are_visible_and_have_a_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    for name in globe_stream.__all__:
        assert name in dir(globe_stream)
        assert name.startswith("__") or f"`globe_stream.{name}(" in page


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = globe_stream.nothing


def test_the_use_that_the_card_shows_works(model: Path, run: Path, tmp_path: Path) -> None:
    export_factors(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    shown = card.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    placed = shown.replace("THIS FOLDER", str(tmp_path / "out")).replace("THE ORIGINAL", str(model))
    exec(placed, names)
    assert tuple(names["weight"].shape) == (24, 32)
    assert type(names["model"]).__name__.startswith("Globe")
