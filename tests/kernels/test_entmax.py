"""entmax against its defining equation, solved by bisection."""

import pytest
import torch

from globe_stream.errors import GlobeError, InputError
from globe_stream.kernels.entmax import entmax


def bisection(scores, alpha):
    """p = [(alpha-1) s - tau]_+^(1/(alpha-1)) with sum p = 1, by bisection on tau."""
    scaled = (alpha - 1) * scores.double()
    high = scaled.amax(-1, keepdim=True)
    low = high - 1
    for _ in range(200):
        middle = (low + high) / 2
        total = (scaled - middle).clamp_min(0).pow(1 / (alpha - 1)).sum(-1, keepdim=True)
        low = torch.where(total >= 1, middle, low)
        high = torch.where(total >= 1, high, middle)
    return (scaled - low).clamp_min(0).pow(1 / (alpha - 1))


@pytest.fixture(params=[0.01, 1.0, 30.0], ids=lambda s: f"spread{s}")
def scores(request):
    torch.manual_seed(3)
    return request.param * torch.randn(7, 5, 37, dtype=torch.float64)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_matches_the_definition(scores, alpha):
    torch.testing.assert_close(
        entmax(scores, alpha), bisection(scores, alpha), atol=1e-12, rtol=1e-9
    )


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_float32_is_accurate(scores, alpha):
    result = entmax(scores.float(), alpha)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), bisection(scores.float(), alpha), atol=2e-6, rtol=0)


def test_alpha_one_is_softmax(scores):
    torch.testing.assert_close(entmax(scores, 1.0), scores.softmax(-1))


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_rows_are_distributions_and_keep_the_order(scores, alpha):
    result = entmax(scores, alpha)
    assert bool((result >= 0).all())
    torch.testing.assert_close(result.sum(-1), torch.ones(7, 5, dtype=torch.float64))
    by_score = result.gather(-1, scores.argsort(-1, descending=True))
    assert bool((by_score.diff(dim=-1) <= 1e-15).all())


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_limits(alpha):
    scores = torch.tensor([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    cold = entmax(scores * 1e6, alpha)
    torch.testing.assert_close(cold[0], torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    hot = entmax(scores * 1e-9, alpha)
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / 3), atol=1e-8, rtol=0)


def test_support_grows_with_temperature():
    torch.manual_seed(0)
    scores = torch.randn(100, 64)
    sizes = [float((entmax(scores / t) > 0).sum(-1).float().mean()) for t in (0.1, 0.5, 1, 4)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 4
    assert sizes[-1] > 40


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_minus_infinity_means_never(alpha):
    scores = torch.tensor([[0.3, -torch.inf, 0.1, -torch.inf]])
    result = entmax(scores, alpha)
    torch.testing.assert_close(result[:, [0, 2]], entmax(scores[:, [0, 2]], alpha))
    assert result[0, 1] == result[0, 3] == 0


def test_sparsemax_is_the_projection_on_the_simplex(scores):
    """Variational inequality of a projection: <s - p, q - p> <= 0 for every vertex q."""
    projected = entmax(scores, 2.0)
    gap = (scores - projected) - ((scores - projected) * projected).sum(-1, keepdim=True)
    assert float(gap.max()) < 1e-12 * float(scores.abs().max())


def test_is_deterministic(scores):
    assert torch.equal(entmax(scores), entmax(scores.clone()))


@pytest.mark.parametrize("bad", [-torch.inf, torch.nan, torch.inf])
def test_rows_without_a_largest_entry_are_refused(bad):
    scores = torch.zeros(2, 3)
    scores[1] = bad
    with pytest.raises(GlobeError, match="no finite largest"):
        entmax(scores)


def test_other_alphas_are_refused():
    with pytest.raises(InputError, match=r"alpha is 1\.3"):
        entmax(torch.zeros(2), 1.3)
