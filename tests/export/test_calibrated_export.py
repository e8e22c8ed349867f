"""Exports fitted for inputs that are known: adapters, errors told, resuming, refusals."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from sample_runs import Recipe, make_run
from support import tree

import globe_stream
from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.errors import GlobeError, InputError
from globe_stream.export.factors import export_factors
from globe_stream.export.input_sums import InputSums
from globe_stream.export.manifest import read_manifest
from globe_stream.export.model import export_model
from globe_stream.export.verify import verify_export
from globe_stream.factorization.input_metric import Calibration
from globe_stream.io.file_digest import FileDigest

DAMPING, BATCHES, D = 0.05, 4, 32
EXPORTS: dict[str, Callable[..., Any]] = {"factors": export_factors, "model": export_model}
SMALL = {"factors": {"shard_bytes": 4_000}, "model": {"shard_bytes": 10_000}}


def _given(layer: int, batch: int) -> torch.Tensor:
    """Inputs (50, d) of a layer in a batch, a tenth of their directions large."""
    generator = torch.Generator().manual_seed(100 * layer + batch)
    scales = torch.logspace(0.5, -1, D)[torch.randperm(D, generator=generator)]
    return torch.randn(50, D, generator=generator) * scales


@dataclass
class Given:
    """Known inputs in the place of a model's; `stop` is called before a batch with its number."""

    text: str = "one"
    stop: Callable[[int], None] = lambda _: None
    gathered: list[int] = field(default_factory=list)
    price_bytes = 0
    widths: ClassVar[dict[int, int]] = {0: D, 1: D}

    @property
    def calibration(self) -> Calibration:
        text = FileDigest(len(self.text), self.text)
        return Calibration((text,), 50 * BATCHES, DAMPING)

    def gather(self, sums: InputSums) -> None:
        for batch in range(sums.batches, BATCHES):
            with sums.batch() as add:
                for layer in self.widths:
                    add(layer, (x := _given(layer, batch)).T @ x)
                    self.stop(batch)
            self.gathered.append(batch)


def _inputs(layer: int) -> torch.Tensor:
    return torch.cat([_given(layer, batch) for batch in range(BATCHES)]).double()


def _errors(model: Path, factors: Any, family: str) -> tuple[float, float]:
    """relF and the same of outputs, of what `factors` reconstruct."""
    sums = torch.zeros(4).double()
    for expert in open_index(str(model)).experts[family]:
        exact = read_expert(expert).double()
        error = factors.reconstruct(family, expert.layer, expert.expert).double() - exact
        inputs = _inputs(expert.layer)
        # The moments of the layers have a mean of one, so that a layer counts as any other.
        scale = float(inputs.square().sum()) / D
        parts = (error, exact, error @ inputs.T / scale**0.5, exact @ inputs.T / scale**0.5)
        sums += torch.stack([part.square().sum() for part in parts])
    return float((sums[0] / sums[1]).sqrt()), float((sums[2] / sums[3]).sqrt())


@pytest.mark.parametrize("bits", [None, (8, 8), (8, 4)])
def test_errors_told_are_those_of_what_is_read(
    tmp_path: Path, model: Path, run: Path, bits: tuple[int, int] | None
) -> None:
    plain = export_factors(run, tmp_path / "plain", bits=bits)
    made = export_factors(run, tmp_path / "out", bits=bits, inputs=Given())
    assert made.calibration is not None
    before, after = (globe_stream.load_factors(tmp_path / name) for name in ("plain", "out"))
    for family, told in made.relative_errors.items():
        error, weighted = _errors(model, after, family)
        assert error == pytest.approx(told, rel=1e-4)
        assert weighted == pytest.approx(made.calibration.input_weighted_error[family], rel=1e-4)
        old_error, old_weighted = _errors(model, before, family)
        assert weighted < 0.95 * old_weighted
        assert error > old_error == pytest.approx(plain.relative_errors[family], rel=1e-4)
    assert after.config.calibration == made.calibration
    assert before.config.calibration is None


def test_adapters_are_those_of_weighted_least_squares(
    tmp_path: Path, model: Path, run: Path
) -> None:
    export_factors(run, tmp_path / "out", dtype="fp32", inputs=Given())
    factors = globe_stream.load_factors(tmp_path / "out")
    for expert in open_index(str(model)).experts["up"][::5]:
        group, position = factors.find("up", expert.layer, expert.expert)
        inputs, hidden = _inputs(expert.layer), factors.hidden(group, position).double()
        inputs *= (D / inputs.square().sum()) ** 0.5
        seen = torch.cat([inputs, DAMPING**0.5 * torch.eye(D).double()])
        target = read_expert(expert).double() - group.sizes.offset
        found = torch.linalg.lstsq(seen @ hidden.T, seen @ target.T).solution.T
        stored = factors.adapter(group, position).double()
        torch.testing.assert_close(stored @ hidden, found @ hidden, rtol=1e-3, atol=1e-4)


def test_both_formats_hold_the_same_adapters(tmp_path: Path, run: Path) -> None:
    for name, export in EXPORTS.items():
        export(run, tmp_path / name, dtype="fp32", inputs=Given())
    factors = globe_stream.load_factors(tmp_path / "factors")
    loaded = globe_stream.from_pretrained(tmp_path / "model", dtype=torch.float32)
    stacked = dict(loaded.named_parameters())
    rows = next(v for k, v in stacked.items() if "layers.1." in k and k.endswith("gate_adapters"))
    for expert in range(len(rows)):
        assert torch.equal(rows[expert].data, factors.adapter(*factors.find("gate", 1, expert)))
    told = [read_manifest(tmp_path / name).calibration for name in EXPORTS]
    assert told[0] is not None
    assert told[1] is not None
    assert told[0].input_weighted_error == pytest.approx(told[1].input_weighted_error, rel=1e-9)
    assert "50 tokens" not in (tmp_path / "model" / "README.md").read_text()
    assert "200 tokens of text" in (tmp_path / "model" / "README.md").read_text()
    assert not verify_export(tmp_path / "model").problems


def _killed(kind: str, run: Path, out: Path, batch: int) -> int:
    """Export in a child that kills itself, -9, within a batch of text; its signal."""
    child = os.fork()
    if child == 0:

        def stop(number: int) -> None:
            if number == batch:
                os.kill(os.getpid(), signal.SIGKILL)

        EXPORTS[kind](run, out, inputs=Given(stop=stop), **SMALL[kind])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPORTS)
def test_kill_and_resume_gives_the_same_bytes(tmp_path: Path, run: Path, kind: str) -> None:
    whole = Given()
    EXPORTS[kind](run, tmp_path / "whole", inputs=whole, **SMALL[kind])
    assert whole.gathered == [0, 1, 2, 3]
    for batch in (0, 2):
        assert _killed(kind, run, tmp_path / "cut", batch) == -signal.SIGKILL
    rest = Given()
    EXPORTS[kind](run, tmp_path / "cut", inputs=rest, **SMALL[kind])
    assert rest.gathered == [2, 3]
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_an_interrupted_text_is_gone_on_with(tmp_path: Path, run: Path) -> None:
    def stop(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_factors(run, tmp_path / "out", inputs=Given(stop=stop))
    with pytest.raises(InputError, match=r"holds an unfinished export that differs \(calibration"):
        export_factors(run, tmp_path / "out", inputs=Given(text="another"))
    with pytest.raises(InputError, match=r"holds an unfinished export that differs \(calibration"):
        export_factors(run, tmp_path / "out")
    rest = Given()
    export_factors(run, tmp_path / "out", inputs=rest)
    assert rest.gathered == [2, 3]
    again = Given()
    before = tree(tmp_path / "out")
    assert "complete already" in export_factors(run, tmp_path / "out", inputs=again).note
    assert not again.gathered
    assert tree(tmp_path / "out") == before


def test_sums_that_were_changed_are_noticed(tmp_path: Path, run: Path) -> None:
    def stop(batch: int) -> None:
        if batch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_factors(run, tmp_path / "out", inputs=Given(stop=stop))
    kept = next((tmp_path / "out").rglob("inputs-1"))
    kept.write_bytes(kept.read_bytes()[:-1] + b"\0")
    with pytest.raises(GlobeError, match=r"inputs-1: is not the file that was written"):
        export_factors(run, tmp_path / "out", inputs=Given())


def test_a_layer_that_is_given_twice_in_a_batch_counts_twice(tmp_path: Path, run: Path) -> None:
    class Twice(Given):
        def gather(self, sums: InputSums) -> None:
            for batch in range(sums.batches, BATCHES):
                with sums.batch() as add:
                    for layer in self.widths:
                        for half in _given(layer, batch).split(25):
                            add(layer, half.T @ half)

    export_factors(run, tmp_path / "once", inputs=Given(), dtype="fp32")
    export_factors(run, tmp_path / "twice", inputs=Twice(), dtype="fp32")
    one, two = (globe_stream.load_factors(tmp_path / name) for name in ("once", "twice"))
    pair = [x.adapter(*x.find("up", 0, 1)) for x in (one, two)]
    torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-5)


def test_shared_experts_in_kept_tensors_are_fitted_too(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run", model, Recipe(families=("up",), include_shared=True))
    export_model(run, tmp_path / "plain")
    export_model(run, tmp_path / "fitted", inputs=Given())
    from safetensors.torch import load_file

    name = "model.layers.0.mlp.shared_expert.up_proj.weight"
    found = []
    for folder in ("plain", "fitted"):
        for path in sorted((tmp_path / folder).glob("*.safetensors")):
            tensors = load_file(path)
            found += [tensors[name]] if name in tensors else []
    assert found[0].shape == found[1].shape
    assert not torch.equal(*found)
