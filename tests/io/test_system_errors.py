"""What the system refuses is one line and exit code 2; a programmer's mistake stays a traceback."""

import errno
import os
import resource
import sys

import pytest
import support

from globe_stream.cli import main
from globe_stream.commands import status
from globe_stream.errors import InputError
from globe_stream.io.system_errors import explained


def _limited(arguments, log):
    """The command line where no file may be larger than 6 kB."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
    sys.exit(main.run(arguments))


def one_line(told):
    assert told.code == 2
    assert told.out == ""
    assert len(told.err.splitlines()) == 1, told.err
    return told.err


@pytest.mark.parametrize(("number", "reason"), [
    (errno.ENOSPC, "the disk is full"), (errno.EFBIG, "a limit on the size of files was reached"),
    (errno.EDQUOT, "the disk quota is used up"), (errno.EACCES, "permission denied"),
    (errno.EPERM, "operation not permitted"), (errno.EROFS, "the file system is read-only"),
    (errno.ENOENT, "no such file or folder"), (errno.ENOTDIR, "a part of the path is no folder"),
    (errno.EISDIR, "is a folder"), (errno.EEXIST, "exists already"),
    (errno.ENAMETOOLONG, "the path is too long"), (errno.EMFILE, "too many files are open"),
])  # fmt: skip
def test_what_the_user_can_mend(tell, monkeypatch, tmp_path, number, reason):
    def failing(_):
        raise OSError(number, "Some Reason", str(tmp_path / "there"))

    monkeypatch.setattr(status, "status", failing)
    said = one_line(tell("status", tmp_path))
    assert f"globe-stream: {tmp_path / 'there'}: {reason}. " in said
    assert said.rstrip()[-1] != "."


def test_a_fault_of_the_disk_is_no_mistake_of_the_user(tell, monkeypatch, tmp_path):
    def failing(_):
        raise OSError(errno.EIO, "Input/output error", str(tmp_path / "there"))

    monkeypatch.setattr(status, "status", failing)
    told = tell("status", tmp_path)
    assert told.code == 1
    assert f"globe-stream: {tmp_path / 'there'}: input/output error. " in told.err


def test_the_path_and_the_deed_are_named_where_the_error_does_not(tmp_path):
    with (
        pytest.raises(InputError, match=f"{tmp_path}: the disk is full while writing x. Make"),
        explained(tmp_path, "writing x"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_are_not_hidden(tell, monkeypatch, tmp_path):
    def failing(_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(status, "status", failing)
    with pytest.raises(OSError, match="Bad file descriptor"):
        tell("status", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["seed", "synth"])
def test_a_limit_on_file_sizes(tmp_path, checkpoint, command):
    arguments = {
        "seed": ["seed", str(checkpoint), "--run", str(tmp_path / "run")],
        "synth": ["synth", "--out", str(tmp_path / "model"), "--layers", "1"],
    }
    log = tmp_path.parent / f"{tmp_path.name}.log"
    code = support.outcome(_limited, arguments[command], log)
    said = log.read_text()
    assert code == 2, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"globe-stream: {tmp_path}")
    assert "limit" in said.splitlines()[-1]


def test_a_path_below_a_file(tmp_path, tell, checkpoint):
    (tmp_path / "file").write_text("mine")
    said = one_line(tell("seed", checkpoint, "--run", tmp_path / "file" / "run"))
    assert str(tmp_path / "file") in said
