"""Faults planted in a device, and what each leads to: another device, a fallback, or one line."""

import json

import pytest
import support
import torch
from strict_device import strict

from globe_stream.engine import capabilities
from globe_stream.engine.device import choose_device
from globe_stream.errors import GlobeError
from globe_stream.factorization.activation import Activation
from globe_stream.factorization.adapters import fit_adapters
from globe_stream.factorization.spot_check import check_products
from globe_stream.kernels import dense_solvers, reductions
from globe_stream.kernels.ridge import ridge_solve
from globe_stream.memory.meter import footprint
from globe_stream.store.tiles import Tiles
from globe_stream.training.metric import Metric, metric_gram, plain_gram

MPS = torch.device("mps")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Eight experts of 8 x 12."""
    folder = tmp_path_factory.mktemp("small")
    return support.write_checkpoint(folder, layers=1, experts=8, p=8, d=12)


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        ({"missing": frozenset({"bmm"})}, "bmm: The operator 'aten::bmm' is not"),
        ({"wrong": frozenset({"lerp"})}, "between: wrong by 1e-03"),
        ({"memory": 1000}, "bmm: MPS backend out of memory"),
    ],
)
def test_auto_takes_the_cpu_and_says_why_in_one_line(planted, reason):
    with strict("mps", **planted):
        device, why = choose_device("auto")
    assert device == torch.device("cpu")
    assert f"mps {reason}" in why
    assert "\n" not in why


def test_an_old_torch_is_refused_for_mps_alone(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.1")
    with strict("mps"):
        assert choose_device("auto")[1].endswith("mps needs torch 2.9 or newer, not 2.8.1")
    with strict("cuda"):
        assert choose_device("auto") == (torch.device("cuda"), "first that works")


def test_a_missing_solver_is_left_to_the_cpu_and_counted(monkeypatch):
    monkeypatch.setattr(dense_solvers, "FALLBACKS", dense_solvers.Fallbacks())
    gram, sides = torch.eye(3)[None] * 2, torch.ones(1, 2, 3)
    missing = frozenset({"linalg_cholesky_ex", "_cholesky_solve_helper"})
    with strict("mps", missing=missing):
        assert capabilities.device_fault("mps") is None
        found = capabilities.solver_faults(MPS)
        dense_solvers.FALLBACKS.leave_to_cpu(MPS, found)
        solution = ridge_solve(gram.to("mps"), sides.to("mps"), 0.0).solution
        assert solution.device.type == "mps"
        torch.testing.assert_close(solution.cpu(), sides / 2)
        counted = dense_solvers.FALLBACKS.metrics(MPS)
    assert {"cholesky", "cholesky_solve", "eigh", "svd"} <= set(found)
    assert counted["device/fallbacks/cholesky"] == counted["device/fallbacks/cholesky_solve"] == 1
    assert counted["device/fallbacks/svd"] == 0


def test_a_wrong_product_in_a_pass_is_found_and_ends_it():
    weights, mixtures = torch.randn(2, 1, 6, 12).unbind()
    with strict("mps") as device:
        there, mixed = weights.to("mps"), mixtures.to("mps")
        check_products([0], there, fit_adapters(there, mixed, Activation(), 1e-6))
        device.faults.wrong = frozenset({"bmm"})
        fit = fit_adapters(there, mixed, Activation(), 1e-6)
        check_products([1], there, fit)
        with pytest.raises(GlobeError, match="mps: a product of expert 256"):
            check_products([256], there, fit)


def test_singular_systems_are_solved_on_the_device_too():
    dense_solvers.FALLBACKS.leave_to_cpu(MPS, ("pinv",))
    gram, sides = torch.ones(1, 2, 2), torch.ones(1, 1, 2)
    with strict("mps"):
        found = ridge_solve(gram.to("mps"), sides.to("mps"), 0.0)
        torch.testing.assert_close(found.solution.cpu(), torch.full((1, 1, 2), 0.5))


def test_long_sums_are_right_on_a_device_that_adds_too_much():
    """Where a product reduces 40,960 terms, the faulty kernel of M1 and M2 is not reached."""
    atoms = torch.randn(16, 20, 2048, generator=torch.Generator().manual_seed(0))
    expected = atoms.flatten(1).double() @ atoms.flatten(1).double().T
    metric = Metric.identity(20, torch.device("cpu"))
    grams = []
    with strict("mps", longest_sum=32_767):
        there = atoms.to("mps")
        wrong = (there.flatten(1) @ there.flatten(1).T).cpu().double()
        bank = Tiles(atoms.shape, 20, device="mps")
        bank.store(0, there)
        total = torch.zeros(16, 16, device="mps")
        reductions.add_product(total, there.flatten(1), there.flatten(1))
        onto = Metric(metric.left.to("mps"), metric.left.to("mps"), None, None)
        grams = [plain_gram(bank), metric_gram(bank, onto), total.cpu().double()]
    assert not torch.allclose(wrong, expected, rtol=1e-4, atol=1e-2)
    for gram in grams:
        torch.testing.assert_close(gram, expected, rtol=1e-5, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mps", "cuda"])
def test_a_full_device_ends_in_one_line_that_says_what_to_do(tell, small, tmp_path, kind):
    with strict(kind) as device:
        original = device.faults
        told = tell("seed", small, "--run", tmp_path / "a", "--bases", "4", "--device", kind)
        assert told.code == 0
        original.memory = device.peak_bytes // 4
        told = tell("train", tmp_path / "a", "--epochs", "1", "--device", kind)
    assert told.code == 2
    assert told.err.count("\n") <= 2
    assert f"--device {kind}" in told.err or "mps" in told.err
    assert "Traceback" not in told.err


@pytest.mark.slow
def test_caches_are_emptied_and_the_allocator_capped(tell, small, tmp_path):
    with strict("mps") as device:
        told = tell(
            "seed", small, "--run", tmp_path / "a", "--bases", "4", "--device", "mps",
            "--memory", "2GiB",
        )  # fmt: skip
        assert told.code == 0
    assert ("empty_cache",) in device.called
    share = next(call[1] for call in device.called if call[0] == "fraction")
    assert 0.05 < share <= 2 / 16
    assert '"device/fallbacks/eigh"' in (tmp_path / "a/metrics.jsonl").read_text()


@pytest.mark.slow
def test_plan_prices_a_device_that_is_not_there(tell, small):
    documents = [
        json.loads(tell("plan", small, "--bases", "4", "--device", device, "--json").out)
        for device in ("mps", "cpu")
    ]
    assert [document["device"] for document in documents] == ["mps", "cpu"]
    priced = [
        [stage["memory_bytes"] - document["base_bytes"] for stage in document["stages"]]
        for document in documents
    ]
    assert priced[0] == priced[1]


def test_the_footprint_of_macos_is_read_from_its_own_record():
    class Library:
        @staticmethod
        def proc_pid_rusage(process, flavor, buffer):
            assert (process, flavor) == (7, 0)
            buffer._obj.resident_size, buffer._obj.footprint = 5, 123
            return 0

    assert footprint(Library, 7) == 123
