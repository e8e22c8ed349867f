"""Several methods side by side agree with seeding by each of them alone."""

import pytest

from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.commands.seed import seed
from globe_stream.commands.sweep import sweep_methods
from globe_stream.config import METHODS, RuntimeConfig, SeedConfig, SelectionConfig
from globe_stream.errors import InputError
from globe_stream.seeding import pipeline

SELECTION = SelectionConfig(families="up")
SEEDING = SeedConfig(bases=5, rank=9)
HOW = RuntimeConfig(memory="2GiB", device="cpu")


def rows_of(checkpoint, methods, **changes):
    given = {"selection": SELECTION, "seeding": SEEDING, "how": HOW, **changes}
    return sweep_methods(
        str(checkpoint),
        given["selection"],
        given["seeding"],
        methods,
        given["how"],
        run=given.get("run"),
        silent=True,
    )


@pytest.fixture(scope="module")
def everything(checkpoint):
    return rows_of(checkpoint, METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_among_others_does_what_it_does_alone(checkpoint, everything, method, tmp_path):
    alone = seed(
        str(checkpoint),
        tmp_path / "run",
        SELECTION,
        SeedConfig(bases=5, rank=9, method=method),
        HOW,
        silent=True,
    )["families"]["up"]
    (row,) = [row for row in everything.rows if row.method == method]
    # Either may have chosen another GEMM setting of float32 accuracy, so not to the last bit.
    for found, expected in (
        (row.relative_frobenius_error, alone["relative_frobenius_error"]),
        (row.explained_variance, alone["explained_variance"]),
        (everything.svd["up"], alone["svd_equal_parameters_relative_error"]),
    ):
        assert found == pytest.approx(expected, rel=1e-5)
    assert row.median_support == alone["median_support"]


def test_rows_come_in_the_order_asked_for(checkpoint):
    asked = ["svd", "ts_pca", "nn_dictionary"]
    assert [row.method for row in rows_of(checkpoint, asked).rows] == asked


def test_proxies_and_gram_are_made_once_a_kind(checkpoint, monkeypatch):
    formed, passes = [], []
    form, read = pipeline.proxy_gram, ExpertReader.batches
    monkeypatch.setattr(pipeline, "proxy_gram", lambda *a: formed.append(1) or form(*a))

    def counted(self, skip=0):
        passes.append(self)
        return read(self, skip)

    monkeypatch.setattr(ExpertReader, "batches", counted)
    rows_of(checkpoint, ["ts_pca", "left_gram_pca", "spherical_kmeans", "nn_dictionary"])
    assert len(formed) == 3
    # statistics, three kinds of proxies, four measurements, the baseline
    assert len(passes) == 1 + 3 + 4 + 1


def test_asked_proxies_are_used_by_the_methods_that_work_on_them(checkpoint):
    seeding = SeedConfig(bases=5, rank=9, proxies="rows")
    found = rows_of(checkpoint, ["left_gram_pca", "nn_dictionary", "svd"], seeding=seeding)
    assert [row.proxies for row in found.rows] == ["left_gram", "rows", "svd"]


def test_every_group_has_its_rows(checkpoint):
    seeding = SeedConfig(bases=4, rank=9, bank_scope="layer")
    found = rows_of(
        checkpoint, ["ts_pca", "svd"], seeding=seeding, selection=SelectionConfig(families="both")
    )
    assert len(found.rows) == 2 * 2 * 2
    assert len({row.group for row in found.rows}) == len(found.svd) == 4


def test_the_folder_is_left_empty(checkpoint, tmp_path):
    rows_of(checkpoint, ["ts_pca"], run=tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_costs_are_those_of_the_method_alone(checkpoint):
    (row,) = rows_of(checkpoint, ["left_gram_pca"]).rows
    assert row.passes == pytest.approx(3.0)
    assert row.seconds > row.method_seconds > 0
    assert row.price_bytes <= 2 * 2**30
    assert row.peak_memory_bytes > 0


def test_a_folder_in_use_is_refused(checkpoint, tmp_path):
    (tmp_path / "precious").write_text("data")
    with pytest.raises(InputError, match="not an empty folder"):
        rows_of(checkpoint, ["ts_pca"], run=tmp_path)
    assert (tmp_path / "precious").read_text() == "data"


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ([], "no method"),
        (["svd", "svd"], "more than once"),
        (["magic"], "methods 'magic' is not known"),
    ],
)
def test_bad_lists_of_methods_are_refused(checkpoint, methods, words):
    with pytest.raises(InputError, match=words):
        rows_of(checkpoint, methods)


def test_a_budget_too_small_is_refused(checkpoint):
    with pytest.raises(InputError, match="stage"):
        rows_of(checkpoint, ["ts_pca"], how=RuntimeConfig(memory="1MiB", device="cpu"))
