"""The command `ndc`. Commands are thin: parse, call, print. Heavy imports wait for the command that needs them."""

import json
import math
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.help_commands import doctor, presets
from pipeline.cli.model_commands import convert, diagnose, distill, train, tune
from pipeline.cli.options import PATH_OR_URI, chosen_run, run_options
from pipeline.near_names import did_you_mean

if TYPE_CHECKING:
    from upath import UPath

EXIT_INTERRUPTED = 130
EXIT_CODES = {
    0: "done",
    1: "an error, printed in one line; or units failed, differences or broken certificates, each named",
    2: "the command line could not be read",
    EXIT_INTERRUPTED: "stopped by Ctrl-C or SIGTERM; the same command goes on",
}


class Commands(click.Group):
    """Turns the errors a user can cause into one line and an exit code."""

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        try:
            return super().resolve_command(context, arguments)
        except click.UsageError as error:
            near = did_you_mean(arguments[0], self.list_commands(context))
            raise click.UsageError(error.message.rstrip(".") + near, context) from error

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (click.exceptions.Exit, click.Abort):  # click's own errors, which are RuntimeErrors
            raise
        except KeyboardInterrupt:
            _say("\nstopped")
            sys.exit(EXIT_INTERRUPTED)
        except (ValueError, OSError, RuntimeError) as error:
            if context.params.get("traceback"):
                raise
            raise click.ClickException(str(error)) from error


@click.group(
    cls=Commands,
    epilog="\b\nExit codes:\n" + "\n".join(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items()),
)
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
@click.version_option(package_name="ndc")
def main(traceback: bool) -> None:
    """By how much may an image change before a diffusion model's class for it can change? Proved, not guessed."""


for command in (train, distill, tune, convert, diagnose, presets, doctor):
    main.add_command(command)


@main.command()
@run_options
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs to use, or actors where they hold none [default: all].")
@click.option("--price-per-hour", type=click.FloatRange(min=0, min_open=True), help="Of a GPU, or of an actor.")
@click.option(
    "--evaluations-per-second",
    type=click.FloatRange(min=0, min_open=True),
    help="Of one actor: take this rate instead of measuring.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def plan(
    gpus: int | None,
    price_per_hour: float | None,
    evaluations_per_second: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say what a run will cost, from some votes on the device that it would use; compute and write nothing else.

    Takes what `ndc certify` takes, and checks what it needs: run folder, tracking server, model and data. For runs that
    stop early, the expected cost, and a range that holds nine times in ten.
    """
    from pipeline.driver.plan import plan_lines, plan_run

    planned = plan_run(
        *chosen_run(**options),
        gpus=gpus,
        price_per_hour=price_per_hour,
        evaluations_per_second=evaluations_per_second,
        say=_say,
    )
    click.echo(json.dumps(planned.as_json(), indent=2) if as_json else "\n".join(plan_lines(planned)))


@main.command()
@run_options
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan, as `ndc plan`; compute nothing.")
@click.option("--retry-failed", is_flag=True, help="Compute nothing but the units that failed.")
@click.option("--force", is_flag=True, help="Take the run from another driver that works on it.")
@click.option("--shard", metavar="I/N", help="Only the I-th of N shares of the images, beside drivers of the others.")
@click.option(
    "--budget-hours",
    type=click.FloatRange(min=0, min_open=True),
    help="Take images in an order drawn from the seed, begin none after this time, and report a sample.",
)
def certify(
    dry_run: bool, retry_failed: bool, force: bool, shard: str | None, budget_hours: float | None, **options: Any
) -> None:
    """Certify images, going on where a run in the same folder stopped.

    The argument is a preset, a TOML file, or the folder of a run that was started before. Left out, it is the preset
    that goes with --certificate. A run takes more images and more noise levels, and keeps what it has drawn.
    """
    from pipeline.workers.ray_address import check_ray

    check_ray()  # ahead of imports that take seconds
    from pipeline.declaration.shards import WHOLE, Shard
    from pipeline.driver.certify import certify_run, how_to_go_on
    from pipeline.driver.declare import prepare_together
    from pipeline.driver.plan import plan_lines, plan_run
    from pipeline.driver.prepare import prepare
    from pipeline.driver.services import check_services

    share = Shard.parse(shard) if shard else WHOLE
    config, folder = chosen_run(**options)
    if budget_hours:
        if not share.is_whole or retry_failed:
            raise click.UsageError("--budget-hours is for a whole run: leave out --shard and --retry-failed.")
        config = config.model_copy(update={"order": "random"})
    if dry_run:
        click.echo("\n".join(plan_lines(plan_run(config, folder, say=_say))))
        return
    try:
        check_services([config])
        run = (prepare if share.is_whole else prepare_together)(config, folder, say=_say)
        for line in run.remarks:
            _say(line)
        cost = run.votes * run.most_evaluations_per_vote
        _say(
            f"{len(run.records):,} images, {run.at_most}{len(run.units):,} units, {run.at_most}{run.votes:,} votes, "
            f"at most {cost:,} evaluations, in {folder}"
        )
        if not share.is_whole:
            _say(f"shard {share}: {sum(share.has(record.image_id) for record in run.records):,} of the images")
        report, tracker = certify_run(
            run,
            say=_say,
            shard=share,
            force=force,
            retry_failed=retry_failed,
            budget_seconds=3600 * budget_hours if budget_hours else math.inf,
        )
    except KeyboardInterrupt:
        _say(f"\nstopped{how_to_go_on(folder, share)}")
        sys.exit(EXIT_INTERRUPTED)
    if report is None:
        return
    _print_report(report)
    if tracker:
        click.echo(f"MLflow: {tracker.link}")
        if tracker.how_to_open:
            click.echo(f"        (served by `{tracker.how_to_open}`)")


def _say(line: str) -> None:
    with suppress(OSError, UnicodeError):  # the terminal may be gone, or the file that it is redirected to full
        click.echo(line, err=True)


@main.command()
@click.argument("source", metavar="SWEEP_OR_TOML")
@click.option("--out", type=PATH_OR_URI, help="Folder of the sweep, here or s3://... [default: runs/<its name>].")
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Override a key in all runs: votes.estimation=99."
)
@click.option("--dry-run", is_flag=True, help="Check everything and print what is to be drawn; compute no votes.")
def sweep(source: str, out: "UPath | None", assignments: tuple[str, ...], dry_run: bool) -> None:
    """Certify runs around one base, a key varied at a time or named methods, and plot them beside each other.

    Each is an ordinary run folder below --out. Votes that several have in common are drawn once. The same command goes
    on where it stopped.
    """
    from pipeline.cli.terminal_tables import print_table
    from pipeline.locations import location
    from pipeline.sweep.file import load_sweep
    from pipeline.sweep.run import plan_sweep, run_sweep

    declared = load_sweep(source, assignments)
    folder = out or location("runs") / declared.name
    if dry_run:
        print_table(plan_sweep(declared, folder, say=_say))
        return
    try:
        written = run_sweep(declared, folder, say=_say)
    except KeyboardInterrupt:
        _say("\nstopped; what was published, if anything was, is kept. Run the same command to go on.")
        sys.exit(EXIT_INTERRUPTED)
    for paragraph in written.lead:
        _say(paragraph)
    for table in [*written.tables, *(written.comparison.tables if written.comparison else ())]:
        print_table(table)
    click.echo(f"Sweep: {written.page}")


@main.command()
@click.argument("folder", metavar="RUN", type=PATH_OR_URI)
@click.option("--redraw", type=click.IntRange(min=0), default=0, help="Also draw N random units again from the model.")
def verify(folder: "UPath", redraw: int) -> None:
    """Recompute all that a finished run states from its evidence, and name every difference."""
    from pipeline.driver.verify import verify_run

    verify_run(folder, redraw=redraw, say=click.echo)
    click.echo(f"{folder} is what it states")


@main.command()
@click.argument("folder", metavar="RUN", type=PATH_OR_URI)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="At most this many times the run's evaluations, on as many images as that allows.",
)
@click.option(
    "--method",
    type=click.Choice(["pgd", "apgd"]),
    default="pgd",
    show_default=True,
    help="Gradient ascent with steps that shrink, or with adaptive ones and two losses.",
)
@click.option(
    "--from", "source", type=PATH_OR_URI, help="Attack through the gradient of this image classifier instead."
)
@click.option("--restarts", type=click.IntRange(min=1), default=4, show_default=True, help="Attacks on each radius.")
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Gradient steps of an attack.")
@click.option("--draws", type=click.IntRange(min=1), default=4, show_default=True, help="Noise draws of a gradient.")
@click.option("--votes", type=click.IntRange(min=1), default=64, show_default=True, help="Votes that judge an attack.")
def attack(folder: "UPath", limit: int | None, budget: float, source: "UPath | None", **settings: Any) -> None:
    """Try to break a finished run's certificates; measure the accuracy that attacks beyond them leave."""
    from pipeline.driver.attack import attack_run
    from pipeline.workers.attack_settings import AttackSettings

    chosen = AttackSettings(source=str(source or ""), **settings)
    try:
        report, _ = attack_run(folder, chosen, limit=limit, budget=budget, say=click.echo)
    except KeyboardInterrupt:
        _say("\nstopped; images that are finished, if any are, are kept. Run the same command to go on.")
        sys.exit(EXIT_INTERRUPTED)
    _print_report(report)


@main.command()
@click.argument("folder", metavar="RUN", type=PATH_OR_URI)
@click.option("--alpha", type=float, help="Another failure probability than the run's; the votes stay as they are.")
@click.option("--radii", help="Radii of the table, as 0,0.25,0.5 [default: the run's].")
@click.option("--out", type=PATH_OR_URI, help="Where to write [default: RUN, or RUN/alpha-<alpha>].")
@click.option("--partial", is_flag=True, help="Of the images that are complete so far [default --out: RUN/partial].")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser, where there is one.")
@click.option("--mlflow-link", is_flag=True, help="Only print the link that opens on the experiment's MLflow charts.")
def report(
    folder: "UPath",
    alpha: float | None,
    radii: str | None,
    out: "UPath | None",
    partial: bool,
    as_json: bool,
    opened: bool,
    mlflow_link: bool,
) -> None:
    """Derive certificates, tables and pictures again from a run's evidence. Needs no model."""
    from pipeline.declaration.toml_files import load_config
    from pipeline.report.mlflow_tracker import link_of_run
    from pipeline.report.report import reduce_and_report, summary_json
    from pipeline.store.run_store import RunStore

    if mlflow_link:
        if as_json or alpha is not None or radii or out or partial or opened:
            raise click.UsageError("--mlflow-link goes with no other option: it prints a link, and derives nothing.")
        link, how_to_open = link_of_run(folder)
        click.echo(link)
        if how_to_open:
            _say(f"served by `{how_to_open}`")
        return
    store = RunStore(folder)
    store.manifest()
    overrides = [f"certificate.alpha={alpha}"] if alpha is not None else []
    overrides += [f"certificate.radii=[{radii}]"] if radii else []
    config = load_config(str(folder / "run.toml"), overrides)
    if not out:
        out = folder / "partial" if partial else folder
        out = out if alpha is None else out / f"alpha-{alpha:g}"
    written = reduce_and_report(store, alpha=alpha, radii=config.certificate.radii, folder=out, partial=partial)
    if as_json:
        click.echo(json.dumps(summary_json(written.summary), indent=2))
    else:
        _print_report(written)
    if opened:
        _open_in_browser(written.page)


@main.command()
@click.argument("sources", metavar="RUN...", nargs=-1, required=True, type=PATH_OR_URI)
@click.option("-o", "--out", type=PATH_OR_URI, required=True, help="Folder of the merged run, here or s3://...")
def merge(sources: "tuple[UPath, ...]", out: "UPath") -> None:
    """Merge several runs that have the same declaration, except for the images, into one.

    The runs stay as they are. Where they share images, their votes must be the same. Needs the data, and no model.
    """
    from pipeline.driver.merge import merge_runs

    if report := merge_runs(sources, out, say=_say):
        _print_report(report)


@main.command()
@click.argument("sources", metavar="RUN...", nargs=-1, required=True)
@click.option("--radii", help="Radii of the table, as 0.25,0.5 [default: all that the runs declared].")
@click.option("--alpha", type=float, help="One failure probability for all runs; their votes stay as they are.")
@click.option("--intersect", is_flag=True, help="Compare on the images that all share.")
@click.option("--out", type=PATH_OR_URI, default="runs/compare", show_default=True, help="Where to write.")
def compare(sources: tuple[str, ...], radii: str | None, alpha: float | None, intersect: bool, out: "UPath") -> None:
    """Put methods beside each other: certified accuracy, average radius, and the cost to certify and to classify.

    RUN is a run's folder or URI, or a log of another tool (TSV with idx, label, predict, radius, correct, and
    optionally time). Give a method's name as NAME=RUN, a log's noise level as NAME@SIGMA=LOG; logs of one NAME are one
    method. Needs no model.
    """
    from pipeline.cli.terminal_tables import print_table
    from pipeline.compare.compare import compare as compare_methods
    from pipeline.compare.compare import radii_of

    chosen = radii_of(radii) if radii else None
    written = compare_methods(sources, alpha=alpha, radii=chosen, intersect=intersect, out=out)
    for remark in written.comparison.remarks:
        _say(remark)
    for table in written.tables:
        print_table(table)
    click.echo(f"Comparison: {written.page}")


@main.command()
@click.argument("folder", metavar="RUN", type=PATH_OR_URI)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--watch", is_flag=True, help="Go on until the run is complete.")
@click.option("--every", type=click.FloatRange(min=0.1), default=10, show_default=True, help="Seconds between updates.")
def status(folder: "UPath", as_json: bool, watch: bool, every: float) -> None:
    """Say how far a run is: units, votes, evaluations per second, time left, driver, failed units.

    It reads only the run's folder, so it works on any machine that sees that folder.
    """
    from pipeline.cli.live_status import print_status, watch_status
    from pipeline.driver.status import status_of

    if not watch:
        print_status(status_of(folder), as_json=as_json)
        return
    with suppress(KeyboardInterrupt):  # users stop watching when they have seen enough
        watch_status(lambda: status_of(folder), every_seconds=every, as_json=as_json)


def _open_in_browser(page: "UPath") -> None:
    import webbrowser

    from pipeline.locations import is_local

    if is_local(page):  # for a page in an object store a browser would ask for a login
        with suppress(webbrowser.Error, OSError):
            webbrowser.open(Path(str(page)).absolute().as_uri())


def _print_report(written: Any) -> None:
    from pipeline.cli.terminal_tables import print_table
    from pipeline.report.report import accuracy_table

    caption = f"Certified accuracy (alpha = {written.summary.alpha:g}, L2, pixels in [0, 1])"
    print_table(replace(accuracy_table(written.summary), caption=caption))
    for warning in written.summary.warnings:
        _say(warning)
    click.echo(f"Report: {written.page}")
