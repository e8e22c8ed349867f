"""The source of a checkout as data: modules, what they import, functions and methods."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "globe_stream"


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

    def defined(self, home: str, name: str) -> list[Function]:
        """The function `name` of the module `home`."""
        return [f for f in self.named.get(name, []) if f.module == home and not f.owner]

    def below(self, name: str) -> set[str]:
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
