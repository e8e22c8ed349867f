"""The picture of a sweep: the front is what no other point beats; equal points, equal bytes."""

import random
from xml.etree import ElementTree

import pytest

from globe_stream.report.pareto import ParetoPoint, front, pareto_pictures


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_point_beats(seed):
    draw = random.Random(seed)
    places = [(draw.randrange(8), draw.randrange(8)) for _ in range(12)]
    beaten = {
        (size, error)
        for size, error in places
        for a, b in places
        if a <= size and b <= error and (a, b) != (size, error)
    }
    assert front(places) == sorted(set(places) - beaten)


@pytest.mark.slow
def test_both_kinds_are_whole_files_and_the_same_each_time():
    points = [
        ParetoPoint(f"method {name}", 0.5 + k / 10, 0.4 - k / 20, bits, bits and bits + 0.1)
        for k, (name, bits) in enumerate([("a", 1.6), ("b", 1.58), ("a", None)])
    ]
    curve = [(k / 20, 1 - k / 20) for k in range(1, 20)]
    pictures = pareto_pictures(points, curve, 1.5)
    assert pictures == pareto_pictures(points, curve, 1.5)
    root = ElementTree.fromstring(pictures["svg"])
    assert root.tag.endswith("svg")
    assert float(root.attrib["width"].removesuffix("pt")) == pytest.approx(11 * 72)
    assert pictures["png"].startswith(b"\x89PNG")
    alone = ElementTree.fromstring(pareto_pictures(points[2:], (), None)["svg"])
    assert float(alone.attrib["width"].removesuffix("pt")) == pytest.approx(6.4 * 72)
