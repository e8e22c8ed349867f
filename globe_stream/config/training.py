"""Alternating minimisation."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from globe_stream.config.options import RUNTIME, Options, whole_number
from globe_stream.errors import InputError, option


def _text_of_number(value: Any) -> Any:
    return str(value) if type(value) is int else value


class TrainConfig(Options):
    """Alternating minimisation: one pass over the experts an epoch."""

    epochs: int = Field(
        20,
        ge=1,
        description="Passes over the data in all, warm-up included; more than were done continues.",
        json_schema_extra=RUNTIME,
    )
    warmup_epochs: int = Field(
        5,
        ge=0,
        description="First epochs with orthonormal adapters, which settle the rotation that every "
        "expert's factors leave open.",
    )
    warmup_momentum: float = Field(
        0.8, ge=0.0, le=0.99, description="Momentum of the bank in the warm-up."
    )
    momentum: float = Field(
        0.98,
        ge=0.0,
        le=0.99,
        description="Largest momentum of the bank after the warm-up; it grows as k / (k + 3) over "
        "the k steps since it was last dropped.",
    )
    warmup_targets: Literal["current", "initial"] = Field(
        "current",
        description="Warm-up (and beta < 1) targets: each expert rotated to lie nearest to its own "
        "mixture of now, or once and for all to the mean of the warm start (its proxies; needs "
        f"{option('proxies')} procrustes).",
    )
    targets: Literal["surrogate", "pinv"] = Field(
        "surrogate",
        description="Weight-aware targets: descent on a surrogate of the loss, or pseudo-inverse.",
    )
    blend_epochs: int = Field(
        0,
        ge=0,
        description="Epochs after the warm-up over which beta goes from 0, warm-start "
        "targets, to 1, weight-aware ones.",
    )
    damping: float = Field(
        0.17,
        ge=0.01,
        le=16.0,
        description="c of the surrogate's weights: larger is slower and safer.",
    )
    guard: float = Field(
        0.003,
        ge=0.0,
        description="Relative rise of relF over the least so far that takes a step back.",
    )
    coding_share: float = Field(
        0.5, ge=0.0, le=1.0, description="Part of the bank's step that the codes aim at."
    )
    coding_steps: int = Field(10, ge=1, description="Accelerated NNLS steps an epoch.")
    activation: Literal["silu", "tanh", "none"] = Field(
        "tanh", description="Activation phi of the mixtures."
    )
    gain: float = Field(
        0.7, ge=0.01, le=100.0, description="RMS of phi's argument (activation gain)."
    )
    activation_start: int = Field(
        0,
        ge=0,
        description="Epochs before the activation is brought in; never before the warm-up is over.",
    )
    activation_steps: int = Field(
        20,
        ge=1,
        description="Steps in which lambda, the share of the activation in the mixtures, goes "
        "from 0 (linear) to 1.",
    )
    target_support: Annotated[str, BeforeValidator(_text_of_number)] = Field(
        "12",
        description="Wanted median support, the number of atoms that an expert uses; none leaves "
        "the codes unconstrained.",
        json_schema_extra={"metavar": "N|none"},
    )
    coding: Literal["entmax", "sparsemax", "softmax"] = Field(
        "entmax", description="Mapping that sparsifies codes (entmax is the 1.5 one)."
    )
    temperature_rate: float = Field(
        0.6, ge=0.0, le=5.0, description="Rate eta of the temperature's control law."
    )
    temperature_min: float = Field(1e-3, ge=1e-6, description="Lowest temperature.")
    temperature_max: float = Field(1e3, ge=1e-6, description="Highest temperature.")
    prune: float = Field(
        1e-3,
        ge=0.0,
        le=1.0,
        description="Atoms whose code is below this share of an expert's largest are dropped "
        "(epsilon); with a wanted or capped support the codes as the `coding` mapping leaves them.",
    )
    support_cap: int | None = Field(
        None, ge=1, description="At most this many atoms an expert (top-k)."
    )
    l1: float = Field(
        0.0, ge=0.0, description="L1 penalty on codes, relative to the atoms' energy."
    )
    lambda_a: float = Field(
        1e-6, ge=0.0, description="Ridge of the adapters, relative to the mean diagonal of H H^T."
    )
    lambda_b: float = Field(
        1e-6, ge=0.0, description="Ridge of the dictionary step, relative to the mean diagonal."
    )
    lambda_t: float = Field(1e-3, ge=0.0, description="Ridge of the pinv targets, relative.")
    coherence: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Strength of the repulsion of similar atoms; 1 takes the largest eigenvalue "
        "of their Gram matrix to one in an epoch.",
    )
    tolerance: float = Field(
        1e-5,
        ge=0.0,
        description="Early stop: relative improvement of relF (||W - W~|| / ||W||, Frobenius) "
        "below which an epoch is still.",
    )
    patience: int = Field(
        10,
        ge=0,
        description="Early stop after this many epochs in a row with relF still and supports "
        "stable; 0 never stops. May be raised on a run that stopped.",
        json_schema_extra=RUNTIME,
    )

    def check(self) -> None:
        self.support_target()
        if self.temperature_min > self.temperature_max:
            raise InputError(
                f"{option('temperature_min')} is above {option('temperature_max')}: swap them"
            )

    def unused(self) -> dict[str, str]:
        reasons: dict[str, str] = {}
        if self.target_support == "none":
            of_temperature = ("temperature_rate", "temperature_min", "temperature_max")
            reasons |= dict.fromkeys(of_temperature, f"with {option('target_support')} none")
            if self.support_cap is None:
                dense = f"with {option('target_support')} none and no {option('support_cap')}"
                reasons["coding"] = dense
        if self.activation == "none":
            of_ramp = ("activation_start", "activation_steps")
            reasons |= dict.fromkeys(of_ramp, f"with {option('activation')} none")
        if self.targets == "surrogate":
            reasons["lambda_t"] = f"with {option('targets')} surrogate"
        if self.warmup_epochs == 0:
            reasons["warmup_momentum"] = f"with {option('warmup_epochs')} 0"
            if self.blend_epochs == 0:
                reasons["warmup_targets"] = f"with {option('warmup_epochs')} 0"
        return reasons

    def support_target(self) -> int | None:
        """The wanted median support, or None."""
        if self.target_support == "none":
            return None
        target = whole_number(self.target_support)
        if not target:
            raise InputError(
                f"{option('target_support')} {self.target_support!r}: "
                "give a number above 0, or none"
            )
        return target
