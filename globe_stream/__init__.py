"""globe-stream: compress Mixture-of-Experts language models out of core.

`load_factors` and `patch_model` are imported when they are first asked for: they need torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from globe_stream.inference.factors import load_factors
    from globe_stream.inference.patch import patch_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_factors", "patch_model"]

_LAZY = {
    "load_factors": "globe_stream.inference.factors",
    "patch_model": "globe_stream.inference.patch",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
