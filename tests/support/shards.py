"""Drivers of shards without Ray: their actor works in the driver's own process."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.declaration.shards import Shard
from pipeline.driver import certify as certify_module
from pipeline.driver.certify import certify_run
from pipeline.driver.declare import prepare_together
from pipeline.locations import location
from pipeline.workers.pools import Pool
from pipeline.workers.ray_pool import Metrics
from pipeline.workers.rows import rows_of
from tests.support.small_runs import small_config


def here(rows: list[dict], actor: Any, settings: Any, **_: object) -> Iterator[dict]:
    """What `ray_pool.map_over_actors` does, by one actor."""
    if not rows:
        return
    batch = {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}
    for columns in actor(settings)(batch):
        yield from rows_of(columns)


def without_ray(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(certify_module, "connect_ray", lambda *_, **__: Pool("cpu", 0, 1, fewest=1, most=1))
    patch.setattr(certify_module, "map_over_actors", here)
    patch.setattr(Metrics, "add", lambda *_, **__: None)


def work(model: Path, folder: Path, shard: str, *assignments: str) -> Any:
    """One driver's run of `ndc certify --shard`; its report, if it makes one."""
    config = small_config(model, "tracking=none", *assignments)
    run = prepare_together(config, location(folder), say=print)
    return certify_run(run, say=print, shard=Shard.parse(shard))[0]


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patched:
        without_ray(patched)
        work(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
