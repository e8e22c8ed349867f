"""Calibration of an export: its checkpoint is run on texts, to know what its experts are given.

The model computes in float32 on the CPU, as in `eval`; weights that do not fit the budget are read
from disk as they are needed.
"""

import gc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from globe_stream.checkpoint.index import ExpertIndex
from globe_stream.commands.models import Loading, build_empty, load_by_ranges
from globe_stream.engine.progress import step_bar
from globe_stream.errors import InputError, option
from globe_stream.evaluation.input_moments import (
    LENGTH,
    add_moments,
    windows_of,
    windows_together,
)
from globe_stream.evaluation.text import read_text
from globe_stream.export.input_sums import InputSums
from globe_stream.factorization.input_metric import DAMPING, Calibration
from globe_stream.factorization.trained_run import open_trained_run
from globe_stream.formatting import format_bytes
from globe_stream.inference.structure import experts_modules
from globe_stream.io.file_digest import FileDigest
from globe_stream.io.files import require_free
from globe_stream.memory.forward_pass import ForwardPass
from globe_stream.memory.model_memory import ModelMemory, estimate_model


@dataclass(frozen=True)
class TextInputs:
    """The inputs of the experts of a checkpoint on some windows of text; an `InputSource`."""

    index: ExpertIndex
    calibration: Calibration
    widths: Mapping[int, int]
    windows: Sequence[Tensor]
    together: int
    needs: ModelMemory
    memory: int
    silent: bool

    @property
    def price_bytes(self) -> int:
        """Expected peak memory of the process while it runs the checkpoint."""
        return min(self.memory, self.needs.total)

    def gather(self, sums: InputSums) -> None:
        """Add the batches of text to `sums` that are not in it yet."""
        parts = torch.split(torch.stack(list(self.windows)), self.together)
        if sums.batches == len(parts):
            return
        with sums.work.scratch() as folder:
            model = self._load(folder)
            named = experts_modules(model)
            modules = {layer: named[layer][1] for layer in self.widths}
            with step_bar("calibrate", unit="windows", silent=self.silent) as progress:
                done = sums.batches * self.together
                progress(done, len(self.windows), "")
                for tokens in parts[sums.batches :]:
                    with sums.batch() as add:
                        add_moments(model, modules, tokens, add)
                    done += len(tokens)
                    progress(done, len(self.windows), f"batch {sums.batches}")
            del model, modules, named
            gc.collect()

    def _load(self, folder: Path) -> Any:
        loading = Loading()
        if self.needs.total > self.memory:
            require_free(folder, self.needs.weights, "the weights that memory does not hold")
            held = self.memory - self.needs.overhead
            loading = replace(loading, offload=folder, held=held)
        self.index.fetch_files(self.index.files)
        return load_by_ranges(self.index.root, "calibration", loading)


def text_inputs(
    run: Path, texts: Sequence[Path], *, model: str | None, memory: int, silent: bool
) -> TextInputs:
    """The inputs of the experts that `run` replaces, on `texts`; the checkpoint is not run yet.

    `model` says where it is now. Raises InputError for texts that cannot be used, families whose
    inputs are not those of their layer, a model that transformers cannot run, and a budget too
    small to run it.
    """
    described = [_described(text) for text in texts]
    with open_trained_run(run, model=model) as source:
        index = source.index
        members = [expert for fitted in source.groups for expert in fitted.group.experts]
    if any(expert.role == "down" for expert in members):
        raise InputError(
            f"{run}: holds down projections, whose inputs are not those of a layer. Leave out "
            f"{option('calibrate')}, or seed a run of up and gate"
        )
    widths = {expert.layer: expert.shape[1] for expert in members}
    empty = build_empty(index.root, Loading())
    _require_modules(index, empty, widths)
    sizes = ForwardPass.of(empty)
    together, width = windows_together(sizes), max(widths.values())
    windows = windows_of(texts, sizes.vocabulary, index.root, width)
    # An expert layer's weights that are on disk lie beside the arrays of the pass while it is run.
    largest = max(one.numel() * one.element_size() for one in empty.parameters())
    working = sizes.bytes(together, LENGTH) + 3 * 4 * width * width + 2 * largest
    needs = estimate_model(empty, 0, [], 0, working)
    if needs.overhead >= memory:
        raise InputError(
            f"{option('memory')} {format_bytes(memory)}: calibration needs more than "
            f"{format_bytes(needs.overhead)}, {format_bytes(working)} of it for {together} windows "
            f"of text. Raise {option('memory')}, or leave out {option('calibrate')}"
        )
    calibration = Calibration(tuple(described), LENGTH * len(windows), DAMPING)
    return TextInputs(index, calibration, widths, windows, together, needs, memory, silent)


def require_texts(texts: Sequence[Path]) -> None:
    """Raise InputError unless all of `texts` can be read."""
    for text in texts:
        read_text(text)


def _described(text: Path) -> FileDigest:
    data = read_text(text)
    return FileDigest(len(data), hashlib.sha256(data).hexdigest())


def _require_modules(index: ExpertIndex, model: Any, layers: Mapping[int, int]) -> None:
    known = experts_modules(model)
    for layer in layers:
        if layer not in known:
            raise InputError(
                f"{index.root}: transformers has no experts in layer {layer} whose inputs could "
                f"be seen. Leave out {option('calibrate')}"
            )
