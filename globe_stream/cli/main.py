"""The command line: parse, validate, call one library function, print."""

import json
import sys

import click

from globe_stream import __version__
from globe_stream.cli import checkpoint, results, runs
from globe_stream.cli.resuming import INTERRUPTED, after_interruption
from globe_stream.commands.wording import worded
from globe_stream.engine.distributed import processes, speaks
from globe_stream.engine.signals import prompt_interrupts
from globe_stream.errors import GlobeError, InputError
from globe_stream.io.system_errors import error_of

_SHARED = ("seed", "train")
"""Commands that several processes carry out together."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="globe-stream")
def cli() -> None:
    """Compress Mixture-of-Experts language models out of core.

    One bank of basis matrices shared by all experts, sparse non-negative codes and a small
    adapter per expert, learned within a memory budget from safetensors shards.
    """


for command in (*checkpoint.COMMANDS, *runs.COMMANDS, *results.COMMANDS):
    cli.add_command(command)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1, 2 or 130.

    An error is one line on standard error, and with --json one document on standard output too.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with prompt_interrupts():
            _require_one_process(given)
            code = cli.main(given, prog_name="globe-stream", standalone_mode=False)
    except click.ClickException as error:
        return _failed(given, _usage(error), error.exit_code, error)
    except GlobeError as error:
        return _failed(given, worded(error.message), error.exit_code, error)
    except OSError as error:
        explained = error_of(error)
        if explained is None:
            raise
        return _failed(given, worded(explained.message), explained.exit_code, error)
    except (KeyboardInterrupt, click.Abort) as error:
        return _failed(given, f"interrupted; {after_interruption(given)}", INTERRUPTED, error)
    return code if isinstance(code, int) else 0


def _require_one_process(arguments: list[str]) -> None:
    """Raise InputError for a command that several processes cannot share."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    if processes() > 1 and command in cli.commands and command not in _SHARED:
        raise InputError(
            f"{command}: works in one process. Give it without torchrun, "
            f"which is for {' and '.join(_SHARED)}"
        )


def _failed(arguments: list[str], message: str, code: int, error: BaseException) -> int:
    """Print the error as the command line `arguments` asks for, and return its exit code.

    Of several processes, the first that failed prints.
    """
    if not speaks(error):
        return code
    print(f"globe-stream: {message}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"format": 1, "error": {"exit_code": code, "message": message}}))
    return code


def _usage(error: click.ClickException) -> str:
    """What is wrong with the command line, in one line that ends with where help is."""
    reason = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return reason if context is None else f"{reason}. See {context.command_path} --help"
