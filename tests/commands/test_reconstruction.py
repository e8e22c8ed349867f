"""What a run stores explains the original weights as well as it says it does.

Everything is recomputed in float64 with numpy from the files alone: checkpoint, bank, codes,
mean and scale.
"""

import json

import numpy as np
import pytest
import support
import zarr
from support import slow

from globe_stream.factorization.records import seeded_state
from globe_stream.store.run import Run

pytestmark = pytest.mark.usefixtures("quick")


def stored(run, group):
    """(bank, dense codes, norms, errors, experts) of a unit, read by the zarr library."""
    group = zarr.open_group(str(run / "run.zarr"), mode="r")[group]
    bank = np.asarray(group["bank"][...], dtype=np.float64)
    count, indices, values = (
        group[f"codes/{name}"][...] for name in ("count", "indices", "values")
    )
    dense = np.zeros((len(count), len(bank)))
    dense[np.repeat(np.arange(len(count)), count), indices] = values
    return bank, dense, *(np.asarray(group[name][...]) for name in ("norms", "errors", "experts"))


def bend(x, name, lam):
    bent = {"none": x, "tanh": np.tanh(x), "silu": x / (1 + np.exp(-x))}[name]
    return (1 - lam) * x + lam * bent


def squared_errors(weights, bank, codes, state):
    """||W - (scale A phi(gamma sum_j a_j B_j) + mean)||^2 with A by ridge least squares."""
    found = []
    for expert, code in zip(weights, codes, strict=True):
        hidden = bend(state["gamma"] * np.tensordot(code, bank, 1), state["activation"],
                      state["activation_lambda"])  # fmt: skip
        normal = (expert - state["mean"]) / state["scale"]
        gram = hidden @ hidden.T
        ridge = state["lambda_a"] * np.trace(gram) / len(gram)
        adapter = (np.linalg.pinv(gram + ridge * np.eye(len(gram))) @ hidden @ normal.T).T
        rebuilt = state["scale"] * adapter @ hidden + state["mean"]
        found.append(np.sum((expert - rebuilt) ** 2))
    return np.array(found)


def check(run, checkpoint, group, family, chosen=slice(None)):
    weights = support.stored_experts(checkpoint, family).numpy()[chosen]
    bank, codes, norms, errors, experts = stored(run, group)
    state = seeded_state(Run(run, writable=False), group).to_json()
    np.testing.assert_allclose(norms, (weights**2).sum((1, 2)), rtol=1e-6)
    exact = squared_errors(weights, bank, codes, state)
    np.testing.assert_allclose(errors, exact, rtol=1e-3)
    relative = np.sqrt(exact.sum() / (weights**2).sum())
    assert state["relative_frobenius_error"] == pytest.approx(relative, rel=1e-5)
    assert 0.05 < relative < 0.95
    np.testing.assert_allclose(np.linalg.norm(bank.reshape(len(bank), -1), axis=1), 1, atol=1e-5)
    mixtures = np.tensordot(codes, bank, 1).reshape(len(codes), -1)
    used = codes.any(1)
    np.testing.assert_allclose(np.linalg.norm(mixtures, axis=1), used, atol=1e-4)
    assert (codes >= 0).all()
    return state, experts


@pytest.mark.parametrize("normalize", ["zscore", "none"])
def test_after_seeding(tmp_path, tell, checkpoint, normalize):
    run = tmp_path / "run"
    assert tell("seed", checkpoint, "--run", run, "--normalize", normalize).code == 0
    for family in ("up", "gate"):
        weights = support.stored_experts(checkpoint, family).numpy()
        state, experts = check(run, checkpoint, family, family)
        expected = (weights.mean(), weights.std()) if normalize == "zscore" else (0.0, 1.0)
        assert (state["mean"], state["scale"]) == pytest.approx(expected, rel=1e-5)
        places = [(layer, expert, 0) for layer in range(2) for expert in range(12)]
        assert experts.tolist() == [list(place) for place in places]


@pytest.mark.parametrize(
    "activation",
    ["tanh", *map(slow, ("none", "silu"))],
)
def test_after_training(tmp_path, tell, checkpoint, activation):
    run = tmp_path / "run"
    assert tell("seed", checkpoint, "--run", run).code == 0
    told = tell("train", run, "--epochs", 6, "--warmup-epochs", 1, "--activation", activation,
                "--target-support", 4, "--gain", 2, "--json")  # fmt: skip
    assert told.code == 0
    document = json.loads(told.out)
    for family in ("up", "gate"):
        state, _ = check(run, checkpoint, family, family)
        shown = document["families"][family]
        assert shown["relative_frobenius_error"] == state["relative_frobenius_error"]
        assert (state["activation_lambda"] > 0) == (activation != "none")
        assert shown["activation_lambda"] == state["activation_lambda"]
        _, codes, *_ = stored(run, family)
        assert shown["median_support"] == np.median((codes != 0).sum(1))


@pytest.mark.slow
def test_metrics_tell_the_error_of_the_saved_state(tmp_path, tell, checkpoint):
    run = tmp_path / "run"
    assert tell("seed", checkpoint, "--run", run, "--families", "up").code == 0
    for epochs in (1, 2, 3, 4):
        arguments = ("--epochs", epochs, "--warmup-epochs", 2)
        assert tell("train", run, *arguments).code == 0
        state, _ = check(run, checkpoint, "up", "up")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = [row for row in rows if row["stage"] == "train"][-1]
        assert last["epoch"] == epochs
        assert last["recon/relative_frobenius_error"] == state["relative_frobenius_error"]


@pytest.mark.slow
def test_a_bank_for_each_layer(tmp_path, tell, checkpoint):
    run = tmp_path / "run"
    assert tell("seed", checkpoint, "--run", run, "--bank-scope", "layer").code == 0
    told = tell("train", run, "--epochs", 3, "--warmup-epochs", 1, "--json")
    assert told.code == 0
    squares = norms = 0.0
    for layer in range(2):
        group = f"up/layers-{layer:03d}-{layer:03d}"
        _, experts = check(run, checkpoint, group, "up", slice(12 * layer, 12 * layer + 12))
        assert {row[0] for row in experts.tolist()} == {layer}
        _, _, each, errors, _ = stored(run, group)
        squares, norms = squares + errors.sum(), norms + each.sum()
    family = json.loads(told.out)["families"]["up"]
    assert family["relative_frobenius_error"] == pytest.approx((squares / norms) ** 0.5, rel=1e-6)
    assert family["banks"] == 2


@pytest.mark.parametrize(("options", "chosen"), [
    (("--single-layer", 1), slice(12, 24)),
    slow(("--layers", "0:1"), slice(0, 12)),
    slow(("--max-experts", 8), slice(0, 8)),
    (("--max-experts", 8, "--sample-method", "evenly_spaced"), slice(0, 24, 3)),
])  # fmt: skip
def test_selections(tmp_path, tell, checkpoint, options, chosen):
    run = tmp_path / "run"
    assert tell("seed", checkpoint, "--run", run, *options).code == 0
    _, experts = check(run, checkpoint, "gate", "gate", chosen)
    places = [[k // 12, k % 12, 0] for k in range(24)]
    assert experts.tolist() == places[chosen]


def test_the_parameter_ratio_counts_bank_adapters_and_codes(tmp_path, tell, checkpoint):
    run = tmp_path / "run"
    told = tell("seed", checkpoint, "--run", run, "--rank", 7, "--bases", 5, "--json")
    family = json.loads(told.out)["families"]["up"]
    _, codes, *_ = stored(run, "up")
    kept = 24 * 12 * 7 + 5 * 7 * 20 + (codes != 0).sum()
    assert family["parameter_ratio"] == pytest.approx(kept / (24 * 12 * 20))
    rank = (24 * 12 * 7 + 5 * 7 * 20) // (24 * (12 + 20))
    lost = whole = 0.0
    for expert in support.stored_experts(checkpoint, "up").numpy():
        values = np.linalg.svd(expert, compute_uv=False) ** 2
        lost, whole = lost + values[rank:].sum(), whole + values.sum()
    shown = family["svd_equal_parameters_relative_error"]
    assert shown == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
