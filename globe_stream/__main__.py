"""The program: `globe-stream`, or `python -m globe_stream`."""

import sys

from globe_stream.cli.resuming import INTERRUPTED, after_interruption
from globe_stream.engine.signals import prompt_interrupts


def main() -> None:
    """Run the command line and exit with 0, 1, 2 or 130, Ctrl-C during the imports included."""
    try:
        with prompt_interrupts():
            from globe_stream.cli.main import run
        code = run()
    except KeyboardInterrupt:
        print(f"globe-stream: interrupted; {after_interruption(sys.argv[1:])}", file=sys.stderr)
        code = INTERRUPTED
    exec("")  # else Python dies of SIGINT if Ctrl-C met code made from text, such as a dataclass
    sys.exit(code)


if __name__ == "__main__":
    main()
