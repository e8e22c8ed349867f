"""Inputs that are almost right: headers, indices, recipes, ledgers and whole small checkpoints.

Whatever they hold, a command reads them or refuses them in one line; it does not hang, take more
memory than it may, or write outside its run. Examples come from hypothesis; `benchmarks/fuzz.py`
feeds the same checks with atheris.
"""

import copy
import json
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import disk_faults
import kills
import psutil
import support
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.json_files import INDEX_NAME
from globe_stream.commands.recipe import load_recipe
from globe_stream.errors import GlobeError
from globe_stream.io.safetensors import read_header

SECONDS, BYTES = 30, 2 << 30
"""What one input may take, beyond what the process has."""

RECIPE = Path(__file__).parents[2] / "pipelines" / "ci.toml"

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, -1, 2**31, 2**40, 2**62, 10**12])
    | st.floats()
    | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=5,
)


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value inside `value`, itself aside."""
    keys = range(len(value)) if isinstance(value, list) else value
    for key in keys if isinstance(value, list | dict) else ():
        yield (*before, key)
        yield from _places(value[key], (*before, key))


@st.composite
def changed_json(draw: st.DrawFn, valid: Any) -> Any:
    """`valid` with one to three of its values or keys changed, or one left out."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return value
        *way, key = draw(st.sampled_from(places))
        holder = value
        for step in way:
            holder = holder[step]
        kind = draw(st.sampled_from(["replace", "replace", "near", "remove", "rename"]))
        if kind == "near" and type(holder[key]) is int:
            holder[key] += draw(st.sampled_from([-1, 1, 8, -8, 1 << 33]))
        elif kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            name = draw(
                st.sampled_from([str(key).replace("0", "1"), str(key)[:-1], "999999999999"])
            )
            holder[name] = holder.pop(key)
        else:
            holder[key] = draw(VALUES)
    return value


@st.composite
def changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` with one to three bytes changed, put in or left out, or cut off."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["flip", "set", "insert", "remove", "cut"]))
        if kind == "cut" or not content:
            del content[at:]
        elif kind == "flip":
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=3))
        elif kind == "set":
            content[at] = draw(st.sampled_from(b'0129{}[]",:-.e\n\0\xff'))
        else:
            del content[at]
    return bytes(content)


def packed(fields: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data


class Inputs:
    """Valid files in `folder`, strategies of almost valid ones, and a check for each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = kills.write_checkpoint(folder / "checkpoint")
        self.run = folder / "run"
        ended = disk_faults.carry_out(self._seed(self.checkpoint, self.run))
        assert ended.code == 0, ended
        self.rows = [json.loads(row) for row in support.ledger_rows(self.run)]
        self.shard = sorted(self.checkpoint.glob("*.safetensors"))[0]
        raw = self.shard.read_bytes()
        self.length = 8 + int.from_bytes(raw[:8], "little")
        self.fields, self.data = json.loads(raw[8 : self.length]), raw[self.length :]
        self.small = {name: self.fields[name] for name in list(self.fields)[:3]}
        self.index = json.loads((self.checkpoint / INDEX_NAME).read_bytes())
        self.config = json.loads((self.checkpoint / "config.json").read_bytes())
        self.scratch = folder / "scratch"
        self.scratch.mkdir()

    def _seed(self, checkpoint: Path, run: Path) -> list[str]:
        options = ["--families", "up", "--dictionary-rounds", "2", "--memory", "2GiB"]
        return ["seed", str(checkpoint), "--run", str(run), *options]

    # -- strategies --------------------------------------------------------------------------------

    def headers(self) -> st.SearchStrategy[bytes]:
        """Files that are almost safetensors."""
        whole = packed(self.small)
        return changed_json(self.small).map(packed) | changed_bytes(whole) | st.binary(max_size=64)

    def indices(self) -> st.SearchStrategy[bytes]:
        """Files that are almost an index of shards."""
        text = json.dumps(self.index)
        return changed_json(self.index).map(_text) | changed_bytes(text.encode())

    def configs(self) -> st.SearchStrategy[bytes]:
        """Files that are almost a config.json."""
        return changed_json(self.config).map(_text)

    def recipes(self) -> st.SearchStrategy[bytes]:
        """Files that are almost a recipe."""
        return changed_bytes(RECIPE.read_bytes())

    def ledgers(self) -> st.SearchStrategy[Any]:
        """Rows with good checksums that say something else, or a file with changed bytes."""
        whole = (self.run / "ledger.jsonl").read_bytes()
        return changed_json(self.rows) | changed_bytes(whole)

    def checkpoints(self) -> st.SearchStrategy[tuple[str, bytes]]:
        """One file of a checkpoint, and what it holds instead."""
        shard = self.shard.read_bytes()
        return st.one_of(
            self.configs().map(lambda text: ("config.json", text)),
            self.indices().map(lambda text: (INDEX_NAME, text)),
            changed_json(self.fields).map(lambda f: (self.shard.name, packed(f, self.data))),
            changed_bytes(shard[: self.length]).map(
                lambda head: (self.shard.name, head + self.data)
            ),
            changed_bytes(shard).map(lambda whole: (self.shard.name, whole)),
        )

    def examples(self, kind: str) -> list[bytes]:
        """A valid file of a kind, to begin from."""
        valid = {
            "header": packed(self.small),
            "index": _text(self.index),
            "config": _text(self.config),
            "recipe": RECIPE.read_bytes(),
        }
        return [valid[kind]]

    # -- checks ------------------------------------------------------------------------------------

    def check_header(self, content: bytes) -> None:
        """A file is read, or refused in one line that names it."""
        path = self.scratch / "x.safetensors"
        path.write_bytes(content)
        with _bounded():
            _read_or_refuse(lambda: read_header(path), str(path))

    def check_index(self, content: bytes) -> None:
        """As `check_header`, of an index beside its shards."""
        self._check_beside(INDEX_NAME, content)

    def check_config(self, content: bytes) -> None:
        """As `check_header`, of a config.json beside its shards."""
        self._check_beside("config.json", content)

    def check_recipe(self, content: bytes) -> None:
        """As `check_header`, of a recipe."""
        path = self.scratch / "recipe.toml"
        path.write_bytes(content)
        with _bounded():
            _read_or_refuse(lambda: load_recipe(path), str(path))

    def check_ledger(self, content: Any) -> None:
        """`status` reads a run with such a record, or refuses it in one line; changes nothing."""
        run = self.scratch / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.run, run)
        if isinstance(content, bytes):
            (run / "ledger.jsonl").write_bytes(content)
        else:
            rows = content if isinstance(content, list) else [content]
            support.write_ledger(run, [json.dumps(row) for row in rows if isinstance(row, dict)])
        before = support.tree(run)
        with _bounded():
            self._ended_well(["status", str(run)])
        assert support.tree(run) == before

    def check_checkpoint(self, change: tuple[str, bytes]) -> None:
        """`seed` takes the checkpoint or refuses it in one line, and writes into its run alone."""
        name, content = change
        own, run = self.scratch / "own", self.scratch / "seeded"
        for folder in (own, run):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.checkpoint, own)
        (own / name).write_bytes(content)
        before, beside = support.tree(own), sorted(self.scratch.iterdir())
        with _bounded():
            code = self._ended_well(self._seed(own, run))
        assert support.tree(own) == before
        assert code == 0 or not run.exists()
        assert sorted({*beside, run}) == sorted({*self.scratch.iterdir(), run})

    def _check_beside(self, name: str, content: bytes) -> None:
        own = self.scratch / "beside"
        if not own.exists():
            shutil.copytree(self.checkpoint, own)
        kept = (own / name).read_bytes()
        (own / name).write_bytes(content)
        try:
            with _bounded():
                _read_or_refuse(lambda: open_index(str(own)), str(own))
        finally:
            (own / name).write_bytes(kept)

    def _ended_well(self, arguments: list[str]) -> int:
        ended = disk_faults.carry_out(arguments)
        if ended.code != 0:
            assert not disk_faults.problem_of(ended), (ended, arguments)
        assert ended.code is not None
        return ended.code


KINDS = ("header", "index", "config", "recipe", "ledger", "checkpoint")
_STRATEGIES = {"index": "indices"}


def strategy_of(inputs: Inputs, kind: str) -> st.SearchStrategy[Any]:
    """The almost valid inputs of a kind."""
    found: st.SearchStrategy[Any] = getattr(inputs, _STRATEGIES.get(kind, f"{kind}s"))()
    return found


def check_of(inputs: Inputs, kind: str) -> Callable[[Any], None]:
    """What must hold of every input of a kind."""
    check: Callable[[Any], None] = getattr(inputs, f"check_{kind}")
    return check


def _text(value: Any) -> bytes:
    return json.dumps(value).encode()


def _read_or_refuse(read: Callable[[], object], where: str) -> None:
    told = where
    try:
        read()
    except GlobeError as error:
        told = str(error)
    assert len(told.splitlines()) == 1, told
    assert where in told


@contextmanager
def _bounded() -> Iterator[None]:
    """Fail what takes longer than SECONDS or BYTES more than it has."""

    def late(*_: object) -> None:
        raise AssertionError(f"took longer than {SECONDS} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + BYTES, limits[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def explore(inputs: Inputs, kind: str, examples: int, number: int) -> list[str]:
    """What is wrong with how `examples` inputs of a kind, drawn by the seed `number`, are met."""
    found: dict[str, str] = {}

    @seed(number)
    @settings(
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=False,
        deadline=None,
        phases=[Phase.generate],
    )
    @given(strategy_of(inputs, kind))
    def check(value: Any) -> None:
        try:
            check_of(inputs, kind)(value)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            place = ", ".join(f"{Path(one.filename).name}:{one.lineno}" for one in frames)
            found.setdefault(place, f"{kind}: {type(error).__name__}: {error} ({place})"[:600])

    check()
    return list(found.values())
