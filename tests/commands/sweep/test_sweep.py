"""Points of a sweep are what seed and train make of them alone; what they share is read once."""

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import support

from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.commands.seed import seed
from globe_stream.commands.sweep.command import SweepOptions, sweep
from globe_stream.commands.sweep.grid import Grid, grid_of
from globe_stream.commands.train import train
from globe_stream.commands.verify import verify
from globe_stream.config import METHODS, RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.errors import InputError, Interrupted
from globe_stream.seeding import pipeline
from globe_stream.store import arrays

QUICK = pytest.mark.usefixtures("quick")
SELECTION = SelectionConfig(families="up")
SEEDING = SeedConfig(bases=5, rank=9)
HOW = RuntimeConfig(memory="2GiB", device="cpu")
TRAINING = TrainConfig(epochs=3, warmup_epochs=1, target_support="3")


def options(seeding=SEEDING, training=None, selection=SELECTION, how=HOW) -> SweepOptions:
    return SweepOptions(selection, seeding, training, how)


def swept(checkpoint, *sets, out=None, methods=None, scratch=None, **common):
    grid = grid_of(sets, None, methods)
    return sweep(str(checkpoint), grid, options(**common), out=out, scratch=scratch, silent=True)


def passes_of(monkeypatch) -> list[object]:
    """The passes over experts that are begun from now on."""
    found: list[object] = []
    read = ExpertReader.batches

    def counted(self, skip=0):
        found.append(self)
        return read(self, skip)

    monkeypatch.setattr(ExpertReader, "batches", counted)
    return found


def kept(run: Path) -> dict[str, np.ndarray]:
    """Every array of a run."""
    store = run / "run.zarr"
    names = [path.parent for path in store.rglob("zarr.json")]
    return {
        str(path.relative_to(store)): arrays.read(path)
        for path in names
        if json.loads((path / "zarr.json").read_text())["node_type"] == "array"
    }


@pytest.fixture(scope="module")
def everything(checkpoint):
    return swept(checkpoint, methods=",".join(METHODS))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_among_others_does_what_it_does_alone(checkpoint, everything, method, tmp_path):
    alone = seed(
        str(checkpoint),
        tmp_path / "run",
        SELECTION,
        SeedConfig(bases=5, rank=9, method=method),
        HOW,
        silent=True,
    )
    up = alone.families["up"]
    (row,) = [row for row in everything.rows if row.method == method]
    assert row.relative_frobenius_error == pytest.approx(up.relative_frobenius_error, rel=1e-5)
    assert row.explained_variance == pytest.approx(up.explained_variance, rel=1e-5)
    assert everything.svd_equal_parameters_relative_error["up"] == pytest.approx(
        up.svd_equal_parameters_relative_error
    )
    assert (row.median_support, row.bytes_read) == (up.median_support, alone.bytes_read)
    assert row.parameter_ratio == pytest.approx(up.parameter_ratio)
    assert row.passes == pytest.approx(4, rel=0.1)
    assert 0 < row.method_seconds < row.seconds
    assert row.peak_memory_bytes > 0
    assert 0 < row.price_bytes <= 2 * 2**30


@QUICK
@pytest.mark.slow
def test_trained_points_have_the_bytes_of_runs_by_themselves(checkpoint, tmp_path):
    found = swept(
        checkpoint, "method=left_gram_pca,nn_dictionary", "activation=tanh,none",
        out=tmp_path / "out", training=TRAINING,
    )  # fmt: skip
    assert [point.options for point in found.points] == [
        {"method": method, "activation": activation}
        for method in ("left_gram_pca", "nn_dictionary")
        for activation in ("tanh", "none")
    ]
    for method in ("left_gram_pca", "nn_dictionary"):
        seed(str(checkpoint), tmp_path / method, SELECTION, SEEDING.changed(method=method), HOW,
             silent=True)  # fmt: skip
    for point in found.points:
        method, activation = point.options.values()
        alone = shutil.copytree(tmp_path / method, tmp_path / point.name)
        train(alone, TRAINING.changed(activation=activation), HOW, inherit=False, silent=True)
        own, other = kept(Path(point.run)), kept(alone)
        assert own.keys() == other.keys()
        for name, values in own.items():
            assert np.array_equal(values, other[name]), (point.name, name)
        assert not verify(Path(point.run)).problems
    assert json.loads((tmp_path / "out/sweep.json").read_text()) == found.to_json()
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left - {"lock", "lock.pid"} == {"runs", "sweep.json", "sweep.png", "sweep.svg"}


@QUICK
@pytest.mark.slow
def test_what_is_shared_is_read_once_and_the_passes_are_counted(checkpoint, monkeypatch):
    formed = []
    form = pipeline.proxy_gram
    monkeypatch.setattr(pipeline, "proxy_gram", lambda *a: formed.append(1) or form(*a))
    read = passes_of(monkeypatch)
    found = swept(checkpoint, "method=ts_pca,left_gram_pca,spherical_kmeans,nn_dictionary",
                  "target_support=3,none", training=TRAINING.changed(epochs=1))  # fmt: skip
    # statistics, three kinds of proxies, four measurements, one baseline, eight times an epoch
    assert len(read) == found.passes.done == 1 + 3 + 4 + 1 + 8
    assert len(formed) == found.passes.gram_matrices == 3
    assert found.passes.warm_starts == 4
    assert found.passes.alone == 8 * (4 + 1)
    assert found.passes.saved == 40 - 17


@QUICK
@pytest.mark.slow
def test_ranks_share_what_does_not_depend_on_them(checkpoint, monkeypatch):
    read = passes_of(monkeypatch)
    found = swept(checkpoint, "rank=6,9", "method=nn_dictionary,left_gram_pca")
    # the Procrustes mean is of one rank: two statistics; proxies, measure and baseline for each
    assert len(read) == found.passes.done == 2 + 4 + 4 + 2
    by_rank = {}
    for rank in (6, 9):
        alone = swept(checkpoint, "method=nn_dictionary,left_gram_pca",
                      seeding=SEEDING.changed(rank=rank))  # fmt: skip
        by_rank |= {(rank, r.method): r.relative_frobenius_error for r in alone.rows}
    assert {(r.options["rank"], r.method): r.relative_frobenius_error for r in found.rows} == (
        pytest.approx(by_rank, rel=1e-6)
    )


@pytest.mark.slow
@QUICK
def test_points_that_compute_the_same_have_one_run(checkpoint, tmp_path):
    found = swept(checkpoint, "method=ts_pca,svd", "pca_signs=simplex,flip", out=tmp_path / "out")
    runs = [point.run for point in found.points]
    assert runs[2] == runs[3]
    assert len(set(runs)) == 3
    assert len(list((tmp_path / "out/runs").iterdir())) == 3


FOUR = ("method=ts_pca,nn_dictionary", "damping=0.2,0.4")


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    """A sweep of four points that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        support.make_quick(patch.setattr)
        out = tmp_path_factory.mktemp("undisturbed") / "out"
        return swept(checkpoint, *FOUR, out=out, training=TRAINING)


@QUICK
@pytest.mark.slow
def test_a_stopped_sweep_continues_and_ends_as_if_it_had_not_been(
    checkpoint, tmp_path, monkeypatch, undisturbed
):
    """Stopped and continued in several places, one after the other."""
    read = ExpertReader.batches
    left = [0]

    def interrupted(self, skip=0):
        for batch in read(self, skip):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 2)
            yield batch

    monkeypatch.setattr(ExpertReader, "batches", interrupted)
    done, finished = {}, []
    for batches in (1, 2, 4, 5, 3, 0):
        left[0] = batches
        with (
            pytest.raises(Interrupted, match="the same command continues")
            if batches
            else nullcontext()
        ):
            again = swept(checkpoint, *FOUR, out=tmp_path / "out", training=TRAINING)
        for run, ledger in done.items():
            assert (run / "ledger.jsonl").read_bytes() == ledger, "a finished point was done again"
        done = {
            path.parent: path.read_bytes()
            for path in (tmp_path / "out/runs").glob("*/ledger.jsonl")
            if b'"trained"' in path.read_bytes()
        }
        finished.append(len(done))
    assert 0 < finished[-2] < finished[-1] == 4, "stopped between points, too"
    assert again.passes == undisturbed.passes
    for before, after in zip(undisturbed.points, again.points, strict=True):
        first, second = kept(Path(before.run)), kept(Path(after.run))
        assert all(np.array_equal(first[name], second[name]) for name in first | second)


@pytest.mark.slow
@QUICK
def test_a_grid_grows_in_the_same_folder(checkpoint, tmp_path, monkeypatch):
    swept(checkpoint, "method=ts_pca", out=tmp_path / "out")
    read = passes_of(monkeypatch)
    found = swept(checkpoint, "method=ts_pca,left_gram_pca", out=tmp_path / "out")
    assert len(read) == 3  # statistics, proxies and measure of the new point; the baseline is known
    assert [row.method for row in found.rows] == ["ts_pca", "left_gram_pca"]


@pytest.mark.slow
@QUICK
def test_asked_proxies_are_used_by_the_methods_that_work_on_them(checkpoint):
    found = swept(checkpoint, methods="left_gram_pca,nn_dictionary,svd",
                  seeding=SEEDING.changed(proxies="rows"))  # fmt: skip
    assert [row.proxies for row in found.rows] == ["left_gram", "rows", "svd"]


@pytest.mark.slow
@QUICK
def test_every_group_has_its_rows(checkpoint):
    found = swept(
        checkpoint,
        methods="ts_pca,svd",
        seeding=SeedConfig(bases=4, rank=9, bank_scope="layer"),
        selection=SelectionConfig(families="both"),
    )
    assert len(found.rows) == 2 * 2 * 2
    assert (
        len({row.unit for row in found.rows}) == len(found.svd_equal_parameters_relative_error) == 4
    )
    error, kept_share = found.points[0].relative_frobenius_error, found.points[0].parameters_kept
    own = [row for row in found.rows if row.point == found.points[0].name]
    assert min(r.relative_frobenius_error for r in own) < error
    assert error < max(r.relative_frobenius_error for r in own)
    assert kept_share == pytest.approx(np.mean([row.parameter_ratio for row in own]))


@pytest.mark.slow
@QUICK
def test_without_a_folder_nothing_is_left(checkpoint, tmp_path):
    swept(checkpoint, methods="ts_pca", scratch=tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


@QUICK
def test_folders_in_use_are_refused(checkpoint, tmp_path):
    (tmp_path / "precious").write_text("data")
    with pytest.raises(InputError, match="not an empty folder"):
        swept(checkpoint, methods="ts_pca", scratch=tmp_path)
    with pytest.raises(InputError, match="not of a sweep"):
        swept(checkpoint, methods="ts_pca", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.slow
@QUICK
def test_a_run_of_other_options_is_refused_before_any_work(checkpoint, tmp_path, monkeypatch):
    swept(checkpoint, methods="ts_pca", out=tmp_path / "out")
    read = passes_of(monkeypatch)
    with pytest.raises(InputError, match="rank: was 9, now 8"):
        swept(checkpoint, methods="svd,ts_pca", out=tmp_path / "out",
              seeding=SEEDING.changed(rank=8))  # fmt: skip
    assert not read


@QUICK
def test_a_budget_too_small_is_refused(checkpoint):
    with pytest.raises(InputError, match="stage"):
        swept(checkpoint, methods="ts_pca", how=RuntimeConfig(memory="1MiB", device="cpu"))


@QUICK
def test_sizes_that_do_not_fit_name_their_point(checkpoint, tmp_path):
    (tmp_path / "before").mkdir()
    for out in (tmp_path / "new", tmp_path / "before"):
        with pytest.raises(InputError, match=r"point bases=99: .*more atoms"):
            swept(checkpoint, "bases=5,99", out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["before"], "no folder is left behind"


@pytest.mark.slow
def test_scores_are_those_of_eval(model, text, tmp_path):
    from globe_stream.commands.scoring import Scoring, compare_models

    grid = Grid(("bases",), ({"bases": 2}, {"bases": 4}))
    given = options(SeedConfig(rank=12), TrainConfig(epochs=1, warmup_epochs=0), SelectionConfig())
    found = sweep(str(model), grid, given, out=tmp_path / "out", text=text, silent=True)
    runs = [Path(point.run) for point in found.points]
    rows = compare_models(runs, Scoring(text, ("original", "dense", "svd"))).rows
    assert found.original_bits_per_byte == pytest.approx(rows[0].score.bits_per_byte)
    assert [point.bits_per_byte for point in found.points] == pytest.approx(
        [row.score.bits_per_byte for row in rows if row.model == "dense"]
    )
    assert [point.svd_bits_per_byte for point in found.points] == pytest.approx(
        [row.score.bits_per_byte for row in rows if row.model == "svd"]
    )
    for point in found.points:
        least = min(found.svd_curve, key=lambda place: abs(place[0] - point.parameters_kept))
        assert least[1] == pytest.approx(point.svd_equal_parameters_relative_error, abs=0.1)
    again = sweep(str(model), grid, given, out=tmp_path / "out", text=text, silent=True)
    assert again == found


@pytest.mark.slow
def test_a_killed_sweep_continues_and_ends_as_if_it_had_not_been(checkpoint, tmp_path):
    """`kill -9` inside passes and commits, between them, and while a run is copied."""

    def given(out: Path, event: int | None = None) -> int:
        options = (
            "--families up --set method=ts_pca,nn_dictionary --set damping=0.2,0.4 --bases 5 "
            "--rank 9 --epochs 2 --warmup-epochs 1 --memory 2GiB --device cpu"
        )
        arguments = ["sweep", str(checkpoint), *options.split(), "--out", str(out)]
        return support.outcome(support.command, arguments, tmp_path / "log", event, support.KILL)

    assert given(tmp_path / "whole") == 0
    kills = 0
    while (code := given(tmp_path / "out", 101)) != 0:
        assert code == -support.KILL
        kills += 1
        assert kills < 40
    assert kills > 3
    runs = sorted(path.name for path in (tmp_path / "whole/runs").iterdir())
    assert sorted(path.name for path in (tmp_path / "out/runs").iterdir()) == runs
    for name in runs:
        first, second = (kept(tmp_path / folder / "runs" / name) for folder in ("whole", "out"))
        assert all(np.array_equal(first[key], second[key]) for key in first | second)
    records = [json.loads((tmp_path / f / "sweep.json").read_text()) for f in ("whole", "out")]
    assert records[0]["passes"] == records[1]["passes"]
