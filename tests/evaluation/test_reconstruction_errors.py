"""Errors by family, layer and expert against the definition."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sample_runs import Recipe, make_run, run_oracle

from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.cli import result_text as render
from globe_stream.commands.evaluate import evaluate_errors
from globe_stream.evaluation.reconstruction import (
    family_errors,
    measured_errors,
    recorded_errors,
    svd_errors,
)
from globe_stream.factorization.records import seeded_state
from globe_stream.store.run import Run


def test_measured_errors_equal_the_definition(run: Path, model: Path) -> None:
    told: list[tuple[int, int]] = []
    found = measured_errors(run, progress=lambda done, total, _: told.append((done, total)))
    index = open_index(str(model))
    for group in found:
        for position, expert in enumerate(index.experts[group.family]):
            weights = read_expert(expert).double()
            expected = run_oracle(run, group.key, position, weights) - weights
            assert float(group.squared_errors[position]) == pytest.approx(
                float(expected.square().sum()), rel=1e-4
            )
            assert float(group.squared_norms[position]) == pytest.approx(
                float(weights.square().sum()), rel=1e-9
            )
    assert told[-1] == (24, 24)


def test_recorded_errors_are_those_measured(run: Path) -> None:
    for old, new in zip(recorded_errors(run), measured_errors(run), strict=True):
        torch.testing.assert_close(old.squared_errors, new.squared_errors, rtol=1e-4, atol=0)
        assert torch.equal(old.members, new.members)


def test_document_by_family_layer_and_expert(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run", model, Recipe(per_layer=True))
    groups = recorded_errors(run)
    document = family_errors(groups)
    both = [group for group in groups if group.family == "up"]
    whole = sum(float(group.squared_errors.sum()) for group in both)
    norms = sum(float(group.squared_norms.sum()) for group in both)
    up = document["up"]
    assert up.relative_frobenius_error == pytest.approx((whole / norms) ** 0.5)
    assert set(up.by_layer) == {0, 1}
    assert up.by_layer[1] == pytest.approx(both[1].sums.relative_error)
    third = next(e for e in up.by_expert if (e.layer, e.expert) == (1, 3))
    expected = float((both[1].squared_errors[3] / both[1].squared_norms[3]).sqrt())
    assert third.relative_error == pytest.approx(expected)


def test_svd_errors_are_the_discarded_spectra(run: Path, model: Path) -> None:
    rank = round((24 * 18 + 5 * 18 * 32 / 12) / (24 + 32))
    index = open_index(str(model))
    for group in svd_errors(run):
        spectra = torch.stack(
            [torch.linalg.svdvals(read_expert(e).double()) for e in index.experts[group.family]]
        ).square()
        torch.testing.assert_close(
            group.squared_errors, spectra[:, rank:].sum(1), rtol=1e-6, atol=1e-12
        )


def test_the_svd_that_a_run_recorded_is_told_without_measuring(run: Path, tmp_path: Path) -> None:
    found = evaluate_errors([run], measure=False, memory=None)[str(run)]
    assert "svd_equal_parameters" not in found.to_json()
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with Run(copy, writable=True) as told:
        for family, error in (("up", 0.25), ("gate", 0.5)):
            state = seeded_state(told, family)
            told.commit({family: replace(state, svd_relative_error=error)})
    found = evaluate_errors([copy], measure=False, memory=None)
    kept = found[str(copy)].to_json()["svd_equal_parameters"]
    assert {name: one["relative_frobenius_error"] for name, one in kept.items()} == {
        "up": pytest.approx(0.25),
        "gate": pytest.approx(0.5),
    }
    assert "0.2500" in render.errors(found)
