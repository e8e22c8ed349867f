"""The table of operations by device, and that start-up tries every one of them."""

import pytest
import support
import torch
from devices_page import PAGE, operations_by_kind, page
from strict_device import strict

from globe_stream.engine.capabilities import basic_fault, solver_faults

_VIEWS = {
    "alias", "detach", "unbind", "empty_like", "new_empty", "new_zeros", "unsqueeze", "squeeze_"
}  # fmt: skip
"""Operations that only make or name memory."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The operations that ran on each pretended device."""
    with pytest.MonkeyPatch.context() as patch:
        support.make_quick(patch.setattr)
        return operations_by_kind(tmp_path_factory.mktemp("operations"))


@pytest.mark.slow
def test_the_page_is_what_runs(ran):
    if f"torch {torch.__version__.split('+')[0]})" not in PAGE.read_text(encoding="utf-8"):
        pytest.skip("the page is of another torch")
    assert PAGE.read_text(encoding="utf-8") == page(ran)


@pytest.mark.slow
def test_every_operation_of_a_run_is_tried_at_start_up(ran):
    with strict("mps") as device:
        assert basic_fault(torch.device("mps")) is None
        solver_faults(torch.device("mps"))
        tried = set(device.operations)
    assert ran["mps"] - tried - _VIEWS == set()
