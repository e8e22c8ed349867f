"""Does what a recipe says; doing it again continues where it stopped.

Whatever follows from the recipe and the folders it names is checked before any work.
"""

from dataclasses import dataclass
from pathlib import Path

from globe_stream.commands.calibration import require_texts
from globe_stream.commands.completion import is_complete
from globe_stream.commands.experts import group_experts
from globe_stream.commands.export import export
from globe_stream.commands.recipe import Recipe
from globe_stream.commands.report import report
from globe_stream.commands.seed import seed
from globe_stream.commands.train import train
from globe_stream.commands.wording import in_words_of_recipes
from globe_stream.config import ExportConfig, SyntheticModel
from globe_stream.engine.progress import Progress
from globe_stream.engine.status import StatusDocument
from globe_stream.errors import InputError
from globe_stream.export.result import ExportResult
from globe_stream.store.run import Run
from globe_stream.synthetic.checkpoints import is_unfinished, write_synthetic
from globe_stream.synthetic.record import made_otherwise, planned_index


@dataclass(frozen=True)
class RecipeDocument(StatusDocument):
    """Where the run stands, what was exported, and the file of the report, if there is one."""

    exports: tuple[ExportResult, ...]
    report: str | None


def run_recipe(recipe: Recipe, *, command: str, silent: bool = False) -> RecipeDocument:
    """Do everything in `recipe` that is not done yet; returns the status and what was written."""
    with in_words_of_recipes(str(recipe.run)):
        for item in recipe.export:
            require_texts(item.calibrate)
        if recipe.synth is not None:
            _synthesise(recipe, recipe.synth, silent)
        else:
            _require_room_for_exports(recipe)
        status = _learn(recipe, silent)
        exports = [_export(recipe, item, command, silent) for item in recipe.export]
        if recipe.report is not None:
            report([recipe.run], recipe.report)
    written = None if recipe.report is None else str(recipe.report)
    return RecipeDocument(**vars(status), exports=tuple(exports), report=written)


def _synthesise(recipe: Recipe, model: SyntheticModel, silent: bool) -> None:
    """Write the model unless it is there, when all that can be checked in advance is well."""
    folder = Path(recipe.model)
    there = (folder / "config.json").exists() and not is_unfinished(folder)
    if there:
        _require_same_model(folder, model)
    group_experts(planned_index(folder, model), recipe.selection, recipe.seed)
    _require_room_for_exports(recipe)
    if not there:
        write_synthetic(folder, model, progress=Progress(silent=silent))


def _require_same_model(folder: Path, model: SyntheticModel) -> None:
    changed = made_otherwise(folder, model)
    if changed is None:
        raise InputError(
            f"{folder}: holds a checkpoint that no [synth] made. "
            "Leave out [synth], or name another folder as model"
        )
    if changed:
        raise InputError(
            f"{folder}: was made with another [synth]: {'; '.join(changed)}. "
            "Delete or rename that folder, or name another one as model"
        )


def _require_room_for_exports(recipe: Recipe) -> None:
    """Raise InputError when an export folder is taken and the run is still to change."""
    if Run.exists(recipe.run) and is_complete(Run(recipe.run, writable=False), recipe.train):
        return
    for item in recipe.export:
        if item.out.exists() and not (item.out.is_dir() and not any(item.out.iterdir())):
            raise InputError(
                f"{item.out}: is taken by something older than the run will be: an export is made "
                "when the run is done, and it is not. Delete or rename it, or change out"
            )


def _learn(recipe: Recipe, silent: bool) -> StatusDocument:
    status = seed(
        recipe.model, recipe.run, recipe.selection, recipe.seed, recipe.runtime, silent=silent
    )
    if recipe.train is not None:
        status = train(recipe.run, recipe.train, recipe.runtime, inherit=False, silent=silent)
    return status


def _export(recipe: Recipe, item: ExportConfig, command: str, silent: bool) -> ExportResult:
    return export(
        recipe.run,
        item,
        runtime=recipe.runtime,
        command=command,
        silent=silent,
    )
