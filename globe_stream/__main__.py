"""The program: `globe-stream`, or `python -m globe_stream`."""

import sys

from globe_stream.cli.resuming import INTERRUPTED, after_interruption
from globe_stream.engine.signals import prompt_interrupts


def main() -> None:
    """Run the command line and exit with 0, 1, 2 or 130, Ctrl-C during the imports included."""
    try:
        with prompt_interrupts():
            from globe_stream.cli.main import run
        sys.exit(run())
    except KeyboardInterrupt:
        print(f"globe-stream: interrupted; {after_interruption(sys.argv[1:])}", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
