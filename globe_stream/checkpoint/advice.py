"""Advice on a checkpoint whose experts no rule knows: what was seen, and what comes nearest."""

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

from globe_stream.checkpoint.layouts import ModelType
from globe_stream.checkpoint.model_types import MODEL_TYPES
from globe_stream.checkpoint.names import looks_like_expert, parser_with
from globe_stream.errors import option
from globe_stream.io.safetensors import TensorEntry

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_SHOWN = 4
_LAYER = re.compile(r"(?:.*\.)?(?:layers|blocks|mtp|h)\.\{L\}\.")
_TAILS = {
    "A": "{E}.gate_proj.weight {E}.up_proj.weight {E}.down_proj.weight",
    "B": "{E}.w1.weight {E}.w3.weight {E}.w2.weight",
    "C": "gate_up_proj down_proj",
    "D": "gate_up_proj down_proj",
    "E": "gate_up_proj down_proj",
    "F": "w1 v1 w2",
    "G": "gate_proj.weight up_proj.weight down_proj.weight",
    "H": "w13_weight w2_weight",
}


def how_to_add(entries: Sequence[TensorEntry]) -> str:
    """What was seen of experts, the rule that comes nearest, and how to give one of one's own."""
    seen = _seen(entries) or _numbered(entries)
    if not seen:
        return f"If it has experts, give a rule for their names with {option('layout')} FILE."
    name, rule = nearest(list(seen))
    shown = ", ".join(f"{pattern} {shape}" for pattern, shape in list(seen.items())[:_SHOWN])
    return (
        f"Seen: {shown}. The nearest rule is that of {name} (kinds {', '.join(rule.kinds)} in "
        f"{rule.module}); give one of your own with {option('layout')} FILE (docs/layouts.md)."
    )


def _seen(entries: Iterable[TensorEntry]) -> dict[str, list[int]]:
    """Patterns of the names that look like experts', each with one shape."""
    parser = parser_with()
    found: dict[str, list[int]] = {}
    for entry in entries:
        if looks_like_expert(entry.name, entry.shape) or parser.parse(entry.name):
            found.setdefault(pattern_of(entry.name), list(entry.shape))
    return found


def _numbered(entries: Iterable[TensorEntry]) -> dict[str, list[int]]:
    """As `_seen`, of matrices with a second number in their names, and stacks of matrices."""
    found: dict[str, list[int]] = {}
    for entry in entries:
        pattern = pattern_of(entry.name)
        if len(entry.shape) == 3 or (len(entry.shape) == 2 and "{E}" in pattern):
            found.setdefault(pattern, list(entry.shape))
    return found


def pattern_of(name: str) -> str:
    """A tensor's name with {L} for the number of its layer and {E} for that of its expert."""
    marks = iter(("{L}", "{E}"))
    return _NUMBER.sub(lambda match: next(marks, match.group()), name)


def nearest(patterns: Sequence[str]) -> tuple[str, ModelType]:
    """The registered type whose names are most like `patterns`; the first of equals."""
    tails = [_LAYER.sub("", pattern) for pattern in patterns]
    return max(MODEL_TYPES.items(), key=lambda item: _likeness(tails, item[1]))


def _likeness(tails: Sequence[str], rule: ModelType) -> float:
    """The mean over `tails` of the best match with one of the rule's names."""
    own = [
        f"{module}.{tail}"
        for module in rule.modules
        for kind in rule.kinds
        for tail in _TAILS[kind].split()
    ]
    best = (max(SequenceMatcher(None, tail, name).ratio() for name in own) for tail in tails)
    return sum(best) / len(tails)
