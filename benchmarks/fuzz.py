"""Almost valid inputs found by coverage: the checks of tests/helpers/inputs.py under atheris.

    pip install atheris
    python benchmarks/fuzz.py header --runs 20000

Kinds: header, index, config, recipe. A finding ends the program with the input that caused it.
"""

import sys
import tempfile
from pathlib import Path

import atheris
import click

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

with atheris.instrument_imports(include=["globe_stream.io", "globe_stream.checkpoint"]):
    import inputs


@click.command()
@click.argument("kind", type=click.Choice(["header", "index", "config", "recipe"]))
@click.option("--runs", default=20000, show_default=True, help="Inputs to try.")
def main(kind: str, runs: int) -> None:
    """Feed one reader."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        almost = inputs.Inputs(Path(name))
        corpus = Path(name) / "corpus"
        corpus.mkdir()
        for number, text in enumerate(almost.examples(kind)):
            (corpus / str(number)).write_bytes(text)
        check = inputs.check_of(almost, kind)
        atheris.Setup(
            [sys.argv[0], f"-runs={runs}", "-max_len=4096", "-timeout=60", str(corpus)],
            lambda data: check(bytes(data)),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
