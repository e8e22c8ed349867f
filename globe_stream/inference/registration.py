"""Models in compressed form load without `trust_remote_code` once globe-stream is imported.

transformers knows configs by model type and imports the module of a type, and the class in it, when
the type is first asked for. Our types get such entries as soon as transformers' table is there, and
an import hook answers for their modules; until then neither torch nor transformers is imported.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_TABLE = "transformers.models.auto.configuration_auto"
"""The module of transformers that knows configs by model type."""

_TYPE_PREFIX = "globe_stream_"
_MODULES = f"transformers.models.{_TYPE_PREFIX}"
_CONFIG = "GlobeConfig"


def make_known() -> None:
    """Enter our types into transformers' table, now or when it is imported."""
    sys.meta_path.insert(0, _Finder())
    if _TABLE in sys.modules:
        _enter(sys.modules[_TABLE])


def _enter(table: ModuleType) -> None:
    known = importlib.import_module("globe_stream.checkpoint.model_types").MODEL_TYPES
    names = table.CONFIG_MAPPING_NAMES
    names.update({_TYPE_PREFIX + kind: _CONFIG for kind in known if kind in names})


class _Finder(MetaPathFinder):
    """Finds the modules of our types, and the table as if this were not here."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of those modules; None for any other."""
        if fullname.startswith(_MODULES):
            return ModuleSpec(fullname, _TypeLoader())
        if fullname != _TABLE:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _TableLoader(spec.loader)
                return spec
        return None


class _TypeLoader(Loader):
    """Makes the module of one of our types."""

    def exec_module(self, module: ModuleType) -> None:
        """Give the module the type's config class; its model class is registered beside it."""
        pretrained = importlib.import_module("globe_stream.inference.pretrained")
        config, _ = pretrained.model_classes(module.__name__.removeprefix(_MODULES))
        setattr(module, _CONFIG, config)


class _TableLoader(Loader):
    """Runs the table's module, then enters our types."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as its own loader does, then enter our types."""
        self._loader.exec_module(module)
        _enter(module)
