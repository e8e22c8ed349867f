"""Almost valid inputs; `benchmarks/faults.py --inputs N` is the long form."""

import inputs as almost
import pytest
import support
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

EXAMPLES = {"header": 60, "index": 25, "config": 40, "recipe": 60, "ledger": 25, "checkpoint": 15}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        support.make_quick(patch.setattr)
        yield almost.Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", almost.KINDS)
def test_almost_valid_inputs_are_read_or_refused_in_one_line(inputs, kind):
    @settings(
        max_examples=EXAMPLES[kind],
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],
    )
    @given(st.data())
    def check(data):
        almost.check_of(inputs, kind)(data.draw(almost.strategy_of(inputs, kind)))

    check()
