"""What is asked of an export, and what every export does around its own work."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypedDict

from globe_stream.engine.precision import arithmetic_of
from globe_stream.engine.progress import ProgressCall
from globe_stream.export.input_sums import InputSource, InputSums
from globe_stream.export.manifest import ExportManifest, FileRecord, read_manifest
from globe_stream.export.model_card import model_card
from globe_stream.export.result import NO_SAVING, ExportResult, choose_dtype
from globe_stream.export.staging import ExportWork, open_work
from globe_stream.export.written_errors import input_weighted_errors
from globe_stream.factorization.error_sums import ErrorSums, pooled_by
from globe_stream.factorization.input_metric import LayerMetrics
from globe_stream.factorization.trained_run import TrainedRun, open_trained_run
from globe_stream.io.records import Json
from globe_stream.memory.meter import Meter
from globe_stream.memory.planner import ExportPlan, plan_export


class ExportOptions(TypedDict, total=False):
    """Keywords that every export takes: those of `ExportOrder`."""

    dtype: str | None
    memory: int | None
    model: str | None
    command: str
    progress: ProgressCall | None
    inputs: InputSource | None


@dataclass(frozen=True)
class ExportOrder:
    """An export of the run in `run` to the folder `out`.

    Args:
        dtype: of what is written anew: bf16, fp16 or fp32; default that of the checkpoint, or bf16
            for a quantised one.
        memory: peak resident bytes of the process; None means no limit.
        model: where the checkpoint is now, if it moved since the run was made.
        command: the command line, for the model card.
        progress: is told of experts written.
        inputs: what adapters are fitted for, if for more than the matrices.
    """

    run: Path
    out: Path
    dtype: str | None = None
    memory: int | None = None
    model: str | None = None
    command: str = ""
    progress: ProgressCall | None = None
    inputs: InputSource | None = None

    @contextmanager
    def source(self, *, trained: bool = True) -> Iterator[TrainedRun]:
        """The run, open; see `open_trained_run`."""
        with open_trained_run(self.run, model=self.model, trained=trained) as source:
            yield source


@dataclass(frozen=True)
class Export(ABC):
    """One kind of export: what decides its bytes, its plan, and its own work."""

    source: TrainedRun
    order: ExportOrder

    kind: ClassVar[str]

    @property
    @abstractmethod
    def last(self) -> str:
        """The file without which nothing loads it."""

    @property
    @abstractmethod
    def settings(self) -> Json:
        """What its bytes depend on besides kind, run and dtype."""

    @abstractmethod
    def write(self, work: ExportWork) -> None:
        """Write what is not finished yet, and publish it."""

    @property
    def stored(self) -> str:
        """The dtype of what is written anew."""
        return choose_dtype(self.order.dtype, self.source.groups[0].group.experts[0].dtype)

    @property
    def identity(self) -> Json:
        """All that its bytes depend on."""
        return {
            "kind": self.kind,
            "state": self.source.identity(),
            "dtype": self.stored,
            **self.settings,
            **self._calibration,
        }

    @property
    def _calibration(self) -> Json:
        inputs = self.order.inputs
        return {} if inputs is None else {"calibration": inputs.calibration.to_json()}

    @cached_property
    def plan(self) -> ExportPlan:
        """How it fits the memory; InputError when it cannot."""
        return plan_export([fitted.group for fitted in self.source.groups], self.order.memory)

    def factors_plan(self, *, quantizes: bool) -> ExportPlan:
        """How it fits the memory where factors are rounded to what is stored."""
        groups = [fitted.group for fitted in self.source.groups]
        rounds = self.stored != "F32"
        weighs = self.order.inputs is not None
        return plan_export(
            groups, self.order.memory, rounds=rounds, quantizes=quantizes, weighs=weighs
        )

    @contextmanager
    def metrics(self, work: ExportWork) -> Iterator[LayerMetrics | None]:
        """What the inputs of every layer weigh, gathered first where it is not yet."""
        inputs = self.order.inputs
        if inputs is None:
            yield None
            return
        sums = InputSums(work, inputs.widths)
        inputs.gather(sums)
        with sums.metrics(inputs.calibration.damping) as metrics:
            yield metrics

    def carry_out(self) -> ExportResult:
        """Begin or continue it, unless it is complete, and say what came of it."""
        meter, price, out = Meter(), self.plan.estimate_bytes, self.order.out
        if self.order.inputs is not None:
            price = max(price, self.order.inputs.price_bytes)
        with meter.stage("export"):
            work = open_work(out, self.identity, self.last)
        if work is None:
            return finished_result(out, self.source, price, meter.peak)
        with work, arithmetic_of(self.source.run), meter.stage("export"):
            resumed = len(work.records())
            self.write(work)
        return finished_result(out, self.source, price, meter.peak, resumed)

    def manifest(self, work: ExportWork) -> ExportManifest:
        """What is published of it, with the errors of the files that are finished."""
        records, inputs = work.records(), self.order.inputs
        errors, calibration = relative_errors(self.source, records), None
        if inputs is not None:
            weighted = input_weighted_errors([one.input_errors for one in records.values()])
            calibration = replace(inputs.calibration, input_weighted_error=weighted)
        return ExportManifest(
            self.identity, self.kind, self.stored, self.order.command, errors, calibration
        )

    def card(self, manifest: ExportManifest, size: int) -> bytes:
        """README.md of tensors that take `size` bytes."""
        return model_card(self.source, manifest, size).encode()


def relative_errors(source: TrainedRun, records: Mapping[str, FileRecord]) -> dict[str, float]:
    """relF by family from the squared errors noted beside the finished files."""
    errors = pooled_by(
        (family, ErrorSums(squared_error=value))
        for record in records.values()
        for family, value in record.squared_errors.items()
    )
    norms = pooled_by(
        (fitted.group.family, ErrorSums(squared_norm=fitted.recorded_errors.squared_norm))
        for fitted in source.groups
    )
    return {family: (errors[family] + norms[family]).relative_error for family in sorted(errors)}


def finished_result(
    out: Path, source: TrainedRun, estimate_bytes: int, peak: int, resumed: int | None = None
) -> ExportResult:
    """The result recorded in the manifest of `out`; `resumed` None says it was complete already."""
    manifest = read_manifest(out)
    listed = manifest.files
    return ExportResult(
        out=out,
        kind=manifest.kind,
        dtype=manifest.dtype,
        files=len(listed),
        bytes=sum(entry.bytes for entry in listed.values()),
        source_bytes=_source_bytes(source, manifest.kind),
        relative_errors=manifest.relative_frobenius_error,
        calibration=manifest.calibration,
        resumed_files=len(listed) if resumed is None else resumed,
        price_bytes=estimate_bytes,
        peak_bytes=peak,
        note=_note(manifest.kind, resumed is None),
    )


def _source_bytes(source: TrainedRun, kind: str) -> int:
    if kind == "factors":
        return sum(e.nbytes for fitted in source.groups for e in fitted.group.experts)
    return sum(header.size for header in source.index.headers)


def _note(kind: str, complete: bool) -> str:
    parts = ["It was complete already."] if complete else []
    return " ".join([*parts, NO_SAVING if kind in ("dense", "svd", "rounded") else ""]).strip()
