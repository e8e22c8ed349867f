"""Two hundred epochs take no more memory, open files or threads than twenty."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import support
import torch

EPOCHS, SETTLED = 200, 40


def _train(checkpoint: Path, run: Path, out: Path) -> None:
    """Seed and train in this process; after every epoch, its memory, files and threads."""
    torch.set_num_threads(1)
    support.make_quick()
    from globe_stream.cli.main import run as run_command_line
    from globe_stream.training.trainer import Trainer

    rows, process, epoch = [], psutil.Process(), Trainer._epoch

    def counted(self: Trainer, current: Any) -> Any:
        following = epoch(self, current)
        rows.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
        return following

    Trainer._epoch = counted  # type: ignore[method-assign]
    arguments = ["--families", "up", "--dictionary-rounds", "5"]
    assert run_command_line(["seed", str(checkpoint), "--run", str(run), *arguments]) == 0
    options = ["--epochs", str(EPOCHS), "--patience", "0"]
    assert run_command_line(["train", str(run), *options]) == 0
    out.write_text(json.dumps(rows))


@pytest.mark.slow
def test_nothing_grows_over_many_epochs(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    process = support.start(_train, checkpoint, tmp_path / "run", out)
    process.join(600)
    assert process.exitcode == 0
    rows = json.loads(out.read_text())
    assert len(rows) >= EPOCHS
    early, late = rows[SETTLED // 2 : SETTLED], rows[-SETTLED:]
    for number, most in ((1, 0), (2, 0), (0, 8 << 20)):  # files, threads, bytes
        # What another thread holds open for a moment is no growth: that shows in the least, too.
        assert min(row[number] for row in late) <= max(row[number] for row in early) + most
