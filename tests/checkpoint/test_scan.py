"""All configs of the installed transformers: none with experts is unknown.

A newer transformers shows here what is new: add the type to the table, or to the refused.
"""

import ast
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from globe_stream.checkpoint.layouts import config_integer
from globe_stream.checkpoint.model_types import MODEL_TYPES, REFUSED

MODELS = Path(transformers.__file__).parent / "models"
COUNTS = {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}
SECTIONS = {"dots3_note_vision_encoder"}
"""Configs of a second set of experts, which the outer model's entry reads."""


@lru_cache(maxsize=1)
def configs_with_experts() -> dict[str, str]:
    """Model type to class name of every config that counts experts in a field of its own."""
    found = {}
    for path in sorted(MODELS.glob("*/configuration_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and _fields(node) & COUNTS:
                name = _model_type(node)
                if name:
                    found[name] = node.name
    return found


def _fields(node: ast.ClassDef) -> set[str]:
    annotated = {
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    mapped = {
        key.value
        for item in node.body
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Dict)
        for key in item.value.keys
        if isinstance(key, ast.Constant)
    }
    return annotated | mapped


def _model_type(node: ast.ClassDef) -> str | None:
    for item in node.body:
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant):
            names = {target.id for target in item.targets if isinstance(target, ast.Name)}
            if "model_type" in names:
                return str(item.value.value)
    return None


def test_every_config_with_experts_is_known() -> None:
    found = set(configs_with_experts())
    assert len(found) > 60
    assert found - set(MODEL_TYPES) - set(REFUSED) - SECTIONS == set()
    assert not set(MODEL_TYPES) & set(REFUSED)


@pytest.mark.parametrize("model_type", sorted(set(configs_with_experts()) & set(MODEL_TYPES)))
def test_the_count_of_experts_is_in_the_field_we_read(model_type: str) -> None:
    """The fields of a saved config, by their default values or with a number put in."""
    config: Any = CONFIG_MAPPING[model_type]()
    fields = config.to_dict()
    names = MODEL_TYPES[model_type].count
    if config_integer(fields, names) is None:
        config = CONFIG_MAPPING[model_type](**{names.split("|")[0]: 5})
        assert config_integer(config.to_dict(), names) == 5


def test_models_with_such_a_part_are_read_by_its_name() -> None:
    """The outer config of a known text config is known too, or names its part's type itself."""
    inner = {cls: name for name, cls in configs_with_experts().items() if name in MODEL_TYPES}
    missing = []
    for path in sorted(MODELS.glob("*/configuration_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            name = _model_type(node) if isinstance(node, ast.ClassDef) else None
            if name is None or name in MODEL_TYPES or name in REFUSED:
                continue
            parts = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & set(inner)
            if parts - {node.name} and "text_config" not in ast.dump(node):
                missing.append(name)
    assert missing == []
