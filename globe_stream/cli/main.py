"""The command line: parse, validate, call one library function, print."""

import sys

import click

from globe_stream import __version__
from globe_stream.cli import checkpoint, results, runs
from globe_stream.cli.resuming import after_interruption
from globe_stream.commands.wording import worded
from globe_stream.errors import GlobeError
from globe_stream.io.system_errors import error_of

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="globe-stream")
def cli() -> None:
    """Compress Mixture-of-Experts language models out of core.

    One bank of basis matrices shared by all experts, sparse non-negative codes and a small
    adapter per expert, learned within a memory budget from safetensors shards.
    """


for command in (*checkpoint.COMMANDS, *runs.COMMANDS, *results.COMMANDS):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with 0, 1, 2 or 130."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        cli.main(arguments, prog_name="globe-stream", standalone_mode=False)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as error:
        print(f"globe-stream: {_usage(error)}", file=sys.stderr)
        return error.exit_code
    except GlobeError as error:
        print(f"globe-stream: {worded(error.message)}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        return _refused_by_the_system(error)
    except (KeyboardInterrupt, click.Abort):
        said = after_interruption(sys.argv[1:] if arguments is None else arguments)
        print(f"globe-stream: interrupted; {said}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _usage(error: click.ClickException) -> str:
    """What is wrong with the command line, in one line that ends with where help is."""
    said = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return said if context is None else f"{said}. See {context.command_path} --help"


def _refused_by_the_system(error: OSError) -> int:
    """Tell what the user can mend and return the exit code; re-raise anything else."""
    told = error_of(error)
    if told is None:
        raise error
    print(f"globe-stream: {worded(told.message)}", file=sys.stderr)
    return told.exit_code
