"""Configuration: one frozen, typed record per concern, with help, unit and bounds by each field.

The command line, the recipes and `config.toml` are all made from these fields, so an option
exists once. A field marked `runtime` changes how a run is carried out, not what it computes, and
may differ when a run is continued.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import tomli_w

from globe_stream.errors import InputError
from globe_stream.errors import option as named
from globe_stream.formatting import parse_size

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Limits:
    """What a field accepts: one of `choices`, or a number from `low` to `high` inclusive."""

    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    runtime: bool = False
    metavar: str | None = None
    number: bool = False
    """A text that may be written as a whole number in TOML."""


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field with its help text and limits."""
    return field(default=default, metadata={"limits": Limits(help, **limits)})


class Checked:
    """Base of the configuration records: checks every field against its limits."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            _check(named(item.name), getattr(self, item.name), item)
        self.check()

    def check(self) -> None:
        """Conditions across fields; raises InputError."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> Self:
        """The record that `values` (a TOML table found at `where`) describes."""
        known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
        given = {name: value for name, value in values.items() if value is not None}
        plain = {name: _coerce(value, known[name], where) for name, value in given.items()}
        try:
            return cls(**plain)
        except InputError as error:
            raise error.at(where) from error

    def identity(self) -> dict[str, Any]:
        """The fields that decide what is computed, by name."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)  # type: ignore[arg-type]
            if not limits_of(item).runtime
        }


@dataclass(frozen=True)
class SelectionConfig(Checked):
    """Which experts of the checkpoint take part."""

    families: str = option("both", "Expert families to compress.", choices=("up", "gate", "both"))
    single_layer: int | None = option(None, "Take experts from this layer only.", low=0)
    layers: str | None = option(None, "Take layers A to B-1 only.", metavar="A:B")
    max_experts: int | None = option(None, "At most this many experts a family.", low=2)
    sample_method: str = option(
        "first_n",
        f"Which experts {named('max_experts')} keeps.",
        choices=("first_n", "evenly_spaced"),
    )
    include_shared: bool = option(
        False, "Also take shared experts, cut into blocks of the routed experts' height."
    )
    include_mtp: bool = option(False, "Also take the experts of multi-token-prediction layers.")
    revision: str | None = option(None, "Branch, tag or commit of a hub model.", metavar="REVISION")

    @property
    def family_names(self) -> tuple[str, ...]:
        """The families as a tuple."""
        return ("up", "gate") if self.families == "both" else (self.families,)

    def check(self) -> None:
        if self.single_layer is not None and self.layers is not None:
            raise InputError(
                f"{named('single_layer')} and {named('layers')}: both choose layers. "
                "Give one of them"
            )


METHODS = (
    "ts_pca",
    "left_gram_pca",
    "rpca",
    "spherical_kmeans",
    "residual_greedy",
    "hybrid",
    "svd",
    "nn_dictionary",
)


@dataclass(frozen=True)
class SeedConfig(Checked):
    """The warm start: proxies, atoms, codes."""

    method: str = option("nn_dictionary", "Seeding method.", choices=METHODS)
    rank: int | None = option(None, f"Rows r of an atom; overrides {named('rank_ratio')}.", low=1)
    rank_ratio: float = option(0.75, "r as a fraction of the expert height p.", low=0.0, high=1.0)
    bases: int | None = option(
        None, f"Atoms m in the bank; overrides {named('basis_ratio')}.", low=1
    )
    basis_ratio: float = option(
        0.25, "m as a fraction of the N experts in a bank's scope.", low=0.0, high=1.0
    )
    bank_scope: str = option(
        "global",
        "Experts that share a bank: all layers, one layer, or runs of K layers.",
        metavar="global|layer|layers:K",
    )
    proxies: str | None = option(
        None,
        "Proxy right factors (default: the method's own): selected rows, the common left basis, "
        "each expert's own, or rotated to the Procrustes mean of all.",
        choices=("rows", "left_gram", "svd", "procrustes"),
    )
    row_selection: str = option(
        "energy", "How `rows` proxies choose rows.", choices=("energy", "uniform", "random")
    )
    row_subset: int | None = option(
        None, "Experts whose energies choose the rows (default: all).", low=1
    )
    codes: str = option(
        "nnls",
        "Initial codes: non-negative least squares, the same on the simplex, "
        "or least squares clamped at zero.",
        choices=("nnls", "simplex", "ls_clamp"),
    )
    normalize: str = option(
        "zscore",
        "Per-family normalisation of the weights, folded back at the end; a mean below 1 % of "
        "the deviation is not taken out.",
        choices=("zscore", "none"),
    )
    oversampling: int = option(8, "Extra columns of rpca's range finder.", low=0)
    power_iterations: int = option(2, "Power iterations of rpca.", low=0)
    pca_signs: str = option(
        "simplex",
        "How PCA atoms are made usable with non-negative codes: rotated to a simplex, "
        "or each flipped to its better sign.",
        choices=("simplex", "flip"),
    )
    kmeans_init: str = option(
        "kmeans++", "First centres of k-means.", choices=("kmeans++", "farthest")
    )
    kmeans_iterations: int = option(50, "Lloyd iterations at most.", low=1)
    greedy_ridge: float = option(
        0.0, "Ridge of residual_greedy's codes, relative to the atoms' unit norm.", low=0.0
    )
    hybrid_ratio: float = option(
        0.5, "Fraction of hybrid's atoms that come from PCA.", low=0.0, high=1.0
    )
    hybrid_variant: str = option(
        "kmeans", "What completes hybrid's PCA atoms.", choices=("kmeans", "greedy")
    )
    dictionary_rounds: int = option(
        300, "MOD + NNLS rounds of nn_dictionary at most; they need no data.", low=0
    )
    dictionary_support: int = option(
        24,
        "Atoms a code may use while nn_dictionary learns: about twice the support wanted in the "
        f"end, or {named('bases')} for unconstrained codes.",
        low=1,
    )
    lambda_a: float = option(
        1e-6, "Ridge of the adapters, relative to the mean diagonal of H H^T.", low=0.0
    )
    seed: int = option(0, "Seed of everything random.", low=0)

    def check(self) -> None:
        if self.rank is None and self.rank_ratio == 0:
            raise InputError(
                f"{named('rank_ratio')} 0 leaves no rows: "
                f"give a fraction above 0, or {named('rank')}"
            )
        if self.bases is None and self.basis_ratio == 0:
            raise InputError(
                f"{named('basis_ratio')} 0 leaves no atoms: "
                f"give a fraction above 0, or {named('bases')}"
            )
        self.scope_layers()

    def scope_layers(self) -> int | None:
        """Layers that share a bank; None means all of them."""
        kind, _, count = self.bank_scope.partition(":")
        if self.bank_scope == "global":
            return None
        if self.bank_scope == "layer":
            return 1
        if kind == "layers" and count.isdigit() and int(count) > 0:
            return int(count)
        raise InputError(
            f"{named('bank_scope')} {self.bank_scope!r} is not known: "
            "use global, layer or layers:K with K > 0"
        )


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Alternating minimisation: one pass over the experts an epoch."""

    epochs: int = option(
        20,
        "Passes over the data in all, warm-up included; more than were done continues.",
        low=1,
        runtime=True,
    )
    warmup_epochs: int = option(
        5, "First epochs with orthonormal adapters, which align the experts' gauges.", low=0
    )
    warmup_momentum: float = option(0.8, "Momentum of the bank in the warm-up.", low=0.0, high=0.99)
    momentum: float = option(0.95, "Momentum of the bank after the warm-up.", low=0.0, high=0.99)
    targets: str = option(
        "surrogate",
        "Weight-aware targets: descent on a surrogate of the loss, or pseudo-inverse.",
        choices=("surrogate", "pinv"),
    )
    blend_epochs: int = option(
        0,
        "Epochs after the warm-up over which beta goes from warm-start to weight-aware targets.",
        low=0,
    )
    damping: float = option(
        0.2, "c of the surrogate's weights: larger is slower and safer.", low=0.01, high=16.0
    )
    guard: float = option(
        0.003, "Relative rise of relF over the least so far that takes a step back.", low=0.0
    )
    coding_share: float = option(
        0.5, "Part of the bank's step that the codes aim at.", low=0.0, high=1.0
    )
    coding_steps: int = option(10, "Accelerated NNLS steps an epoch.", low=1)
    activation: str = option(
        "tanh", "Activation phi of the mixtures.", choices=("silu", "tanh", "none")
    )
    gain: float = option(0.7, "RMS of phi's argument (activation gain).", low=0.01, high=100.0)
    activation_start: int = option(
        0, "Epochs before the activation is brought in; never before the warm-up is over.", low=0
    )
    activation_steps: int = option(20, "Steps in which lambda goes from 0 to 1.", low=1)
    target_support: str = option(
        "12",
        "Median number of atoms an expert uses; none leaves the codes unconstrained.",
        metavar="N|none",
        number=True,
    )
    coding: str = option(
        "entmax",
        "Mapping that sparsifies codes (entmax is the 1.5 one).",
        choices=("entmax", "sparsemax", "softmax"),
    )
    temperature_rate: float = option(
        0.6, "Rate eta of the temperature's control law.", low=0.0, high=5.0
    )
    temperature_min: float = option(1e-3, "Lowest temperature.", low=1e-6)
    temperature_max: float = option(1e3, "Highest temperature.", low=1e-6)
    prune: float = option(
        1e-3,
        "Codes below this share of an expert's largest are dropped (epsilon).",
        low=0.0,
        high=1.0,
    )
    support_cap: int | None = option(None, "At most this many atoms an expert (top-k).", low=1)
    l1: float = option(0.0, "L1 penalty on codes, relative to the atoms' energy.", low=0.0)
    lambda_a: float = option(
        1e-6, "Ridge of the adapters, relative to the mean diagonal of H H^T.", low=0.0
    )
    lambda_b: float = option(
        1e-6, "Ridge of the dictionary step, relative to the mean diagonal.", low=0.0
    )
    lambda_t: float = option(1e-3, "Ridge of the pinv targets, relative.", low=0.0)
    coherence: float = option(0.0, "Strength of the penalty on similar atoms.", low=0.0, high=1.0)
    tolerance: float = option(
        1e-5,
        "Early stop: relative improvement of relF below which an epoch counts as still.",
        low=0.0,
    )
    patience: int = option(10, "Early stop after this many still epochs; 0 never stops.", low=0)

    def check(self) -> None:
        self.support_target()
        if self.temperature_min > self.temperature_max:
            raise InputError(
                f"{named('temperature_min')} is above {named('temperature_max')}: swap them"
            )

    def support_target(self) -> int | None:
        """The wanted median support, or None."""
        if self.target_support == "none":
            return None
        if not self.target_support.isdigit() or int(self.target_support) < 1:
            raise InputError(
                f"{named('target_support')} {self.target_support!r}: give a number above 0, or none"
            )
        return int(self.target_support)


@dataclass(frozen=True)
class RuntimeConfig(Checked):
    """How a run is carried out."""

    memory: str | None = option(
        None,
        "Peak resident memory of the whole process (default: 60 % of what is free).",
        runtime=True,
        metavar="SIZE",
    )
    device: str = option(
        "auto", "Where the arithmetic runs.", choices=("auto", "cpu", "mps", "cuda")
    )
    checkpoint_every: float = option(
        10.0,
        "Minutes between checkpoints inside a pass.",
        low=0.0,
        runtime=True,
        metavar="MINUTES",
    )
    wandb_project: str | None = option(
        None, "Also log to this Weights & Biases project.", runtime=True, metavar="NAME"
    )

    def check(self) -> None:
        if self.memory is not None:
            try:
                parse_size(self.memory)
            except InputError as error:
                raise error.at(named("memory")) from error


def limits_of(item: "dataclasses.Field[Any]") -> Limits:
    """The limits given to `option` for a field."""
    limits: Limits = item.metadata["limits"]
    return limits


def plain_type(item: "dataclasses.Field[Any]") -> type:
    """The field's type without `| None`."""
    kind = item.type
    if isinstance(kind, str):
        raise TypeError(f"{item.name}: annotations must not be strings")
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return typing.cast(type, kind)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One phrase per key whose value differs, spelled out."""
    return [
        f"{key}: was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key)
    ]


def to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of plain values as TOML, leaving out None, which TOML cannot say."""
    kept = {
        name: {k: v for k, v in table.items() if v is not None} for name, table in sections.items()
    }
    text: str = tomli_w.dumps(kept)
    return text


def load_toml(text: str, where: str) -> dict[str, Any]:
    """Parse TOML; a mistake is an InputError naming `where`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not valid TOML: {error}") from error


def plain_value(value: Any, kind: type, where: str) -> Any:
    """`value` from TOML as a `kind`; InputError that names `where` when it is none."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where} = {value!r}: {_WORDS[kind]} is needed")
    return value


def _coerce(value: Any, item: "dataclasses.Field[Any]", where: str) -> Any:
    if limits_of(item).number and type(value) is int:
        return str(value)
    return plain_value(value, plain_type(item), f"{where}: {item.name}")


def _check(name: str, value: Any, item: "dataclasses.Field[Any]") -> None:
    limits = limits_of(item)
    if value is None:
        return
    if limits.choices and value not in limits.choices:
        raise InputError(f"{name} {value!r} is not known: use one of {', '.join(limits.choices)}")
    low_enough = limits.high is None or value <= limits.high
    if not (low_enough and (limits.low is None or value >= limits.low)):
        raise InputError(f"{name} {value!r} is out of range: {_range(limits)}")


def _range(limits: Limits) -> str:
    bounds: Iterable[str] = (
        f"at least {limits.low:g}" if limits.low is not None else "",
        f"at most {limits.high:g}" if limits.high is not None else "",
    )
    return " and ".join(filter(None, bounds))
