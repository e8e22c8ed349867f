"""docs/layouts.md lists every model type as the tests run it."""

from layouts_page import PAGE, page


def test_the_tables_are_those_of_the_registry() -> None:
    text = PAGE.read_text()
    assert text == page(text), "run `python tests/helpers/layouts_page.py`"
