"""Bits per byte of the models that the runs of a sweep make, each scored once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from globe_stream.commands.scoring import Scoring, compare_models
from globe_stream.commands.sweep.grid import digest
from globe_stream.engine.progress import step_bar
from globe_stream.engine.status import run_status
from globe_stream.evaluation.text import read_text
from globe_stream.factorization.records import run_header
from globe_stream.io import files
from globe_stream.io.records import Record
from globe_stream.store.run import Run

ORIGINAL, SVD = "original", "svd"


@dataclass(frozen=True)
class ScoreRecord(Record):
    """A score, and what it is of: one hash of the text and of the state of the run."""

    of: str
    bits_per_byte: float


@dataclass(frozen=True)
class Scores:
    """Scores on the text at `text`, kept in `folder`; at most `memory` bytes are used."""

    folder: Path
    text: Path
    memory: int
    silent: bool

    def original(self, run: Path) -> float:
        """Of the model that `run` was made from."""
        return self._score(run, ORIGINAL, ORIGINAL)

    def of_runs(self, runs: Sequence[Path]) -> dict[Path, float]:
        """Of the models that `runs` make, written out densely for it."""
        return {run: self._score(run, "dense", run.name) for run in runs}

    def of_svd(self, runs: Sequence[Path]) -> dict[Path, float]:
        """Of the experts' truncated SVDs with as many parameters as the banks of `runs`."""
        return {run: self._score(run, SVD, f"{SVD}-{_ranks(run)}") for run in runs}

    def _score(self, run: Path, model: str, name: str) -> float:
        path, key = self.folder / f"{name}.json", self._key(run, model)
        if path.exists():
            known = ScoreRecord.from_json(json.loads(path.read_text("utf-8")), str(path))
            if known.of == key:
                return known.bits_per_byte
        with step_bar(f"scoring {name}", unit="steps", silent=self.silent) as progress:
            scoring = Scoring(self.text, (model,))
            (row,) = compare_models([run], scoring, memory=self.memory, progress=progress).rows
        files.make_folder(self.folder)
        record = ScoreRecord(key, row.score.bits_per_byte)
        files.write_text(path, json.dumps(record.to_json()))
        return record.bits_per_byte

    def _key(self, run: Path, model: str) -> str:
        status = run_status(Run(run, writable=False))
        text = hashlib.sha256(read_text(self.text)).hexdigest()
        state: object = [status.fingerprint, status.seconds]
        if model in (ORIGINAL, SVD):
            state = None if model == ORIGINAL else _ranks(run)
        return digest([text, status.config["model"], state])


def _ranks(run: Path) -> str:
    """One word for what the truncated SVDs of equal size of `run` depend on."""
    groups = run_header(Run(run, writable=False)).groups
    return digest([[group.key, group.sizes.svd_rank] for group in groups])
