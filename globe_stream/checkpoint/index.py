"""The index of a checkpoint: all experts and where they lie, from the shards' headers alone."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from globe_stream.checkpoint import selection as choosing
from globe_stream.checkpoint.experts import ExpertMatrix, split_shared
from globe_stream.checkpoint.fingerprint import CheckpointFingerprint, ShardFingerprint
from globe_stream.checkpoint.inventory import Inventory, take_inventory
from globe_stream.checkpoint.json_files import INDEX_NAME, parse_weight_map, read_json, shard_names
from globe_stream.checkpoint.layouts import ModelType
from globe_stream.checkpoint.model_types import MODEL_TYPES, model_type_of
from globe_stream.checkpoint.selection import Selection
from globe_stream.checkpoint.summary import CheckpointSummary, FamilySummary
from globe_stream.errors import InputError, option
from globe_stream.io.records import JsonObject
from globe_stream.io.safetensors import Header, TensorEntry, read_header, shown

__all__ = [
    "ExpertIndex",
    "ExpertMatrix",
    "Selection",
    "build_index",
    "open_index",
    "require_revisions",
]

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


def _nothing_to_fetch(paths: Sequence[Path], *, anew: bool = False) -> None:
    """A local folder has all its shards."""


@dataclass(frozen=True, slots=True)
class ExpertIndex:
    """Every expert of a checkpoint by family, in the order of positions.

    `experts` holds the routed ones, and after `select` the chosen blocks of shared ones; `shared`
    the shared experts whole. `headers` are those of all shards, in the order of their names.
    `revision` is the commit of a hub model, None for a folder; `rule` the one given by the user.
    """

    model: str
    model_type: str
    layout: str
    revision: str | None
    root: Path
    config: JsonObject
    headers: tuple[Header, ...]
    experts: dict[str, tuple[ExpertMatrix, ...]]
    shared: dict[str, tuple[ExpertMatrix, ...]] = field(default_factory=dict)
    extra_layers: int = 0
    rule: ModelType | None = None
    fetch_files: Callable[..., None] = _nothing_to_fetch
    """Makes sure that the files of some paths are here; `anew=True` downloads them in any case."""

    @property
    def name(self) -> str:
        """The id of a hub model, or the folder's own name: what exports say they were made from."""
        return self.model if self.revision is not None else self.root.name

    @property
    def files(self) -> tuple[Path, ...]:
        """All shards."""
        return tuple(header.path for header in self.headers)

    def select(self, selection: Selection) -> "ExpertIndex":
        """The index of the experts that `selection` takes; InputError if it takes none."""
        chosen = {}
        for family in self.families_of(selection):
            if family not in self.experts:
                raise InputError(
                    f"{self.model}: has no {family} matrices. Change {option('families')}."
                )
            members = self.experts[family]
            if selection.include_shared:
                members = self._with_shared(family, members)
            chosen[family] = choosing.choose(members, selection)
        return replace(self, experts=chosen)

    def families_of(self, selection: Selection) -> tuple[str, ...]:
        """The families that `selection` asks for; up and gate together mean those there are.

        A model type whose experts have no gate has up alone.
        """
        asked = selection.families
        rule = self.rule or MODEL_TYPES.get(self.model_type)
        if rule is not None and not rule.gated and set(asked) == {"up", "gate"}:
            return ("up",)
        return asked

    def _with_shared(
        self, family: str, members: tuple[ExpertMatrix, ...]
    ) -> tuple[ExpertMatrix, ...]:
        if not self.shared.get(family):
            raise InputError(
                f"{self.model}: has no shared experts. Leave out {option('include_shared')}."
            )
        p = members[0].shape[1 if members[0].role == "down" else 0]
        blocks = (block for expert in self.shared[family] for block in split_shared(expert, p))
        return tuple(sorted((*members, *blocks), key=lambda expert: expert.order))

    def fetch(self, experts: Sequence[ExpertMatrix], *, anew: bool = False) -> None:
        """Make sure that every file that holds one of `experts` is on this machine.

        Files of a hub model are downloaded if they are missing, or in any case with `anew`.
        """
        paths = {region.path for expert in experts for region in expert.storage.regions}
        self.fetch_files(sorted(paths), anew=anew)

    def fingerprint(self) -> CheckpointFingerprint:
        """What identifies the checkpoint: revision, and size and header hash of every shard."""
        files = {
            self.name_of(header.path): ShardFingerprint(header.size, header.sha256)
            for header in self.headers
        }
        return CheckpointFingerprint(self.revision, files)

    def name_of(self, path: Path) -> str:
        """The name of the shard `path`: where it lies below the checkpoint's folder."""
        return path.relative_to(self.root).as_posix()

    def summary(self) -> CheckpointSummary:
        """What the checkpoint holds."""
        return CheckpointSummary(
            format=1,
            model=self.model,
            model_type=self.model_type,
            layout=self.layout,
            revision=self.revision,
            shards=len(self.headers),
            bytes=sum(header.size for header in self.headers),
            families={name: FamilySummary.of(own) for name, own in self.experts.items()},
            shared_experts=len(self.shared.get("up", ())),
            mtp_layers_left_out=self.extra_layers,
        )


def require_revisions(model: str, revision: str | None) -> None:
    """Raise InputError when a `revision` is asked of a local folder, which has none."""
    if revision is not None and Path(model).expanduser().is_dir():
        raise InputError(
            f"{option('revision')} {revision}: {model} is a folder, which has no revisions. "
            "Leave it out, or give a hub id."
        )


def open_index(
    model: str,
    revision: str | None = None,
    include_mtp: bool = False,
    rule: ModelType | None = None,
) -> ExpertIndex:
    """The index of a local folder, or of a hub id at `revision`; reads headers only.

    `rule` takes the place of the model type's own. "owner/name" is a hub id unless there is a
    folder "owner" here.
    Raises InputError for a missing folder, a folder without safetensors, damaged or missing shards,
    and whatever `take_inventory` refuses.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _open_folder(model, folder, include_mtp, rule)
    if folder.exists():
        raise InputError(f"{model}: is a file. Give the folder that holds config.json and shards.")
    if _HUB_ID.match(model) and not folder.parent.is_dir():
        from globe_stream.checkpoint.hub import open_hub

        return open_hub(model, revision, include_mtp, rule)
    raise InputError(f"{model}: no such folder. Check the path, or give a hub id (owner/name).")


def _open_folder(
    model: str, folder: Path, include_mtp: bool, rule: ModelType | None
) -> ExpertIndex:
    root = folder.resolve()
    weight_map = _weight_map(root)
    headers = []
    for name in shard_names(root, weight_map):
        if not (root / name).is_file():
            raise InputError(
                f"{root / INDEX_NAME}: names the shard {shown(name)}, which is missing. "
                "Download it."
            )
        headers.append(read_header(root / name))
    config = read_json(root / "config.json")
    return build_index(
        model,
        revision=None,
        root=root,
        config=config,
        headers=headers,
        weight_map=weight_map,
        include_mtp=include_mtp,
        rule=rule,
    )


def build_index(
    model: str,
    *,
    revision: str | None,
    root: Path,
    config: JsonObject,
    headers: list[Header],
    weight_map: dict[str, str] | None,
    include_mtp: bool,
    rule: ModelType | None = None,
) -> ExpertIndex:
    """The index of shards whose headers are known."""
    entries = _all_entries(root, headers, weight_map)
    try:
        inventory: Inventory = take_inventory(entries, config, include_mtp, rule)
    except InputError as error:
        if error.message.startswith(str(root)):
            raise
        raise error.at(model) from error
    return ExpertIndex(
        model=model,
        model_type=model_type_of(config),
        layout=inventory.layout,
        revision=revision,
        root=root,
        config=config,
        headers=tuple(headers),
        experts=inventory.experts,
        shared=inventory.shared,
        extra_layers=inventory.extra_layers,
        rule=rule,
    )


def _all_entries(
    root: Path, headers: list[Header], weight_map: dict[str, str] | None
) -> list[TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for header in headers:
        for entry in header.tensors:
            other = entries.setdefault(entry.name, entry)
            if other is not entry:
                raise InputError(
                    f"{entry.path}: tensor {entry.name} is also in {other.path}. "
                    "Remove the shards of another checkpoint."
                )
    for name, shard in (weight_map or {}).items():
        if name not in entries or entries[name].path != root / shard:
            raise InputError(
                f"{root / INDEX_NAME}: says that tensor {shown(name)} is in {shown(shard)}, "
                "where it is not. Download the checkpoint again."
            )
    return list(entries.values())


def _weight_map(root: Path) -> dict[str, str] | None:
    if not (root / INDEX_NAME).is_file():
        return None
    return parse_weight_map(root / INDEX_NAME)
