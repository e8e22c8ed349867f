"""What a checkout of this project looks like from outside, for comparing two of them.

    python benchmarks/structure.py OLD NEW [--walks]

Reads source files only (syntax trees and text; nothing is imported), so that it runs on any
version, and prints a table with a column for each checkout. "Places" are functions that match a
pattern, listed with `--walks`; so are the files that one expert's weights pass through when it is
seeded, trained and exported: those of the functions that can be reached from the reader and from
what takes a batch, followed by name (imports, methods of the same class, and methods whose name
only one class below has).
"""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "globe_stream"
FRONT = ("cli.", "commands.")
LONG = 40
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
OUTSIDE = re.compile(
    r"\b(?:method|contract|architecture|field-notes|checkpoint-layouts)\.md\b|warm-start\s+guidelines"
    r"|bank\s+workflow|am-loop\s+notes|training-focus\s+notes|field\s+notes|method\s+notes"
    r"|seeds'\s+(?:Route|alternating)|[Tt]he seeds print"
)
PLACES = {
    "compose a mixture": r"mm\(codes, tile|add_\([^\n]*(?:atom|atoms\[)[^\n]*alpha=",
    "pool errors": r"/ \(?[\w.]*norms?\b[^\n]*(?:\*\* ?0\.5|sqrt\()|sqrt\([^\n]*/ [\w.]*norms?\b"
    r"|@ np\.square\(errors\)|_lost / self\._whole|/ squared_norm\(|[^\n]*\bcount \* [^\n]*error",
    "lay out safetensors files": r"plan_header\(|to_bytes\(PREFIX_BYTES",
    "read exact byte ranges": r"os\.preadv?\(",
    "replace a file atomically": r"partial\.replace\(|os\.replace\(|os\.rename\(partial",
    "translate errors of the system": r"error\.strerror",
}
"""Functions whose body matches know how to do it."""


@dataclass(frozen=True)
class Function:
    """A function or method and where it is."""

    module: str
    owner: str  # the class, or ""
    node: ast.FunctionDef

    @property
    def lines(self) -> int:
        return (self.node.end_lineno or 0) - self.node.lineno + 1

    @property
    def title(self) -> str:
        return ".".join(filter(None, (self.module, self.owner, self.node.name)))


@dataclass(frozen=True)
class Module:
    """One source file of the package."""

    name: str  # without the package's own, "" for its __init__
    text: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def imported(self) -> dict[str, tuple[str, str]]:
        return _imported_names(self.tree)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def functions(self) -> list[Function]:
        """Functions of the module and methods of its classes."""
        found = []
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef):
                found.append(Function(self.name, "", node))
            elif isinstance(node, ast.ClassDef):
                found += [
                    Function(self.name, node.name, item)
                    for item in node.body
                    if isinstance(item, ast.FunctionDef)
                ]
        return found


class Checkout:
    """The package in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules = {module.name: module for module in _modules(root / PACKAGE)}
        self._reachable: dict[str, set[str]] = {}
        self.imports = {name: set(self._imported(m)) for name, m in self.modules.items()}

    def _imported(self, module: Module) -> Iterator[str]:
        """Modules of the package that are imported when `module` is, not inside functions."""
        for node in _at_import(module.tree.body):
            for name in _names(node):
                yield from (n for n in (name, name.rpartition(".")[0]) if n in self._real)

    @cached_property
    def _real(self) -> set[str]:
        return {name for name, module in self.modules.items() if name or module.text}

    @cached_property
    def cycles(self) -> list[list[str]]:
        """Strongly connected components of more than one module (Tarjan 1972)."""
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        found: list[list[str]] = []

        def visit(name: str) -> None:
            index[name] = low[name] = len(index)
            stack.append(name)
            for other in sorted(self.imports[name] - {name, ""}):
                if other not in index:
                    visit(other)
                if other in stack:
                    low[name] = min(low[name], low[other])
            if low[name] == index[name]:
                at = stack.index(name)
                found.append(stack[at:])
                del stack[at:]

        for name in self.modules:
            if name not in index:
                visit(name)
        return [group for group in found if len(group) > 1]

    def longest_chain(self) -> list[str]:
        """The longest chain of modules each of which imports the next."""
        best: dict[str, list[str]] = {}

        def chain(name: str, above: frozenset[str]) -> list[str]:
            if name not in best:
                below = (
                    chain(other, above | {name})
                    for other in sorted(self.imports[name] - above - {name, ""})
                )
                best[name] = [name, *max(below, key=len, default=[])]
            return best[name]

        return max((chain(name, frozenset()) for name in self.modules), key=len)

    @cached_property
    def functions(self) -> list[Function]:
        """Of all modules."""
        return [function for module in self.modules.values() for function in module.functions]

    @cached_property
    def named(self) -> dict[str, list[Function]]:
        """Functions and methods by their own name."""
        found: dict[str, list[Function]] = {}
        for function in self.functions:
            found.setdefault(function.node.name, []).append(function)
        return found

    def places(self, pattern: str) -> list[str]:
        """Functions whose source matches."""
        wanted = re.compile(pattern)
        return [
            function.title
            for function in self.functions
            if wanted.search(_source(self.modules[function.module], function.node))
        ]

    def flags_below(self) -> tuple[int, int]:
        """Raise statements below the front that name a flag, and all of them."""
        raised = [
            (module, node)
            for module in self.modules.values()
            if not module.name.startswith(FRONT)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        ]
        naming = [node for _, node in raised if any(map(FLAG.search, _texts(node)))]
        return len(naming), len(raised)

    def citations(self) -> int:
        """Citations of documents that are not in the repository."""
        folders = (self.root / name for name in (PACKAGE, "tests", "benchmarks"))
        paths = (path for folder in folders for path in folder.rglob("*.py"))
        own = {Path(__file__).name, "test_documents.py"}
        return sum(len(OUTSIDE.findall(p.read_text())) for p in paths if p.name not in own)

    def untyped(self) -> int:
        """Occurrences of `dict[str, Any]` and of names that stand for it."""
        names = {
            node.targets[0].id
            for module in self.modules.values()
            for node in module.tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and ast.unparse(node.value) == "dict[str, Any]"
        }
        pattern = re.compile(r"(?:dict|Mapping)\[str, Any\]")
        alias = re.compile(rf"(?:: |-> |\[)(?:{'|'.join(sorted(names)) or '(?!)'})\b")
        return sum(
            len(pattern.findall(module.text)) + len(alias.findall(module.text))
            for module in self.modules.values()
        )

    # -- one expert's way ----------------------------------------------------------------------

    def walk(self, stage: str) -> list[str]:
        """Files whose functions an expert's weights can pass through in `stage`."""
        starts = self._readers() + self._takers(stage)
        seen: dict[str, Function] = {}
        todo = list(starts)
        while todo:
            function = todo.pop()
            if function.title not in seen:
                seen[function.title] = function
                todo += self._called(function)
        return sorted({function.module for function in seen.values()})

    def _readers(self) -> list[Function]:
        return [f for f in self.functions if f.owner == "ExpertReader" and f.node.name == "batches"]

    def _takers(self, stage: str) -> list[Function]:
        """What takes batches of experts: accumulators, or the writers of adapters."""
        if stage == "export":
            home = next(f.module for f in self.functions if f.node.name == "export_factors")
            return [
                f for f in self.functions if f.module == home and f.node.name == "_write_adapters"
            ]
        shared = [f for f in self.functions if f.owner == "MeasureAccumulator"]
        own = [f for f in self.functions if f.module.startswith(f"{stage}.")]
        taking = shared + own if stage == "seeding" else own
        return [f for f in taking if f.owner and f.node.name == "update"]

    def _called(self, function: Function) -> Iterator[Function]:
        module = self.modules[function.module]
        imported = module.imported
        for node in ast.walk(function.node):
            if isinstance(node, ast.Name):
                home, name = imported.get(node.id, (function.module, node.id))
                yield from self._defined(home, name)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield from self._method(function, node.func, imported)

    def _defined(self, home: str, name: str) -> list[Function]:
        return [f for f in self.named.get(name, []) if f.module == home and not f.owner]

    def _method(
        self, function: Function, node: ast.Attribute, imported: dict[str, tuple[str, str]]
    ) -> Iterator[Function]:
        known = self.named.get(node.attr, [])
        base = node.value.id if isinstance(node.value, ast.Name) else ""
        if base == "self":
            here = (function.module, function.owner)
            yield from (f for f in known if (f.module, f.owner) == here)
        elif base in imported:
            home, name = imported[base]
            yield from self._defined(".".join(filter(None, (home, name))), node.attr)
            yield from (f for f in known if f.owner == name)
        else:
            below = self._below(function.module)
            owners = [f for f in known if f.owner and f.module in below]
            yield from owners if len(owners) == 1 else ()

    def _below(self, name: str) -> set[str]:
        """The module and all that it imports, directly or not."""
        if name not in self._reachable:
            found, todo = {name}, [name]
            while todo:
                more = self.imports[todo.pop()] - found
                found |= more
                todo += more
            self._reachable[name] = found
        return self._reachable[name]


def _modules(folder: Path) -> Iterator[Module]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        yield Module(name, path.read_text(), path)


def _at_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Import statements that run when a module is imported, those for type checkers left out."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.Try):
            yield from _at_import(node.body)


def _names(node: ast.stmt) -> Iterator[str]:
    """What an import statement names, as modules of the package or names in them."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
        home = (node.module or "").removeprefix(PACKAGE).removeprefix(".")
        yield from (".".join(filter(None, (home, alias.name))) for alias in node.names)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.startswith(f"{PACKAGE}."):
                yield alias.name.removeprefix(f"{PACKAGE}.")


def _imported_names(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Local name -> (module of the package, name in it), imports inside functions included."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            home = (node.module or "").removeprefix(PACKAGE).removeprefix(".")
            for alias in node.names:
                found[alias.asname or alias.name] = (home, alias.name)
    return found


def _source(module: Module, node: ast.FunctionDef) -> str:
    """The function's code without its docstring."""
    first = node.body[0].end_lineno or 0 if ast.get_docstring(node) is not None else node.lineno
    return "\n".join(module.lines[first : node.end_lineno])


def _texts(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def table(checkouts: list[Checkout]) -> str:
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
        "`dict[str, Any]` and aliases": lambda c: c.untyped(),
        "errors below the front that name flags": lambda c: "{} of {}".format(*c.flags_below()),
        "citations of documents outside": lambda c: c.citations(),
        f"functions of more than {LONG} lines": lambda c: sum(f.lines > LONG for f in c.functions),
        "longest functions": _longest,
        **{
            f"files on an expert's way, {stage}": _walked(stage)
            for stage in ("seeding", "training", "export")
        },
    }
    head = ["", *(str(checkout.root) for checkout in checkouts)]
    lines = [head, ["---"] * len(head)]
    lines += [[what, *(str(count(c)) for c in checkouts)] for what, count in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _loose(checkout: Checkout, name: str) -> bool:
    """Whether a module is a file at the root, other than what every package has there."""
    path = checkout.modules[name].path
    return path.parent.name == PACKAGE and path.name not in ("__init__.py", "__main__.py")


def _counted(pattern: str) -> Callable[[Checkout], object]:
    return lambda checkout: len(checkout.places(pattern))


def _walked(stage: str) -> Callable[[Checkout], object]:
    return lambda checkout: len(checkout.walk(stage))


def _longest(checkout: Checkout) -> str:
    longest = sorted(checkout.functions, key=lambda f: -f.lines)[:3]
    return ", ".join(f"{function.title} {function.lines}" for function in longest)


def details(checkout: Checkout) -> Iterator[str]:
    """The places and walks that the table counts."""
    yield f"\n{checkout.root}"
    yield f"  chain: {' > '.join(checkout.longest_chain())}"
    for group in checkout.cycles:
        yield f"  cycle: {', '.join(group)}"
    for what, pattern in PLACES.items():
        yield f"  {what}: {', '.join(checkout.places(pattern))}"
    for stage in ("seeding", "training", "export"):
        yield f"  {stage}: {', '.join(checkout.walk(stage))}"


def main(arguments: list[str]) -> None:
    """Print the table, and with --walks what it counts."""
    roots = [Path(word) for word in arguments if not word.startswith("--")]
    roots = roots or [Path(__file__).parents[1]]
    missing = [str(root) for root in roots if not (root / PACKAGE).is_dir()]
    if missing:
        sys.exit(f"{', '.join(missing)}: no folder {PACKAGE} in it; give folders of checkouts")
    checkouts = [Checkout(root) for root in roots]
    print(table(checkouts))
    if "--walks" in arguments:
        print("\n".join(line for checkout in checkouts for line in details(checkout)))


if __name__ == "__main__":
    main(sys.argv[1:])
