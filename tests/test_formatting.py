"""Sizes and durations as people write and read them."""

import pytest

from globe_stream.errors import InputError
from globe_stream.formatting import format_bytes, format_seconds, parse_size


@pytest.mark.parametrize(("text", "count"), [
    ("6GiB", 6 << 30), ("1.5 GiB", 3 << 29), ("500MB", 500_000_000), ("1048576", 1 << 20),
    ("2 kib", 2048), ("7B", 7), ("1TB", 10**12), (" 3MiB ", 3 << 20),
])  # fmt: skip
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "0.0MiB", "six", "6 Gi", "1e9", "6GiBs"])
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
