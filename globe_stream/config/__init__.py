"""Configuration: one frozen model per concern, with type, bounds, help and default by each field.

The command line, the recipes and `config.toml` are all made from these fields, so an option
exists once.
"""

from globe_stream.config.export import ExportConfig
from globe_stream.config.methods import METHOD_FACTS, METHODS, ProxyKind, SeedMethod
from globe_stream.config.names import DtypeName, ExportFormat
from globe_stream.config.options import Options, OptionSpec, differences
from globe_stream.config.runtime import RuntimeConfig
from globe_stream.config.seeding import SeedConfig
from globe_stream.config.selection import SelectionConfig
from globe_stream.config.synthesis import SyntheticModel
from globe_stream.config.toml import load_toml, to_toml
from globe_stream.config.training import TrainConfig
from globe_stream.config.windows import Windows

__all__ = [
    "METHODS",
    "METHOD_FACTS",
    "DtypeName",
    "ExportConfig",
    "ExportFormat",
    "OptionSpec",
    "Options",
    "ProxyKind",
    "RuntimeConfig",
    "SeedConfig",
    "SeedMethod",
    "SelectionConfig",
    "SyntheticModel",
    "TrainConfig",
    "Windows",
    "differences",
    "load_toml",
    "to_toml",
]
