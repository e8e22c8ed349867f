"""What a checkout of this project looks like from outside, for comparing two of them.

    python benchmarks/structure.py [OLD NEW] [--walks]

OLD and NEW are folders of checkouts, or revisions.

Reads source files only (syntax trees and text; nothing is imported), so that it runs on any
version, and prints a table with a column for each checkout. "Places" are functions that match a
pattern, listed with `--walks`; so are the files that one expert's weights pass through when it is
seeded, trained and exported as factors: those of the functions that can be reached from the reader
and from what takes a batch, see `expert_walks`.
"""

import ast
import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from expert_walks import walk
from source_tree import PACKAGE, Checkout, Module

FRONT = ("cli.", "commands.")
LONG = 40
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
OUTSIDE = re.compile(
    r"\b(?:method|contract|architecture|field-notes|checkpoint-layouts)\.md\b|warm-start\s+guidelines"
    r"|bank\s+workflow|am-loop\s+notes|training-focus\s+notes|field\s+notes|method\s+notes"
    r"|seeds'\s+(?:Route|alternating)|[Tt]he seeds print"
)
PLACES = {
    "compose a mixture": r"mm\(codes, tile|embedding_bag\("
    r"|add_\([^\n]*(?:atom|atoms\[)[^\n]*alpha=",
    "pool errors": r"/ \(?[\w.]*norms?\b[^\n]*(?:\*\* ?0\.5|sqrt\()|sqrt\([^\n]*/ [\w.]*norms?\b"
    r"|@ np\.square\(errors\)|_lost / self\._whole|/ squared_norm\(|[^\n]*\bcount \* [^\n]*error",
    "lay out safetensors files": r"plan_header\(|to_bytes\(PREFIX_BYTES",
    "read exact byte ranges": r"os\.preadv?\(",
    "replace a file atomically": r"partial\.replace\(|os\.replace\(|os\.rename\(partial",
    "translate errors of the system": r"error\.strerror",
}
"""Functions whose body matches know how to do it."""


def places(checkout: Checkout, pattern: str) -> list[str]:
    """Functions whose source matches."""
    wanted = re.compile(pattern)
    return [
        function.title
        for function in checkout.functions
        if wanted.search(_source(checkout.modules[function.module], function.node))
    ]


def flags_below(checkout: Checkout) -> tuple[int, int]:
    """Raise statements below the front that name a flag, and all of them."""
    raised = [
        (module, node)
        for module in checkout.modules.values()
        if not module.name.startswith(FRONT)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    ]
    naming = [node for _, node in raised if any(map(FLAG.search, _texts(node)))]
    return len(naming), len(raised)


def citations(checkout: Checkout) -> int:
    """Citations of documents that are not in the repository."""
    folders = (checkout.root / name for name in (PACKAGE, "tests", "benchmarks"))
    paths = (path for folder in folders for path in folder.rglob("*.py"))
    own = {Path(__file__).name, "test_documents.py"}
    return sum(len(OUTSIDE.findall(p.read_text())) for p in paths if p.name not in own)


def untyped(checkout: Checkout) -> int:
    """Occurrences of `dict[str, Any]` and of names that stand for it."""
    names = {
        node.targets[0].id
        for module in checkout.modules.values()
        for node in module.tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and ast.unparse(node.value) == "dict[str, Any]"
    }
    pattern = re.compile(r"(?:dict|Mapping)\[str, Any\]")
    alias = re.compile(rf"(?:: |-> |\[)(?:{'|'.join(sorted(names)) or '(?!)'})\b")
    return sum(
        len(pattern.findall(module.text)) + len(alias.findall(module.text))
        for module in checkout.modules.values()
    )


def _source(module: Module, node: ast.FunctionDef) -> str:
    """The function's code without its docstring."""
    first = node.body[0].end_lineno or 0 if ast.get_docstring(node) is not None else node.lineno
    return "\n".join(module.lines[first : node.end_lineno])


def _texts(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def table(checkouts: Sequence[Checkout]) -> str:
    """What is compared, a column for each checkout."""
    rows: dict[str, Callable[[Checkout], object]] = {
        "modules": lambda c: len(c.modules),
        "modules at the root": lambda c: sum("." not in n and _loose(c, n) for n in c.modules),
        "longest chain of imports": lambda c: len(c.longest_chain()),
        "import cycles": lambda c: len(c.cycles),
        "lines of the package": lambda c: sum(m.text.count("\n") for m in c.modules.values()),
        "lines of tests": lambda c: sum(
            path.read_text().count("\n") for path in (c.root / "tests").rglob("*.py")
        ),
        **{f"places that {what}": _counted(pattern) for what, pattern in PLACES.items()},
        "`dict[str, Any]` and aliases": untyped,
        "errors below the front that name flags": lambda c: "{} of {}".format(*flags_below(c)),
        "citations of documents outside": citations,
        f"functions of more than {LONG} lines": lambda c: sum(f.lines > LONG for f in c.functions),
        "longest functions": _longest,
        **{
            f"files on an expert's way, {stage}": _walked(stage)
            for stage in ("seeding", "training", "export")
        },
    }
    head = ["", *(checkout.root.name for checkout in checkouts)]
    lines = [head, ["---"] * len(head)]
    lines += [[what, *(str(count(c)) for c in checkouts)] for what, count in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _loose(checkout: Checkout, name: str) -> bool:
    """Whether a module is a file at the root, other than what every package has there."""
    path = checkout.modules[name].path
    return path.parent.name == PACKAGE and path.name not in ("__init__.py", "__main__.py")


def _counted(pattern: str) -> Callable[[Checkout], object]:
    return lambda checkout: len(places(checkout, pattern))


def _walked(stage: str) -> Callable[[Checkout], object]:
    return lambda checkout: len(walk(checkout, stage))


def _longest(checkout: Checkout) -> str:
    longest = sorted(checkout.functions, key=lambda f: -f.lines)[:3]
    return ", ".join(f"{function.title} {function.lines}" for function in longest)


def details(checkout: Checkout) -> Iterator[str]:
    """The places and walks that the table counts."""
    yield f"\n{checkout.root.name}"
    yield f"  chain: {' > '.join(checkout.longest_chain())}"
    for group in checkout.cycles:
        yield f"  cycle: {', '.join(group)}"
    for what, pattern in PLACES.items():
        yield f"  {what}: {', '.join(places(checkout, pattern))}"
    for stage in ("seeding", "training", "export"):
        yield f"  {stage}: {', '.join(walk(checkout, stage))}"


@contextmanager
def checkouts(words: Sequence[str]) -> Iterator[list[Checkout]]:
    """Those at `words`, folders of checkouts or revisions of this repository; without any, this."""
    here = Path(__file__).parents[1]
    with ExitStack() as held:
        found = []
        for word in words or [str(here)]:
            folder = Path(word)
            if not folder.is_dir():
                folder = Path(held.enter_context(TemporaryDirectory())) / word.replace("/", "-")
                _extract(here, word, folder)
            if not (folder / PACKAGE).is_dir():
                sys.exit(f"{word}: no folder {PACKAGE} in it; give folders of checkouts")
            found.append(Checkout(folder))
        yield found


def _extract(repository: Path, revision: str, folder: Path) -> None:
    """The files of `revision`, below the new `folder`."""
    command = ["git", "-C", str(repository), "archive", revision]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode:
        sys.exit(f"{revision}: neither a folder nor a revision: {made.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")


def main(arguments: list[str]) -> None:
    """Print the table, and with --walks what it counts."""
    with checkouts([word for word in arguments if not word.startswith("--")]) as found:
        print(table(found))
        if "--walks" in arguments:
            print("\n".join(line for checkout in found for line in details(checkout)))


if __name__ == "__main__":
    main(sys.argv[1:])
