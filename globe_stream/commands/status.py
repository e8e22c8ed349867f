"""The document of `status --json`, which `seed` and `train` end with too.

Source: docs/formats.md.
"""

import hashlib
import json
from typing import Any

import torch

from globe_stream.factorization.groups import GroupSizes
from globe_stream.store import arrays
from globe_stream.store.run import FORMAT, Run, State

_STATES = ("seeding", "seeded", "training", "trained")


def status_document(run: Run) -> dict[str, Any]:
    """Where `run` stands."""
    groups = run.header["units"]
    states = {group["key"]: run.state(group["key"]) for group in groups}
    families = {
        family: _family(run, family, states)
        for family in dict.fromkeys(group["family"] for group in groups)
    }
    done = [state for state in states.values() if state is not None]
    config = {
        **run.header["config"],
        "model": run.header["model"],
        "train": run.state("train_config"),
    }
    return {
        "format": FORMAT,
        "run": str(run.path),
        "state": _overall(list(states.values())),
        "config": config,
        "fingerprint": fingerprint(run),
        "peak_memory_bytes": (run.state("memory") or {}).get("peak_bytes", 0),
        "memory_budget_bytes": (run.state("budget") or {}).get("bytes", 0),
        "bytes_read": sum(state["bytes_read"] for state in done),
        "seconds": sum(state["seconds"] for state in done),
        "machine": run.state("machine"),
        "families": families,
    }


def fingerprint(run: Run) -> str:
    """One hash of the inputs, the configuration and the format version."""
    kept = {name: run.header[name] for name in ("fingerprint", "config", "format", "revision")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _overall(states: list[State | None]) -> str:
    """The state of the unit that is furthest behind; training, once one unit has begun."""
    if any(state is None for state in states):
        return "seeding"
    stages = [state["stage"] for state in states if state]
    least = min(stages, key=_STATES.index)
    return "training" if least == "seeded" and set(stages) != {"seeded"} else least


def _family(run: Run, family: str, states: dict[str, State | None]) -> dict[str, Any]:
    groups = [group for group in run.header["units"] if group["family"] == family]
    first = groups[0]
    found = [(group, state) for group in groups if (state := states[group["key"]]) is not None]
    document: dict[str, Any] = {
        "experts": sum(group["experts"] for group in groups),
        "p": first["p"],
        "d": first["d"],
        "rank": first["rank"],
        "bases": first["bases"],
        "banks": len(groups),
        "seeding_method": run.header["config"]["seed"]["method"],
    }
    if len(found) < len(groups):
        return {**document, "state": "seeding", "units_seeded": len(found)}
    counts = torch.cat(
        [
            torch.from_numpy(arrays.read(run.array(f"{group['key']}/codes/count")))
            for group, _ in found
        ]
    ).double()
    return {
        **document,
        "parameter_ratio": _parameter_ratio(groups, counts),
        "svd_equal_parameters_relative_error": _pooled(found, "svd_relative_error"),
        "svd_sampled_experts": sum(state.get("svd_sampled", 0) for _, state in found),
        "explained_variance": sum(s["explained_variance"] for _, s in found) / len(found),
        "epoch": min(state["epoch"] for _, state in found),
        "passes": min(state["passes"] for _, state in found),
        "relative_frobenius_error": _pooled(found, "relative_frobenius_error"),
        "median_support": float(counts.quantile(0.5)),
        "temperature": found[0][1]["temperature"],
        "activation_lambda": min(state["activation_lambda"] for _, state in found),
    }


def _pooled(found: list[tuple[dict[str, Any], State]], name: str) -> float | None:
    """A relative error over several units, from those of each and their squared norms."""
    if any(state.get(name) is None for _, state in found):
        return None
    norms = sum(state["squared_norm"] for _, state in found)
    squares = sum(state[name] ** 2 * state["squared_norm"] for _, state in found)
    return float((squares / norms) ** 0.5)


def _parameter_ratio(groups: list[dict[str, Any]], counts: torch.Tensor) -> float:
    """Parameters kept over parameters replaced, non-zero codes counted."""
    whole = sum(group["experts"] * group["p"] * group["d"] for group in groups)
    kept = sum(_sizes(group).kept_parameters for group in groups)
    return float((kept + float(counts.sum())) / whole)


def _sizes(group: dict[str, Any]) -> GroupSizes:
    names = ("experts", "p", "d", "rank", "bases")
    return GroupSizes(**{name: group[name] for name in names}, itemsize=2)
