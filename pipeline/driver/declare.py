"""Writes what a run is into its folder, before its first draw or when it grows; one of several drivers does it."""

import time

from upath import UPath

from pipeline.declaration.config import RunConfig
from pipeline.driver.prepare import PreparedRun, in_folder, prepare
from pipeline.side_channel import Say
from pipeline.store.lease import DECLARATION, LeaseError, described, held, holder_of, lease_path
from pipeline.store.run_store import RunStore

SECONDS_BETWEEN_LOOKS = 2.0


def declare_or_grow(run: PreparedRun) -> PreparedRun:
    """Writes into the run's folder what the run is, as far as it is not there; only for a driver that holds the run.

    Raises:
        DeclarationChangedError: another driver has declared another run there since `prepare`.
        ChangedImageError: the data changed since then.
    """
    store, run = RunStore(run.folder), in_folder(run)  # another driver may have been here since `prepare`
    if not store.is_declared():
        write, present = store.declare, set[str]()
    elif run.growth:
        write, present = store.grow, {record.image_id for record in store.records()}
    else:
        return run
    write(run.manifest(), config_toml=run.config.to_toml(), records=run.records, examples=run.examples(without=present))
    return run


def prepare_together(config: RunConfig, folder: UPath, *, say: Say) -> PreparedRun:
    """As `prepare`, for one of several drivers that may start at once: the first declares the run, or lets it grow, and
    the others wait, and take the sizes that it measured.

    Raises:
        LeaseError: the run would grow while drivers are at work on it.
        ValueError: as `prepare`.
    """
    waiting = ""
    while True:
        if RunStore(folder).is_declared():
            run = prepare(config, folder, say=say)
            if not run.growth:
                return run
        try:
            with held(folder, force=False, say=say, name=DECLARATION):
                return declare_or_grow(prepare(config, folder, say=say))
        except LeaseError:
            declaring = holder_of(lease_path(folder, DECLARATION))
            if declaring is None and RunStore(folder).is_declared() and prepare(config, folder, say=say).growth:
                raise
        if declaring and not waiting:
            waiting = described(declaring)
            say(f"waiting for {waiting}")
        time.sleep(SECONDS_BETWEEN_LOOKS)
