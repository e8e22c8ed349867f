"""Sizes and durations as people write and read them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from globe_stream.errors import InputError
from globe_stream.formatting import format_bytes, format_seconds, parse_size


@pytest.mark.parametrize(("text", "count"), [
    ("6GiB", 6 << 30), ("1.5 GiB", 3 << 29), ("500MB", 500_000_000), ("1048576", 1 << 20),
    ("2 kib", 2048), ("7B", 7), ("1TB", 10**12), (" 3MiB ", 3 << 20),
    ("8G", 8 << 30), ("8g", 8 << 30), ("1.5T", 3 << 39), ("6 Gi", 6 << 30), ("1e9", 10**9),
    ("2.5e3 MB", 2_500_000_000), ("9007199254740993", 9007199254740993),
])  # fmt: skip
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GiB",
        "-1GiB",
        "0",
        "0.0MiB",
        "six",
        "6GiBs",
        "1e99",
        "e9",
        "0.1",
        "6iB",
        "٣GiB",
        "9" * 5000,
        "1e9e9",
        "nan",
        "inf",
    ],
)
def test_what_is_no_size(text):
    with pytest.raises(InputError, match="is not understood"):
        parse_size(text)


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 29, "1.50 GiB"), (5 << 40, "5.00 TiB"),
    (5 << 50, "5120.00 TiB"),
])  # fmt: skip
def test_bytes_are_shown_in_binary_groups(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1:00 min"), (3599, "59:59 min"), (3600, "1:00:00"),
    (90_061, "25:01:01"),
])  # fmt: skip
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


@given(st.integers(1, 2**63 - 1), st.sampled_from(["", "B", "KiB", "M", "GB", "Ti", "tib"]))
def test_any_size_is_read_exactly_or_refused(count, unit):
    factor = 1024 ** (1 + "kmgt".index(unit[0].lower())) if unit[:1] not in ("", "B") else 1
    factor = 1000**3 if unit == "GB" else factor
    if count * factor < 2**63:
        assert parse_size(f"{count}{unit}") == parse_size(f" {count} {unit} ") == count * factor
    else:
        with pytest.raises(InputError, match="is not understood"):
            parse_size(f"{count}{unit}")


@given(st.integers(1, 2**62))
def test_what_is_shown_can_be_read_again(count):
    assert parse_size(format_bytes(count)) == pytest.approx(count, rel=0.005)


@settings(max_examples=40)
@given(st.text() | st.from_regex(r"[0-9.e]{1,30} ?[KMGTiB]{0,3}", fullmatch=True))
def test_any_text_is_a_size_or_refused_in_one_line(text):
    said = ""
    try:
        assert parse_size(text) > 0
    except InputError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1
