"""The experts that a command works on, and what is said of those left out."""

import pytest

from globe_stream.checkpoint.index import open_index
from globe_stream.commands.experts import group_experts
from globe_stream.config import SeedConfig, SelectionConfig


@pytest.mark.parametrize(("experts", "notes"), [
    (None, 0), (16, 0), (4, 1), (9, 1),
])  # fmt: skip
def test_shared_experts_that_max_experts_leaves_out_are_named(model, experts, notes):
    """Two layers of six routed experts and two blocks of shared ones each."""
    selection = SelectionConfig(families="up", include_shared=True, max_experts=experts)
    grouped = group_experts(open_index(str(model)), selection, SeedConfig())
    kept = sum(expert.shared for expert in grouped.experts)
    assert len(grouped.notes) == notes
    if notes:
        assert f"leaves out {4 - kept} of 4 blocks of shared experts" in grouped.notes[0]
    else:
        assert kept == 4


def test_nothing_is_said_where_no_shared_experts_were_asked_for(model):
    selection = SelectionConfig(families="up", max_experts=4)
    assert group_experts(open_index(str(model)), selection, SeedConfig()).notes == ()
