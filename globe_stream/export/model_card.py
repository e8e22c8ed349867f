"""The model card: what an export is, how good, how large, and how it was made."""

from collections.abc import Mapping
from typing import Any

from globe_stream import __version__
from globe_stream.factorization.error_sums import pooled
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.formatting import format_bytes

NO_SAVING = (
    "This is a dense export: every expert is written out at full size, so it saves no size on "
    "disk or in memory. An export of factors is the small one."
)


def model_card(
    source: TrainedRun,
    *,
    kind: str,
    dtype: str,
    size: int,
    errors: Mapping[str, float],
    command: str,
    hub_id: bool,
) -> str:
    """Markdown with front matter; `size` is that of the exported tensors in bytes."""
    front = [
        "---",
        "library_name: globe-stream" if kind == "factors" else "library_name: transformers",
        "tags: [mixture-of-experts, compression]",
    ]
    front += [f"base_model: {source.index.model}"] if hub_id else []
    title = f"# {source.index.model.rstrip('/').rsplit('/', 1)[-1]}, {_TITLES[kind]}"
    parts = [
        "\n".join([*front, "---"]),
        title,
        _intro(source, kind),
        _sizes(source, dtype, size),
        _errors(source, errors),
        _settings(source),
        _how(kind, command),
    ]
    return "\n\n".join(parts) + "\n"


_TITLES = {
    "factors": "bank, codes and adapters",
    "dense": "experts rebuilt from a shared bank",
    "svd": "experts replaced by a truncated SVD of equal parameters",
}


def _intro(source: TrainedRun, kind: str) -> str:
    where = source.index.model + (f" at {source.index.revision}" if source.index.revision else "")
    made = f"Made from {where} with globe-stream {__version__}. Type `{source.index.model_type}`."
    if kind == "factors":
        return (
            f"{made}\n\nEvery expert is `scale * A @ phi(gain * sum_j alpha_j B_j) + offset`: "
            "a bank B that experts share, a sparse non-negative code alpha, and an adapter A "
            "of its own. Down projections, shared experts and all else stay in the original."
        )
    notice = [made, NO_SAVING]
    if "quantization_config" in source.index.config:
        notice.append(
            "The original is quantised. Here everything is stored unquantised, and the "
            "scales and the quantisation settings are left out."
        )
    return "\n\n".join(notice)


def _sizes(source: TrainedRun, dtype: str, size: int) -> str:
    lines = [
        "## Sizes",
        "",
        "| unit | experts | p x d | atoms | atom rows | parameters kept |",
        "|---|---|---|---|---|---|",
    ]
    for fitted in source.groups:
        sizes = fitted.group.sizes
        ratio = sizes.parameter_ratio(len(fitted.codes.values))
        lines.append(
            f"| {fitted.group.key} | {sizes.experts} | {sizes.p} x {sizes.d} | "
            f"{sizes.bases} | {sizes.rank} | {ratio:.1%} |"
        )
    return "\n".join([*lines, "", f"Stored as {dtype}, {format_bytes(size)} in all."])


def _errors(source: TrainedRun, errors: Mapping[str, float]) -> str:
    lines = [
        "## Errors",
        "",
        "Relative Frobenius error `||W_hat - W|| / ||W||` over all experts.",
        "",
        "| family | as exported | in the run | epochs |",
        "|---|---|---|---|",
    ]
    for family, value in errors.items():
        groups = [group for group in source.groups if group.group.family == family]
        run = pooled(group.recorded_errors for group in groups).relative_error
        epochs = sorted({group.state.epoch for group in groups})
        lines.append(
            f"| {family} | {value:.4f} | {run:.4f} | {', '.join(str(epoch) for epoch in epochs)} |"
        )
    return "\n".join(lines)


def _settings(source: TrainedRun) -> str:
    lines = ["## Settings", "", "| setting | value |", "|---|---|"]
    for fitted in source.groups:
        state = fitted.state
        lines += [
            f"| {fitted.group.key}: {name} | {getattr(state, name)} |"
            for name in (
                "seeding_method",
                "activation",
                "activation_lambda",
                "gamma",
                "mean",
                "scale",
                "lambda_a",
                "median_support",
            )
        ]
    config = source.header.config.to_json()
    lines += [f"| {name} | {value} |" for name, value in _flat(config)]
    return "\n".join(lines)


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in config.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            rows.append((prefix + name, value))
    return rows


def _how(kind: str, command: str) -> str:
    made = f"## Made by\n\n    {command}" if command else ""
    if kind == "factors":
        use = (
            "## Use\n\n```python\nimport globe_stream\nimport transformers\n\n"
            'factors = globe_stream.load_factors("THIS FOLDER")\n'
            'weight = factors.reconstruct("up", 0, 0)  # (p, d)\n\n'
            'model = transformers.AutoModelForCausalLM.from_pretrained("THE ORIGINAL")\n'
            'model = globe_stream.patch_model(model, "THIS FOLDER")\n```'
        )
    else:
        use = "## Use\n\nLoad it like the original; nothing of globe-stream is needed."
    return "\n\n".join(part for part in (use, made) if part)
