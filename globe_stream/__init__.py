"""globe-stream: compress Mixture-of-Experts language models out of core.

Functions are imported when they are first asked for: they need torch. Importing the package makes
its model types known to transformers, as soon as transformers is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from globe_stream.inference.factors import load_factors
    from globe_stream.inference.patch import patch_model
    from globe_stream.inference.pretrained import from_pretrained, warm_up

__version__ = "0.1.0"
__all__ = ["__version__", "from_pretrained", "load_factors", "patch_model", "warm_up"]

_LAZY = {
    "from_pretrained": "globe_stream.inference.pretrained",
    "load_factors": "globe_stream.inference.factors",
    "patch_model": "globe_stream.inference.patch",
    "warm_up": "globe_stream.inference.pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


importlib.import_module("globe_stream.inference.registration").make_known()
