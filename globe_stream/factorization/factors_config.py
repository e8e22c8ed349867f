"""`globe_config.json`: what a folder of factors holds, for whoever reads it."""

from dataclasses import dataclass
from pathlib import Path

from globe_stream.checkpoint.fingerprint import CheckpointFingerprint
from globe_stream.factorization.fitted_group import FittedGroup
from globe_stream.factorization.input_metric import Calibration
from globe_stream.factorization.model_files import BankSizes
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.io.records import Record

CONFIG = "globe_config.json"
FORMAT, KIND = 1, "factors"
RECONSTRUCTION = (
    "scale * A @ phi(gain * sum_j alpha_j B_j) + offset, phi(x) = (1 - lambda) x + lambda act(x)"
)


@dataclass(frozen=True)
class StoredNormalization(Record):
    """How the run normalized the weights, W~ = (W - mean) / scale; `folded` into the adapters."""

    mean: float
    scale: float
    folded: bool


@dataclass(frozen=True, kw_only=True)
class FactorGroupConfig(BankSizes):
    """The `experts` of some `layers` of a family, and the bank that they share.

    `tensors` is how the names of the group's tensors begin, `relative_frobenius_error` that of the
    run, with factors in float32.
    """

    family: str
    tensors: str
    layers: tuple[int, ...]
    experts: int
    parameter_ratio: float
    normalisation: StoredNormalization
    relative_frobenius_error: float


@dataclass(frozen=True)
class FactorsConfig(Record):
    """An export of factors: where it comes from, and its groups by key.

    `relative_frobenius_error` has one for each family, of what was written; `calibration` is what
    adapters were fitted for besides the matrices.
    """

    format: int
    kind: str
    dtype: str
    model: str
    revision: str | None
    model_type: str
    fingerprint: CheckpointFingerprint
    relative_frobenius_error: dict[str, float]
    reconstruction: str
    units: dict[str, FactorGroupConfig]
    calibration: Calibration | None = None


QUANTIZED = (
    "scale * A @ inverse(L) @ H + offset, H = phi(gain * sum_j alpha_j B_j), H H^T = L L^T; "
    "A and B in few bits an element"
)


def describe(
    source: TrainedRun,
    dtype: str,
    errors: dict[str, float],
    bits: tuple[int, int] | None = None,
    calibration: Calibration | None = None,
) -> FactorsConfig:
    """The description of `source` exported as `dtype`, or in `bits`, with `errors` by family.

    `calibration` is what adapters were fitted for besides the matrices.
    """
    index = source.index
    return FactorsConfig(
        FORMAT,
        KIND,
        dtype,
        index.name,
        index.revision,
        index.model_type,
        index.fingerprint(),
        errors,
        RECONSTRUCTION if bits is None else QUANTIZED,
        {fitted.group.key: _group(fitted, bits) for fitted in source.groups},
        calibration,
    )


def read_factors_config(folder: Path) -> FactorsConfig:
    """The description in `folder`; InputError when it is damaged or of another version."""
    advice = "Another version of globe-stream wrote it, or it was edited: export the factors again"
    return FactorsConfig.read(folder / CONFIG, advice)


def prefix(key: str) -> str:
    """How the tensors of the group `key` begin: "up", or "up.layers-004-007"."""
    return key.replace("/", ".")


def _group(fitted: FittedGroup, bits: tuple[int, int] | None) -> FactorGroupConfig:
    sizes, phi = fitted.group.sizes, fitted.activation
    return FactorGroupConfig(
        family=fitted.group.family,
        tensors=prefix(fitted.group.key),
        layers=tuple(sorted({expert.layer for expert in fitted.group.experts})),
        experts=sizes.experts,
        p=sizes.p,
        d=sizes.d,
        rank=sizes.rank,
        bases=sizes.bases,
        parameter_ratio=sizes.parameter_ratio(len(fitted.codes.values)),
        activation=phi.name,
        lam=phi.lam,
        gain=phi.gamma,
        scale=1.0,
        offset=fitted.state.mean,
        normalisation=StoredNormalization(fitted.state.mean, fitted.state.scale, folded=True),
        relative_frobenius_error=fitted.state.relative_frobenius_error,
        bits=bits,
    )
