"""Records: one JSON form, and one line for whatever does not fit it."""

import json
import math
from dataclasses import dataclass, replace
from typing import Annotated

import pytest
from pydantic import Field

from globe_stream.errors import InputError
from globe_stream.io.records import Json, Record


@dataclass(frozen=True)
class Inner(Record):
    count: int
    pair: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer(Record):
    lam: Annotated[float, Field(alias="lambda")]
    inner: Inner
    free: Json
    numbers: dict[str, int | float]
    more: dict[str, Inner] | None = None


WHOLE = Outer(
    0.5,
    Inner(1, (1.0, math.inf, -math.inf)),
    {"a": [1, None, {"b": "c"}]},
    {"whole": 1, "part": 2.0},
    {"x": Inner(3)},
)
PLAIN = {
    "lambda": 0.5,
    "inner": {"count": 1, "pair": [1.0, math.inf, -math.inf]},
    "free": {"a": [1, None, {"b": "c"}]},
    "numbers": {"whole": 1, "part": 2.0},
    "more": {"x": {"count": 3, "pair": []}},
}


def test_the_json_form_is_plain_and_comes_back():
    assert WHOLE.to_json() == PLAIN
    read = Outer.from_json(json.loads(json.dumps(PLAIN)), "here")
    assert read == WHOLE
    assert [type(value) for value in read.numbers.values()] == [int, float]
    assert isinstance(read.inner.pair, tuple)


def test_not_a_number_survives():
    changed = replace(WHOLE, lam=math.nan)
    assert math.isnan(Outer.from_json(json.loads(json.dumps(changed.to_json())), "here").lam)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extra": 1}, "extra is not known"),
        ({"lam": 1.0}, "lam is not known"),
        ({"lambda": None}, "lambda: input should be a valid number, found None"),
        ({"inner": {"pair": []}}, "inner.count is missing"),
        ({"inner": {"count": 1, "size": 2}}, "inner.size is not known"),
        ({"inner": {"count": "1"}}, "inner.count: input should be a valid integer, found '1'"),
        ({"more": {"x": {"count": 1.5}}}, "more.x.count: input should be a valid integer"),
        ({"numbers": {"a": "b"}}, "numbers.a"),
    ],
)
def test_what_does_not_fit_is_one_line_with_file_key_and_advice(change, reason):
    with pytest.raises(InputError) as raised:
        Outer.from_json({**PLAIN, **change}, "run/ledger.jsonl", "Seed it anew")
    said = str(raised.value)
    assert said.startswith(f"run/ledger.jsonl: {reason}")
    assert said.endswith(". Seed it anew")
    assert "\n" not in said


@pytest.mark.parametrize("value", [[1], "text", None, 3])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(InputError, match=r"^here: it: input should be an object"):
        Outer.from_json(value, "here")


def test_a_missing_key_is_named():
    for key in PLAIN:
        rest = {name: value for name, value in PLAIN.items() if name != key}
        if key == "more":
            assert Outer.from_json(rest, "here").more is None
            continue
        with pytest.raises(InputError, match=f"^here: {key} is missing"):
            Outer.from_json(rest, "here")
