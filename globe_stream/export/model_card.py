"""The model card: what an export is, its sizes and errors, and the command that made it."""

from collections.abc import Iterator, Mapping

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from globe_stream import __version__
from globe_stream.export.manifest import ExportManifest
from globe_stream.export.result import NO_SAVING
from globe_stream.factorization.error_sums import pooled
from globe_stream.factorization.trained_run import TrainedRun
from globe_stream.formatting import format_bytes
from globe_stream.io.file_digest import FileDigest
from globe_stream.io.records import JsonObject

_TEMPLATES = Environment(
    loader=PackageLoader("globe_stream.export"),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
_TITLES = {
    "factors": "bank, codes and adapters",
    "model": "in compressed form",
    "dense": "experts rebuilt from a shared bank",
    "svd": "experts replaced by a truncated SVD of equal parameters",
    "rounded": "experts rounded to nearest",
}
_STATE = (
    "seeding_method",
    "activation",
    "activation_lambda",
    "gamma",
    "mean",
    "scale",
    "lambda_a",
    "median_support",
)


def model_card(source: TrainedRun, manifest: ExportManifest, size: int) -> str:
    """Markdown with front matter for the export of `source` that `manifest` describes.

    `size` are the bytes of its tensors.
    """
    index, kind = source.index, manifest.kind
    data = ModelCardData(
        library_name="globe-stream" if kind == "factors" else "transformers",
        tags=["mixture-of-experts", "compression"],
        base_model=index.model if index.revision is not None else None,
    )
    content = _TEMPLATES.get_template("card.md.jinja").render(
        card_data=data.to_yaml(),
        title=f"{index.name.rsplit('/', 1)[-1]}, {_TITLES[kind]}",
        origin=index.name + (f" at {index.revision}" if index.revision else ""),
        version=__version__,
        model_type=index.model_type,
        kind=kind,
        left_out=_left_out(source),
        no_saving=NO_SAVING,
        quantized="quantization_config" in index.config,
        sizes=list(_sizes(source)),
        dtype=manifest.dtype,
        size=format_bytes(size),
        errors=list(_errors(source, manifest.relative_frobenius_error)),
        settings=list(_settings(source)),
        command=manifest.command,
        calibration=manifest.calibration,
        texts=[(text.bytes, text.sha256) for text in _texts(manifest)],
    )
    return str(ModelCard(content))


def _texts(manifest: ExportManifest) -> tuple[FileDigest, ...]:
    return () if manifest.calibration is None else manifest.calibration.texts


def _left_out(source: TrainedRun) -> str:
    """What an export of factors leaves in the original."""
    experts = [expert for fitted in source.groups for expert in fitted.group.experts]
    if any(expert.shared for expert in experts):
        return "Down projections and all else that is no expert"
    return "Down projections, shared experts and all else"


def _sizes(source: TrainedRun) -> Iterator[tuple[object, ...]]:
    for fitted in source.groups:
        sizes = fitted.group.sizes
        ratio = sizes.parameter_ratio(len(fitted.codes.values))
        yield (
            fitted.group.key,
            sizes.experts,
            f"{sizes.p} x {sizes.d}",
            sizes.bases,
            sizes.rank,
            f"{ratio:.1%}",
        )


def _errors(source: TrainedRun, errors: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    for family, value in errors.items():
        groups = [group for group in source.groups if group.group.family == family]
        run = pooled(group.recorded_errors for group in groups).relative_error
        epochs = sorted({group.state.epoch for group in groups})
        yield family, f"{value:.4f}", f"{run:.4f}", ", ".join(map(str, epochs))


def _settings(source: TrainedRun) -> Iterator[tuple[str, object]]:
    for fitted in source.groups:
        for name in _STATE:
            yield f"{fitted.group.key}: {name}", getattr(fitted.state, name)
    yield from _flat(source.header.config.to_json())


def _flat(config: JsonObject, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value
