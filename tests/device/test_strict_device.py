"""The pretended device refuses what the real one refuses, and computes the rest."""

import gc

import pytest
import torch
from dispatch_table import kernel
from strict_device import strict

KINDS = ("mps", "cuda")


def refusals(kind):
    """Calls on a tensor of `kind` that the real device refuses, with the error each ends in."""
    shared = {
        "numpy": (lambda x: x.numpy(), TypeError),
        "mixture": (lambda x: x + torch.ones(4, 4), RuntimeError),
        "mask": (lambda x: torch.ones(4)[x[0] > 0], RuntimeError),
    }
    if kind == "cuda":
        return shared
    wide = {
        "double": lambda x: x.double(),
        "to": lambda x: x.to(torch.float64),
        "factory": lambda _: torch.zeros(2, dtype=torch.float64, device=kind),
        "arrival": lambda _: torch.zeros(2, dtype=torch.float64).to(kind),
        "sum": lambda x: x.sum(dtype=torch.float64),
        "pinv": lambda x: torch.linalg.pinv(x, hermitian=True),
    }
    missing = {
        "eigh": torch.linalg.eigh,
        "svd": torch.linalg.svd,
        "lu_solve": lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(x), x),
    }
    return (
        shared
        | {name: (call, TypeError) for name, call in wide.items()}
        | {name: (call, NotImplementedError) for name, call in missing.items()}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_device_cannot_do_is_refused(kind):
    with strict(kind):
        tensor = torch.randn(4, 4).to(kind)
        for call, error in refusals(kind).values():
            with pytest.raises(error):
                call(tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_cpu(kind):
    left, right = torch.randn(2, 3, 8, 5).unbind()
    with strict(kind) as device:
        here, there = left.to(kind), right.to(device=torch.device(kind))
        assert here.device == torch.device(kind, 0)
        assert (here.is_cuda, here.is_mps) == (kind == "cuda", kind == "mps")
        gram = torch.bmm(here, there.mT)
        gram.diagonal(dim1=1, dim2=2).add_(1.0)
        out = torch.empty(8, 8, device=kind)
        torch.mm(here[0], there[0].T, out=out)
        chosen = gram[torch.tensor([2, 0])].cpu()
        assert device.operations["bmm"] == device.operations["mm"] == 1
        expected = torch.bmm(left, right.mT)
        expected.diagonal(dim1=1, dim2=2).add_(1.0)
        torch.testing.assert_close(chosen, expected[[2, 0]])
        torch.testing.assert_close(out.cpu(), left[0] @ right[0].T)
        assert float(here.sum()) == float(left.sum())


def test_the_table_follows_delegates_and_composites():
    assert kernel("mm", "mps") == kernel("add_.Tensor", "cuda") == "native"
    assert kernel("_linalg_eigh", "cuda") == "native"
    assert kernel("_linalg_eigh", "mps") is None
    assert kernel("linalg_pinv.atol_rtol_tensor", "mps") == "explicit"
    assert kernel("matmul", "mps") == "implicit"
    assert kernel("no_such_operation", "mps") is None


def test_memory_is_counted_once_for_views_and_given_back():
    with strict("cuda") as device:
        whole = torch.zeros(100, device="cuda")
        views = [whole[10:], whole.view(10, 10)]
        assert device.held_bytes == 400
        del whole
        assert device.held_bytes == 400
        views.clear()
        gc.collect()
        assert device.held_bytes == 0
        assert device.peak_bytes == 400


def test_planted_faults():
    missing = frozenset({"linalg_cholesky_ex"})
    with strict("mps", missing=missing), pytest.raises(NotImplementedError, match="cholesky_ex"):
        torch.linalg.cholesky_ex(torch.eye(3, device="mps"))
    with strict("mps", memory=1000), pytest.raises(RuntimeError, match="MPS backend out of memory"):
        torch.zeros(300, device="mps")
    with strict("cuda", memory=1000), pytest.raises(torch.OutOfMemoryError):
        torch.zeros(300, device="cuda")


@pytest.mark.parametrize(("terms", "wrong"), [(64, False), (65, True)])
def test_products_with_long_sums_are_wrong_if_planted(terms, wrong):
    block = torch.randn(16, terms)
    with strict("mps", longest_sum=64):
        there = block.to("mps")
        found = (there @ there.T).cpu()
    assert torch.allclose(found, block @ block.T, atol=1e-4) is not wrong


def test_a_lenient_device_notes_who_should_have_been_refused():
    from globe_stream.factorization.svd_baseline import lost_energy

    with strict("mps", lenient=True) as device:
        lost_energy(torch.randn(4, 4, device="mps"), 2)
        assert not device.places
        torch.linalg.eigvalsh(torch.eye(2, device="mps"))
        assert device.refused == {"_linalg_eigh": 1}
