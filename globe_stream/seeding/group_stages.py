"""What the stages of a group's seeding find and leave: records, arrays, spilled proxies, passes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from globe_stream.checkpoint.dealing import deal
from globe_stream.config import SeedConfig
from globe_stream.engine.context import Context
from globe_stream.engine.stream import Pass, finished
from globe_stream.errors import GlobeError
from globe_stream.factorization.groups import ExpertGroup
from globe_stream.factorization.normalization import Normalization
from globe_stream.factorization.records import global_error
from globe_stream.memory.cost_model import StagePlan, tile_rows
from globe_stream.seeding.methods import proxies_for
from globe_stream.seeding.proxy_tiles import ProxyTiles
from globe_stream.seeding.records import STAGES, StageRecord, StatisticsRecord
from globe_stream.store import arrays
from globe_stream.store.run import Run
from globe_stream.store.tiles import Tiles

Stage = TypeVar("Stage", bound=StageRecord)


@dataclass(frozen=True)
class GroupStages:
    """One group with its options and plans, and what its stages have recorded in the run."""

    context: Context
    group: ExpertGroup
    config: SeedConfig
    plans: dict[str, StagePlan]

    def done(self, stage: str, kind: type[Stage]) -> Stage | None:
        """What `stage`, whose record is a `kind`, recorded when it was carried out, or None."""
        return self.context.run.state(self.state_key(stage), kind)

    def require(self, stage: str, kind: type[Stage]) -> Stage:
        """As `done`, of a stage that must have been carried out."""
        record = self.done(stage, kind)
        if record is None:
            raise GlobeError(f"{self.context.run.path}: {self.stage_name(stage)} is not done")
        return record

    def state_key(self, stage: str) -> str:
        """The key of the run's state under which `stage` records what it did."""
        return f"{self.group.key}:{stage}"

    def stage_name(self, stage: str) -> str:
        """What the memory meter and the metrics call `stage`."""
        return f"{self.group.key}/seed/{stage}"

    @property
    def kind(self) -> str:
        """The kind of proxies that the method works on."""
        return proxies_for(self.config.method, self.config.proxies)

    def proxy_tiles(self) -> ProxyTiles:
        """The spilled proxies of this process, made or opened, among those of all."""
        sizes, world = self.group.sizes, self.context.world
        shares = deal(self.group.experts, world.size)
        own = Tiles(
            (len(shares[world.rank]), sizes.rank, sizes.d),
            tile_rows(sizes),
            dtype=self.group.proxy_dtype,
            device=self.context.device,
            path=proxies_file(self.context.run, self.group.key),
        )
        return ProxyTiles(own, shares, world)

    def bank(self, plan: StagePlan) -> Tiles:
        """The committed bank, loaded into memory or, as `plan` says, into a spill file."""
        sizes, path = self.group.sizes, None
        if plan.batch_plan.spill:
            path = self.context.run.spill(f"{flat(self.group.key)}-bank")
        bank = Tiles(
            (sizes.bases, sizes.rank, sizes.d),
            tile_rows(sizes),
            device=self.context.device,
            path=path,
        )
        arrays.read_into(self.context.run.array(f"{self.group.key}/bank"), bank)
        return bank

    def normalization(self) -> Normalization:
        """How the weights are normalized; `statistics` must be done."""
        record = self.require("statistics", StatisticsRecord)
        return Normalization(record.mean, record.scale)

    def task(self, stage: str, rows: list[int] | None = None) -> Pass:
        """A pass of `stage` over all experts, of some `rows` or of all."""
        return Pass(
            self.group.key, stage, self.group.experts, self.plans[stage].batch_plan.batch, rows
        )

    def commit(
        self,
        stage: str,
        record: StageRecord,
        put: dict[str, arrays.Storable],
        task: Pass | None = None,
    ) -> None:
        """Record what `stage` did and put the arrays that it made, ending the pass `task`."""
        states, drop = finished(task) if task else ({}, [])
        self.context.run.commit(
            {self.state_key(stage): record, **states},
            {f"{self.group.key}/{name}": source for name, source in put.items()},
            drop=drop,
        )

    def log(self, stage: str) -> None:
        """Write the metrics of a finished stage."""
        record = self.require(stage, STAGES[stage])
        title = f"{self.group.key} {'dictionary' if stage == 'atoms' else stage}"
        values = {
            **record.metrics(),
            **self.context.computed(title, record.cost.seconds),
            **self.context.memory_values(self.stage_name(stage)),
        }
        if stage == "baseline":
            values["recon/global_relative_frobenius_error"] = global_error(self.context.run)
        self.context.metrics.log(f"seed/{stage}", self.group.key, values)

    def tensor(self, name: str) -> torch.Tensor:
        """An array of the group."""
        return torch.from_numpy(arrays.read(self.context.run.array(f"{self.group.key}/{name}")))


def proxies_file(run: Run, key: str) -> Path:
    """Where the proxies of the group `key` are spilled until its atoms are made."""
    return run.spill(f"{flat(key)}-proxies")


def flat(key: str) -> str:
    """The key of a group as part of a file's name."""
    return key.replace("/", "-")
