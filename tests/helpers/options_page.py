"""docs/options.md from the command line itself.

`python tests/helpers/options_page.py` writes the page; `tests/test_documents.py` compares it.
"""

import re
from pathlib import Path
from typing import Any

import click

from globe_stream.cli.main import cli

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
FULL = ("seed", "train")
"""Commands whose options other commands share: listed once, here first."""
HEAD = """# Options

Made from the command line by `python tests/helpers/options_page.py`; a test keeps it true.
`globe-stream COMMAND --help` prints the same. In recipes and `config.toml` an option is the key of
the same name with underscores, in the table `[selection]`, `[seed]`, `[train]` or `[runtime]`
(`globe_stream/config` has a model for each).
"""


def options_page() -> str:
    """The page as it should be."""
    commands = dict(cli.commands)
    order = [*(name for name in FULL if name in commands), *sorted(set(commands) - set(FULL))]
    shared = {_key(o): name for name in reversed(FULL) for o in _options(commands[name])}
    return HEAD + "".join(_section(name, commands[name], shared) for name in order)


def _section(name: str, command: click.Command, shared: dict[tuple[str, ...], str]) -> str:
    arguments = [a.human_readable_name for a in command.params if isinstance(a, click.Argument)]
    title = " ".join(["globe-stream", name, *arguments])
    text = f"\n## {name}\n\n`{title}`: {_plain(command.get_short_help_str(500))}\n"
    options = _options(command)
    own = options if name in FULL else [o for o in options if _key(o) not in shared]
    if own:
        text += "\n| option | default | |\n|---|---|---|\n" + "".join(map(_row, own))
    for other in FULL if name not in FULL else ():
        flags = [o.opts[0] for o in options if shared.get(_key(o)) == other]
        if flags:
            text += f"\nAs in [{other}](#{other}): {', '.join(f'`{flag}`' for flag in flags)}.\n"
    return text


def _options(command: click.Command) -> list[click.Option]:
    found = [o for o in command.params if isinstance(o, click.Option) and not o.hidden]
    return [o for o in found if o.opts[0] != "--json"]


def _key(option: click.Option) -> tuple[str, ...]:
    return (option.opts[0], option.help or "", _default(option))


def _row(option: click.Option) -> str:
    cells = (f"`{option.opts[0]}{_value(option)}`", _default(option), _plain(option.help or ""))
    return f"| {' | '.join(cells)} |\n"


def _value(option: click.Option) -> str:
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return " " + "\\|".join(map(str, option.type.choices))
    named = {"integer": "N", "integer range": "N", "float": "X", "float range": "X"}
    kind = option.metavar or named.get(option.type.name, option.type.name.upper())
    return " " + kind.replace("|", "\\|")


def _default(option: click.Option) -> str:
    value: Any = option.default
    if option.required:
        return "required"
    if option.is_flag or not isinstance(value, str | int | float):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


if __name__ == "__main__":
    PAGE.write_text(options_page())
