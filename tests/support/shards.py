"""Drivers of shards without Ray: their actor works in the driver's own process."""

import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.declaration.shards import Shard
from pipeline.driver.certify import certify_run
from pipeline.driver.declare import prepare_together
from pipeline.locations import location
from tests.support.in_process import replace_ray
from tests.support.small_runs import small_config


def work(model: Path, folder: Path, shard: str, *assignments: str) -> Any:
    """One driver's run of `ndc certify --shard`; its report, if it makes one."""
    config = small_config(model, "tracking=none", *assignments)
    run = prepare_together(config, location(folder), say=print)
    return certify_run(run, say=print, shard=Shard.parse(shard))[0]


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patched:
        replace_ray(patched)
        work(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
