"""Which tensors an export holds: in its files, by its index, and by its source's list.

Reads headers only.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from globe_stream.checkpoint.json_files import parse_weight_map
from globe_stream.errors import GlobeError
from globe_stream.io.records import Record
from globe_stream.io.safetensors import read_header

_SUFFIX, _INDEX = ".safetensors", ".safetensors.index.json"


@dataclass(frozen=True)
class TensorList(Record):
    """How many tensors there are, and the sha256 of their sorted names, a line each."""

    count: int
    sha256: str

    @classmethod
    def of(cls, names: Iterable[str]) -> "TensorList":
        """The summary of `names`."""
        listed = sorted(names)
        text = "".join(f"{name}\n" for name in listed)
        return cls(len(listed), hashlib.sha256(text.encode()).hexdigest())


def tensors_in(files: Mapping[str, Path]) -> dict[str, str]:
    """Every tensor of the safetensors files among `files` (name to place), with its file's name.

    Raises InputError for a file whose header cannot be trusted, GlobeError when two hold a tensor
    of one name.
    """
    held: dict[str, str] = {}
    for name, place in sorted(files.items()):
        if not name.endswith(_SUFFIX):
            continue
        for entry in read_header(place).tensors:
            other = held.setdefault(entry.name, name)
            if other != name:
                raise GlobeError(f"{place}: tensor {entry.name} is also in {other}")
    return held


def index_problems(files: Mapping[str, Path], held: Mapping[str, str]) -> list[str]:
    """What the index files among `files` say that is not so, given the tensors `held`."""
    problems = []
    for name, place in sorted(files.items()):
        if not name.endswith(_INDEX):
            continue
        said = parse_weight_map(place)
        wrong = sorted(tensor for tensor, file in said.items() if held.get(tensor) != file)
        left_out = sorted(t for t, file in held.items() if file in said.values() and t not in said)
        if wrong:
            problems.append(
                f"{place}: says that tensor {wrong[0]} is in {said[wrong[0]]}, where it is not"
                f"{_more(wrong)}"
            )
        if left_out:
            problems.append(
                f"{place}: leaves out tensor {left_out[0]} of {held[left_out[0]]}{_more(left_out)}"
            )
    return problems


def require_content(
    out: Path, files: Mapping[str, Path], expected: Iterable[str] = ()
) -> TensorList:
    """What the finished `files` of the export to `out` hold.

    Raises GlobeError unless index and files agree and every tensor of `expected` is there; nothing
    is to be published then.
    """
    held = tensors_in(files)
    problems = index_problems(files, held)
    missing = sorted(set(expected) - set(held))
    if missing:
        problems.append(f"{out}: tensor {missing[0]} of the source is missing{_more(missing)}")
    if problems:
        raise GlobeError(
            f"{problems[0]}. Nothing was published; this is a defect of globe-stream: "
            "please report it"
        )
    return TensorList.of(held)


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more like it" if len(names) > 1 else ""
