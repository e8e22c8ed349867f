"""The shared metric: inverses, Gram matrices and chunking against dense float64."""

import pytest
import torch

from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.commands.seed import seed
from globe_stream.commands.train import train
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.factorization.trained_run import open_trained_run
from globe_stream.store import arrays, codes
from globe_stream.store.tiles import Tiles
from globe_stream.synthetic.checkpoints import SyntheticModel, write_synthetic
from globe_stream.training import metric
from globe_stream.training.metric import Metric

M, R, D = 7, 5, 9
CPU = torch.device("cpu")


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def adapter_moment(seed=0):
    root = normal(R, 2 * R, seed=seed)
    return root @ root.T


def row_projector(seed=1):
    """The mean of I - P over random row spaces."""
    spaces = [torch.linalg.qr(normal(D, R, seed=seed + k)).Q for k in range(4)]
    eye = torch.eye(D, dtype=torch.float64)
    return eye - sum((q @ q.T for q in spaces), torch.zeros(D, D, dtype=torch.float64)) / 4


def filled(atoms, rows, path=None):
    tiles = Tiles(tuple(atoms.shape), rows, path=path)
    tiles.put_items(0, atoms.float())
    return tiles


def test_left_is_the_metric_and_right_the_complement_with_group_mean_diagonal():
    found = Metric.from_moments(adapter_moment(), row_projector(), CPU)
    torch.testing.assert_close(found.left.double(), adapter_moment(), rtol=1e-4, atol=1e-4)
    expected = row_projector() + metric.RIGHT_RIDGE * row_projector().diagonal().mean() * torch.eye(
        D
    )
    expected = expected / expected.diagonal().mean()
    torch.testing.assert_close(found.right.double(), expected, rtol=1e-6, atol=1e-6)


def test_inverses_are_inverse_symmetric_and_positive():
    found = Metric.from_moments(adapter_moment(), row_projector(), CPU)
    for matrix, inverse in ((found.left, found.left_inverse), (found.right, found.right_inverse)):
        eye = torch.eye(len(matrix), dtype=torch.float64)
        torch.testing.assert_close(matrix.double() @ inverse.double(), eye, atol=1e-4, rtol=0)
        assert torch.equal(inverse, inverse.T)
        assert float(torch.linalg.eigvalsh(inverse)[0]) > 0


def test_a_singular_metric_still_has_an_inverse():
    flat = adapter_moment()
    flat[:, 0] = flat[0] = 0
    found = Metric.from_moments(flat, row_projector(), CPU)
    assert bool(found.left_inverse.isfinite().all())


def test_raising_undoes_lowering():
    atoms = normal(M, R, D, seed=3).float()
    found = Metric.from_moments(adapter_moment(), row_projector(), CPU)
    torch.testing.assert_close(found.solve(found.apply(atoms)), atoms, atol=1e-3, rtol=1e-3)
    expected = found.left.double() @ atoms.double() @ found.right.double()
    torch.testing.assert_close(found.apply(atoms).double(), expected, atol=1e-4, rtol=1e-5)


def test_the_identity_changes_nothing():
    atoms = normal(M, R, D, seed=3).float()
    plain = Metric.identity(R, CPU)
    assert torch.equal(plain.apply(atoms), atoms)
    assert torch.equal(plain.solve(atoms), atoms)
    assert plain.condition == pytest.approx(1)


def test_condition_is_that_of_the_metric():
    found = Metric.from_moments(torch.diag(torch.tensor([1.0, 2, 4, 8, 50])), row_projector(), CPU)
    assert found.condition == pytest.approx(50, rel=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("chunk_atoms", [1, 3, 100])
def test_gram_matrices_and_raised_gradients(tmp_path, monkeypatch, rows, chunk_atoms):
    monkeypatch.setattr(metric, "ATOM_CHUNK_BYTES", chunk_atoms * 4 * R * D)
    atoms = normal(M, R, D, seed=3).float().double()
    found = Metric.from_moments(adapter_moment(), row_projector(), CPU)
    left, right = found.left.double(), found.right.double()
    plain = torch.einsum("jrd,krd->jk", atoms, atoms)
    weighted = torch.einsum("jrd,rs,kse,ed->jk", atoms, left, atoms, right)
    raised = found.left_inverse.double() @ atoms @ found.right_inverse.double()
    for path in (None, tmp_path / "bank"):
        tiles = filled(atoms, rows, path)
        torch.testing.assert_close(metric.plain_gram(tiles), plain, atol=1e-5, rtol=1e-5)
        gram = metric.metric_gram(tiles, found)
        torch.testing.assert_close(gram, weighted, atol=1e-4, rtol=1e-4)
        assert torch.equal(gram, gram.T)
        metric.precondition(tiles, found)
        torch.testing.assert_close(tiles.items(0, M).double(), raised, atol=1e-4, rtol=1e-4)


def test_atom_chunks_cover_every_atom_once():
    tiles = filled(normal(M, R, D, seed=3), 2)
    for chunk, expected in ((1, 7), (3, 3), (100, 1)):
        chunks = metric.atom_chunks(tiles, (0, M), chunk * 4 * R * D)
        assert [j for first, last in chunks for j in range(first, last)] == list(range(M))
        assert len(chunks) == expected


@pytest.mark.slow
def test_the_metric_is_made_of_moving_means_of_other_experts_in_every_epoch(tmp_path):
    """The means of epochs 1 and 2 against adapters and row spaces recomputed in float64."""
    model = tmp_path / "model"
    write_synthetic(model, SyntheticModel(layers=2, experts=12, hidden=24, intermediate=16))
    runtime, up = RuntimeConfig(device="cpu", memory="2GiB"), SelectionConfig(families="up")
    seed(str(model), tmp_path / "run", up, SeedConfig(bases=4), runtime, silent=True)
    found, newest = [], []
    for epochs in (1, 2):
        config = TrainConfig(epochs=epochs, warmup_epochs=1, target_support="none")
        train(tmp_path / "run", config, runtime, silent=True)
        with open_trained_run(tmp_path / "run") as trained:
            named = (trained.run.array(f"up/next/{name}") for name in ("metric", "complement"))
            found.append([torch.from_numpy(arrays.read(path)).double() for path in named])
            # 24 experts: every second one, those of even and of odd positions in turn
            newest.append(_means(model, trained, range(epochs - 1, 24, 2)))
    for first, second, old, new in zip(found[0], found[1], newest[0], newest[1], strict=True):
        torch.testing.assert_close(first, old, rtol=1e-3, atol=1e-3 * float(old.abs().max()))
        expected = 0.75 * old + 0.25 * new
        torch.testing.assert_close(second, expected, rtol=1e-3, atol=1e-3 * float(old.abs().max()))
        assert float((new - old).abs().max()) > 0.01 * float(old.abs().max())


def _means(model, trained, positions):
    """The means of gamma^2 A^T A and of I - P over experts of the saved state, in float64."""
    (fitted,) = trained.groups
    bank = torch.from_numpy(arrays.read(fitted.bank)).double()
    mixed = codes.load(trained.run, "up", len(bank)).double()
    experts = open_index(str(model)).experts["up"]
    moments, complements = [], []
    for position in positions:
        weights = (read_expert(experts[position]).double() - fitted.mean) / fitted.scale
        hidden = fitted.activation.apply(torch.einsum("m,mrd->rd", mixed[position], bank))
        gram = hidden @ hidden.T
        ridged = gram + fitted.ridge * gram.diagonal().mean() * torch.eye(len(gram))
        adapters = torch.linalg.solve(ridged, hidden @ weights.T).T
        moments.append(fitted.activation.gamma**2 * adapters.T @ adapters)
        space = hidden.T @ torch.linalg.solve(ridged, hidden)
        complements.append(torch.eye(len(space), dtype=torch.float64) - space)
    return torch.stack(moments).mean(0), torch.stack(complements).mean(0)
