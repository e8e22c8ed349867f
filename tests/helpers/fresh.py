"""Scripts in processes of their own, with torch and transformers imported and nothing of ours.

Importing those takes far longer than such a script: one process imports them and does nothing else,
and every script runs in a fork of it.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Ended:
    """How a script ended and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Fresh:
    """Runs scripts, each with `sys.argv[1:]` as given."""

    requests: IO[str]
    answers: IO[str]
    folder: Path

    def run(self, script: str, *arguments: object) -> Ended:
        """What `script` does in a process of its own."""
        files = [self.folder / name for name in ("out", "err")]
        request = [script, [str(argument) for argument in arguments], [str(file) for file in files]]
        print(json.dumps(request), file=self.requests, flush=True)
        answer = self.answers.readline()
        assert answer, "the process that forks has ended"
        return Ended(int(answer), *(file.read_text() for file in files))


@contextmanager
def fresh_processes() -> Iterator[Fresh]:
    """Scripts may be run inside the block; code of models is kept for its length."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": f"{folder}/code"}
        command = [sys.executable, __file__]
        with subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            yield Fresh(server.stdin, server.stdout, Path(folder))
            server.stdin.close()


def _serve() -> None:
    import transformers.models.qwen2_moe.modeling_qwen2_moe  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _carry_out(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _carry_out(script: str, arguments: list[str], outputs: list[str]) -> None:
    """Run a script as `python -c` does; ends the process."""
    for target, path in enumerate([os.devnull, *outputs]):
        flags = os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags), target)
    sys.argv = ["-c", *arguments]
    code = 0
    try:
        exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path[0] = ""  # not the folder of this file, as `python -c` has it
    _serve()
