"""The warm start: proxies, atoms, codes."""

from typing import Literal

from pydantic import Field

from globe_stream.config.methods import (
    CLUSTERING,
    GREEDY,
    METHOD_FACTS,
    ProxyKind,
    SeedMethod,
    method_help,
    without_effect,
)
from globe_stream.config.options import Options, whole_number
from globe_stream.errors import InputError, option


class SeedConfig(Options):
    """The warm start: proxies, atoms, codes."""

    method: SeedMethod = Field(
        "nn_dictionary", description=f"How the first bank is found.\n\n{method_help()}"
    )
    rank: int | None = Field(
        None, ge=1, description=f"Rows r of an atom; overrides {option('rank_ratio')}."
    )
    rank_ratio: float = Field(
        0.75, ge=0.0, le=1.0, description="r as a fraction of the expert height p."
    )
    bases: int | None = Field(
        None, ge=1, description=f"Atoms m in the bank; overrides {option('basis_ratio')}."
    )
    basis_ratio: float = Field(
        0.25, ge=0.0, le=1.0, description="m as a fraction of the N experts in a bank's scope."
    )
    bank_scope: str = Field(
        "global",
        description="Experts that share a bank: all layers, one layer, or runs of K layers.",
        json_schema_extra={"metavar": "global|layer|layers:K"},
    )
    proxies: ProxyKind | None = Field(
        None,
        description="Proxy right factors (default: the method's own): selected rows, the common "
        "left basis, each expert's own, or rotated to the Procrustes mean of all.",
    )
    row_selection: Literal["energy", "uniform", "random"] = Field(
        "energy", description="How `rows` proxies choose rows."
    )
    row_subset: int | None = Field(
        None, ge=1, description="Experts whose energies choose the rows (default: all)."
    )
    codes: Literal["nnls", "simplex", "ls_clamp"] = Field(
        "nnls",
        description="Initial codes, the weights alpha_j >= 0 of the atoms in an expert: "
        "non-negative least squares, the same on the simplex, "
        "or least squares clamped at zero.",
    )
    normalize: Literal["zscore", "none"] = Field(
        "zscore",
        description="Per-family normalisation of the weights, folded back at the end; a mean below "
        "1 % of the deviation is not taken out.",
    )
    oversampling: int = Field(8, ge=0, description="Extra columns of rpca's range finder.")
    power_iterations: int = Field(2, ge=0, description="Power iterations of rpca.")
    pca_signs: Literal["simplex", "flip"] = Field(
        "simplex",
        description="How PCA atoms are made usable with non-negative codes: rotated to a simplex, "
        "or each flipped to its better sign.",
    )
    kmeans_init: Literal["kmeans++", "farthest"] = Field(
        "kmeans++", description="First centres of k-means."
    )
    kmeans_iterations: int = Field(
        50,
        ge=0,
        description="Lloyd iterations at most; 0 takes the first centers as they are, such as "
        f"the farthest-first ones of {option('kmeans_init')} farthest.",
    )
    greedy_ridge: float = Field(
        0.0,
        ge=0.0,
        description="Ridge of residual_greedy's codes, relative to the atoms' unit norm.",
    )
    greedy_lasso: float = Field(
        0.0,
        ge=0.0,
        le=0.9,
        description="Penalty on the sum of an expert's codes while residual_greedy codes (a "
        "non-negative lasso), relative to a proxy's unit norm; 0 is NNLS.",
    )
    hybrid_ratio: float = Field(
        0.5, ge=0.0, le=1.0, description="Fraction of hybrid's atoms that come from PCA."
    )
    hybrid_variant: Literal["kmeans", "greedy"] = Field(
        "kmeans", description="What completes hybrid's PCA atoms."
    )
    dictionary_rounds: int = Field(
        300, ge=0, description="MOD + NNLS rounds of nn_dictionary at most; they need no data."
    )
    dictionary_support: int = Field(
        24,
        ge=1,
        description="Atoms a code may use while nn_dictionary learns: about twice the support "
        f"wanted in the end, or {option('bases')} for unconstrained codes.",
    )
    lambda_a: float = Field(
        1e-6, ge=0.0, description="Ridge of the adapters, relative to the mean diagonal of H H^T."
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of everything random.")

    def check(self) -> None:
        if self.rank is None and self.rank_ratio == 0:
            raise InputError(
                f"{option('rank_ratio')} 0 leaves no rows: "
                f"give a fraction above 0, or {option('rank')}"
            )
        if self.bases is None and self.basis_ratio == 0:
            raise InputError(
                f"{option('basis_ratio')} 0 leaves no atoms: "
                f"give a fraction above 0, or {option('bases')}"
            )
        self.scope_layers()

    @property
    def proxy_kind(self) -> ProxyKind:
        """The proxies asked for, or the method's own."""
        return self.proxies or METHOD_FACTS[self.method].proxies[0]

    def unused(self) -> dict[str, str]:
        of_method = f"with {option('method')} {self.method}"
        reasons = dict.fromkeys(without_effect(self.method), of_method)
        if self.method == "hybrid":
            others = GREEDY if self.hybrid_variant == "kmeans" else CLUSTERING
            reasons |= dict.fromkeys(
                others, f"with {option('hybrid_variant')} {self.hybrid_variant}"
            )
        if self.proxy_kind != "rows":
            of_proxies = f"with {self.proxy_kind} {option('proxies')}"
            reasons |= dict.fromkeys(("row_selection", "row_subset"), of_proxies)
        if self.rank is not None:
            reasons["rank_ratio"] = f"beside {option('rank')}"
        if self.bases is not None:
            reasons["basis_ratio"] = f"beside {option('bases')}"
        return reasons

    def scope_layers(self) -> int | None:
        """Layers that share a bank; None means all of them."""
        kind, _, count = self.bank_scope.partition(":")
        if self.bank_scope == "global":
            return None
        if self.bank_scope == "layer":
            return 1
        if kind == "layers" and (layers := whole_number(count)):
            return layers
        raise InputError(
            f"{option('bank_scope')} {self.bank_scope!r} is not known: "
            "use global, layer or layers:K with K > 0"
        )
