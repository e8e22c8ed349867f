"""What the metrics say about codes, against plain loops."""

import math

import pytest
import torch

from globe_stream.factorization import code_statistics as code_metrics
from globe_stream.factorization.code_statistics import (
    code_statistics,
    support_overlap,
    support_stability,
)

N, M = 17, 6


def codes():
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(N, M, generator=generator)
    dense[torch.rand(N, M, generator=generator) < 0.4] = 0
    dense[:, 4] = 0
    dense[5] = 0
    return dense


def atom_gram():
    generator = torch.Generator().manual_seed(1)
    atoms = torch.randn(M, 30, generator=generator, dtype=torch.float64)
    return atoms @ atoms.T


@pytest.fixture(params=[1, 4, 512])
def _panels(request, monkeypatch):
    monkeypatch.setattr(code_metrics, "PANEL_ROWS", request.param)


@pytest.mark.usefixtures("_panels")
def test_values_match_plain_loops():
    dense, gram = codes(), atom_gram()
    found = code_statistics(dense, gram, target=2).metrics()
    rows = dense.double().tolist()
    supports = sorted(sum(value > 0 for value in row) for row in rows)
    assert found["alpha/median_support"] == supports[N // 2]
    assert found["alpha/mean_support"] == pytest.approx(sum(supports) / N)
    assert found["alpha/support_error"] == supports[N // 2] - 2
    entropy = 0.0
    for row in rows:
        total = sum(row) or 1.0
        entropy -= sum(v / total * math.log(v / total) for v in row if v)
    assert found["alpha/entropy"] == pytest.approx(entropy / N, rel=1e-6)
    assert found["alpha/zero_fraction"] == pytest.approx(1 - sum(supports) / (N * M))
    assert found["alpha/popularity"] == [sum(row[j] > 0 for row in rows) for j in range(M)]
    assert found["alpha/dead_atoms"] == 1
    norms = [math.sqrt(gram[j, j]) for j in range(M)]
    assert found["bank/norm_min"] == pytest.approx(min(norms))
    assert found["bank/norm_max"] == pytest.approx(max(norms))
    cosines = [gram[j, k] / norms[j] / norms[k] for j in range(M) for k in range(M) if j != k]
    assert found["bank/coherence_offdiag_max"] == pytest.approx(max(abs(c) for c in cosines))
    assert found["bank/coherence"] == pytest.approx(math.sqrt(sum(c * c for c in cosines)))


@pytest.mark.usefixtures("_panels")
def test_overlap_is_the_mean_jaccard_similarity_of_pairs():
    used = codes() > 0
    sets = [set(row.nonzero()[:, 0].tolist()) for row in used]
    pairs = [(a, b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
    expected = sum(len(a & b) / max(1, len(a | b)) for a, b in pairs) / len(pairs)
    assert support_overlap(used) == pytest.approx(expected)


def test_overlap_extremes():
    assert support_overlap(torch.ones(5, 3, dtype=torch.bool)) == pytest.approx(1)
    assert support_overlap(torch.eye(5, dtype=torch.bool)) == 0
    assert support_overlap(torch.ones(1, 3, dtype=torch.bool)) == 1


def test_stability_is_the_mean_jaccard_similarity_of_each_expert_with_itself():
    old, new = codes(), codes().roll(1, 1)
    pairs = [
        (set(a.nonzero()[:, 0].tolist()), set(b.nonzero()[:, 0].tolist()))
        for a, b in zip(old, new, strict=True)
    ]
    expected = sum(len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs) / N
    assert support_stability(old, new) == pytest.approx(expected)
    assert support_stability(old, 3 * old) == 1.0
