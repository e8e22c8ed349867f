"""Units: which experts share a bank, and how large it is."""

import pytest
import support

from globe_stream.checkpoint.index import open_index
from globe_stream.config import SeedConfig
from globe_stream.errors import InputError
from globe_stream.factorization.groups import make_groups


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Five layers of four experts of 8 x 10."""
    folder = tmp_path_factory.mktemp("scope") / "model"
    return open_index(str(support.write_checkpoint(folder, layers=5, experts=4, p=8, d=10)))


def layers_of(groups):
    return [sorted({expert.layer for expert in group.experts}) for group in groups]


@pytest.mark.parametrize(("scope", "keys", "layers"), [
    ("global", ["up"], [[0, 1, 2, 3, 4]]),
    ("layer", [f"up/layers-00{k}-00{k}" for k in range(5)], [[0], [1], [2], [3], [4]]),
    ("layers:2", ["up/layers-000-001", "up/layers-002-003", "up/layers-004-004"],
     [[0, 1], [2, 3], [4]]),
    ("layers:5", ["up/layers-000-004"], [[0, 1, 2, 3, 4]]),
])  # fmt: skip
def test_scopes_cut_the_layers_into_runs(index, scope, keys, layers):
    groups = make_groups(index.experts, ("up",), SeedConfig(bank_scope=scope, bases=3))
    assert [group.key for group in groups] == keys
    assert layers_of(groups) == layers
    assert sum(len(group.experts) for group in groups) == 20


def test_both_families_in_order(index):
    groups = make_groups(index.experts, ("up", "gate"), SeedConfig())
    assert [group.key for group in groups] == ["up", "gate"]
    assert groups[0].sizes.experts == 20


@pytest.mark.parametrize(("options", "rank", "bases"), [
    ({}, 6, 5), ({"rank_ratio": 1.0, "basis_ratio": 0.5}, 8, 10), ({"rank": 3, "bases": 7}, 3, 7),
    ({"rank_ratio": 0.01, "basis_ratio": 0.01}, 1, 1), ({"rank": 2, "rank_ratio": 1.0}, 2, 5),
])  # fmt: skip
def test_sizes_from_ratios_or_numbers(index, options, rank, bases):
    (group,) = make_groups(index.experts, ("up",), SeedConfig(**options))
    assert (group.rank, group.bases) == (rank, bases)
    assert (group.sizes.p, group.sizes.d, group.sizes.itemsize) == (8, 10, 2)
    assert group.sizes.stored_bytes == 20 * 8 * 10 * 2
    assert group.sizes.bank_bytes == 4 * rank * bases * 10


def test_limits(index):
    with pytest.raises(InputError, match="bank_scope layers:9: 5 layers are chosen"):
        make_groups(index.experts, ("up",), SeedConfig(bank_scope="layers:9"))
    with pytest.raises(InputError, match="rank 9: larger than the experts' 8 rows"):
        make_groups(index.experts, ("up",), SeedConfig(rank=9))
    with pytest.raises(InputError, match=r"bases 5: .* 4 experts that share .*layers-000-000"):
        make_groups(index.experts, ("up",), SeedConfig(bases=5, bank_scope="layer"))
