"""The tables of docs/layouts.md from the registry and from what the conformance tests run.

`python tests/helpers/layouts_page.py` writes, `tests/checkpoint/test_layouts_page.py` compares.
"""

from collections import defaultdict
from pathlib import Path

from zoo_configs import ARCHITECTURES, IN_MEMORY, NOT_FUSED, SAME_AS

from globe_stream.checkpoint.layouts import ModelType
from globe_stream.checkpoint.model_types import MODEL_TYPES, REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "layouts.md"
BEGIN, END = "<!-- made by tests/helpers/layouts_page.py -->\n", "<!-- end -->"


def table() -> str:
    """One row for every rule and way of being tested, and the types that are refused."""
    rows: dict[tuple[ModelType, str], list[str]] = defaultdict(list)
    for name, rule in MODEL_TYPES.items():
        rows[rule, _tested(name)].append(name)
    lines = ["| model types | kinds | experts | shared experts | tested fused as |",
             "|---|---|---|---|---|"]  # fmt: skip
    for (rule, tested), names in rows.items():
        shared = " or ".join(f"`{module}`" for module in rule.shared_modules)
        lines.append(
            f"| {', '.join(names)} | {', '.join(rule.kinds)} | {_experts(rule)} | {shared} "
            f"| {tested} |"
        )
    lines += ["", "| refused | why |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for name, reason in REFUSED.items()]
    return "\n".join(lines) + "\n"


def _tested(name: str) -> str:
    own = SAME_AS.get(name, name)
    assert own in ARCHITECTURES
    return "" if own in NOT_FUSED else IN_MEMORY.get(own, "C")


def _experts(rule: ModelType) -> str:
    text = " or ".join(f"`{module}`" for module in rule.modules)
    if not rule.gated:
        text += ", no gate"
    return text + "".join(f"; `{name}_*` apart" for name, _ in rule.sections)


def page(text: str) -> str:
    """The page `text` with its tables as they should be."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
