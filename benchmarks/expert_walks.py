"""The files that one expert's weights pass through when it is seeded, trained, exported as factors.

Those of the functions that can be reached from the reader and from what takes a batch, followed by
name. The class of an object is what annotations and assignments say, or else the only one below
that has a method of the name.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from source_tree import Checkout, Function


def walk(checkout: Checkout, stage: str) -> list[str]:
    """Files whose functions an expert's weights can pass through in `stage`."""
    starts = _readers(checkout) + _takers(checkout, stage)
    types = Types(checkout)
    seen: dict[str, Function] = {}
    todo = list(starts)
    while todo:
        function = todo.pop()
        if function.title not in seen:
            seen[function.title] = function
            todo += _called(checkout, function, types)
    return sorted({function.module for function in seen.values()})


def _readers(checkout: Checkout) -> list[Function]:
    return [f for f in checkout.functions if f.owner == "ExpertReader" and f.node.name == "batches"]


def _takers(checkout: Checkout, stage: str) -> list[Function]:
    """What takes batches of experts: accumulators, or the writers of adapters."""
    if stage == "export":
        home = next(f.module for f in checkout.functions if f.node.name == "export_factors")
        own = [f for f in checkout.functions if f.module == home]
        writers = [f for f in own if f.owner.endswith("Writer") and f.node.name == "write"]
        return writers or [f for f in own if f.node.name == "_write_adapters"]
    shared = [f for f in checkout.functions if f.owner == "MeasureAccumulator"]
    own = [f for f in checkout.functions if f.module.startswith(f"{stage}.")]
    taking = shared + own if stage == "seeding" else own
    return [f for f in taking if f.owner and f.node.name == "update"]


def _called(checkout: Checkout, function: Function, types: "Types") -> Iterator[Function]:
    """Functions, methods and properties that `function` names."""
    imported = checkout.modules[function.module].imported
    for node in ast.walk(function.node):
        if isinstance(node, ast.Name):
            home, name = imported.get(node.id, (function.module, node.id))
            yield from checkout.defined(home, name)
            yield from types.made(home, name)
        elif isinstance(node, ast.Attribute):
            yield from types.attribute(function, node)
        elif isinstance(node, ast.withitem):
            yield from types.entered(function, node.context_expr)


@dataclass(frozen=True)
class Class:
    """A class of the package and where it is."""

    module: str
    node: ast.ClassDef

    @property
    def bases(self) -> list[str]:
        return [node.id for node in self.node.bases if isinstance(node, ast.Name)]


class Types:
    """Which classes an expression can be of, as far as annotations and assignments say.

    Of a container it is those of what it holds; of a protocol, those that have its methods, too.
    """

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout
        self._classes: dict[str, list[Class]] = {}
        for module in checkout.modules.values():
            for node in module.tree.body:
                if isinstance(node, ast.ClassDef):
                    self._classes.setdefault(node.name, []).append(Class(module.name, node))
        self._methods: dict[tuple[str, str], list[Function]] = {}
        for function in checkout.functions:
            key = (function.module, function.owner)
            self._methods.setdefault(key, []).append(function)

    def made(self, home: str, name: str) -> Iterator[Function]:
        """What runs when the class `name` of the module `home` is called, if it is one."""
        if any(one.module == home for one in self._classes.get(name, [])):
            for method in self._methods.get((home, name), []):
                if method.node.name in ("__init__", "__post_init__"):
                    yield method

    def attribute(self, function: Function, node: ast.Attribute) -> Iterator[Function]:
        """The method or property that `node` is, of the classes that its owner can be of."""
        known = self._of(function, node.value, 0)
        if known:
            yield from (f for one in known for f in self._members(one, node.attr))
            return
        checkout = self._checkout
        if isinstance(node.value, ast.Name):
            imported = checkout.modules[function.module].imported.get(node.value.id)
            if imported is not None:
                yield from checkout.defined(".".join(filter(None, imported)), node.attr)
                return
        below = checkout.below(function.module)
        owners = [f for f in checkout.named.get(node.attr, []) if f.owner and f.module in below]
        yield from owners if len(owners) == 1 else ()

    def entered(self, function: Function, node: ast.expr) -> Iterator[Function]:
        """What `with` calls of the classes that `node` can be of."""
        for one in self._of(function, node, 0):
            yield from self._members(one, "__enter__")
            yield from self._members(one, "__exit__")

    def _members(self, one: Class, name: str) -> list[Function]:
        """The methods `name` of a class, else of its bases; of a protocol, of all that fit it."""
        if "Protocol" in one.bases:
            fitting = [other for other in self._fitting(one) if other is not one]
            return [f for other in fitting for f in self._members(other, name)]
        own = self._methods.get((one.module, one.node.name), [])
        found = [function for function in own if function.node.name == name]
        bases = [base for word in one.bases for base in self._named(one.module, word)]
        return found or [f for base in bases for f in self._members(base, name)]

    def _fitting(self, protocol: Class) -> Iterator[Class]:
        own = self._methods.get((protocol.module, protocol.node.name), [])
        wanted = {f.node.name for f in own if not f.node.decorator_list}
        for (module, owner), functions in self._methods.items():
            if owner and wanted <= {function.node.name for function in functions}:
                found = (one for one in self._classes.get(owner, []) if one.module == module)
                yield from (one for one in found if "Protocol" not in one.bases)

    def _named(self, module: str, name: str) -> list[Class]:
        """The classes that the word `name` in `module` can mean."""
        home, own = self._checkout.modules[module].imported.get(name, (module, name))
        return [one for one in self._classes.get(own, []) if one.module == home]

    def _annotated(self, module: str, node: ast.expr | None) -> list[Class]:
        """Every class that an annotation names."""
        if node is None:
            return []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        words = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
        return [one for word in words for one in self._named(module, word)]

    def _of(self, function: Function, node: ast.expr, depth: int) -> list[Class]:
        """The classes that `node`, in `function`, can be of."""
        if depth > 6:
            return []
        if isinstance(node, ast.Name):
            return self._of_name(function, node.id, depth)
        if isinstance(node, ast.Attribute):
            owners = self._of(function, node.value, depth + 1)
            return [one for owner in owners for one in self._field(owner, node.attr, depth)]
        if isinstance(node, ast.Subscript):
            return self._of(function, node.value, depth + 1)
        if isinstance(node, ast.Call):
            return self._result(function, node.func, depth)
        return []

    def _of_name(self, function: Function, name: str, depth: int) -> list[Class]:
        module = function.module
        if name in ("self", "cls") and function.owner:
            return [one for one in self._classes[function.owner] if one.module == module]
        arguments = function.node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.arg == name:
                return self._annotated(module, argument.annotation)
        for target, value in _bound(function.node):
            if target == name:
                return self._of(function, value, depth + 1)
        return []

    def _result(self, function: Function, called: ast.expr, depth: int) -> list[Class]:
        """The classes of what calling `called` returns."""
        if isinstance(called, ast.Name):
            home, name = self._checkout.modules[function.module].imported.get(
                called.id, (function.module, called.id)
            )
            found = self._checkout.defined(home, name)
            made = [one for one in self._classes.get(name, []) if one.module == home]
            return made + [c for f in found for c in self._annotated(f.module, f.node.returns)]
        if not isinstance(called, ast.Attribute):
            return []
        owners = self._of(function, called.value, depth + 1)
        if not owners and isinstance(called.value, ast.Name):
            owners = self._named(function.module, called.value.id)
        return [
            one
            for owner in owners
            for method in self._members(owner, called.attr)
            for one in self._annotated(method.module, method.node.returns)
        ]

    def _field(self, owner: Class, name: str, depth: int) -> list[Class]:
        """The classes of an attribute: a field, a property, or what __init__ assigns."""
        for node in owner.node.body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
                return self._annotated(owner.module, node.annotation)
        found: list[Class] = []
        for method in self._methods.get((owner.module, owner.node.name), []):
            if method.node.name == name:
                found += self._annotated(method.module, method.node.returns)
            elif method.node.name == "__init__":
                for target, value in _bound(method.node):
                    if target == f"self.{name}":
                        found += self._of(method, value, depth + 1)
        bases = [base for word in owner.bases for base in self._named(owner.module, word)]
        return found or [one for base in bases for one in self._field(base, name, depth)]


def _bound(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """Names and attributes that a function binds by assignment, `with` or `for`, and to what."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and node.value is not None:
            for target in node.targets:
                yield from _pairs(target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield ast.unparse(node.target), node.value
        elif isinstance(node, ast.With):
            for item in node.items:
                if item.optional_vars is not None:
                    yield ast.unparse(item.optional_vars), item.context_expr
        elif isinstance(node, ast.For | ast.comprehension):
            yield ast.unparse(node.target), node.iter


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """What is bound to what in one assignment, element by element where both are tuples."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, other in zip(target.elts, value.elts, strict=False):
            yield from _pairs(one, other)
    else:
        yield ast.unparse(target), value
