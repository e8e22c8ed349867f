"""The tests that docs/truth.md names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
FOUND = NAMED.findall((ROOT / "docs/truth.md").read_text())


def test_every_row_of_the_table_names_one():
    rows = re.findall(r"^\| \d+ .*$", (ROOT / "docs/truth.md").read_text(), re.MULTILINE)
    assert [int(row.split()[1]) for row in rows] == list(range(1, 13))
    assert all(NAMED.search(row) for row in rows)


@pytest.mark.parametrize(("file", "name"), FOUND, ids=[name for _, name in FOUND])
def test_it_exists(file, name):
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)
