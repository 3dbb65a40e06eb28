"""What MLflow is told of a run, as plain values: tags to filter by, metrics to compare, a description to read.

Charts of a window 1,440 pixels wide show 24 letters of a metric's name: no name is longer, for levels of four decimals.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pipeline.certificates.reduce import LARGEST, CertifiedImage
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import Declaration
from pipeline.program import command, commit, user
from pipeline.report.provenance import Facts, classes_text
from pipeline.report.report import Summary, accuracy_at
from pipeline.report.tables import escape_markdown, percent

BEST_SIGMA, LEVEL = "best_sigma", "sigma_"
BEST_ROW = "best sigma, chosen on this data"
# MLflow's steps are integers: a curve's step is the radius in thousandths.
STEPS_TO_ONE = 1000
APART, APART_WHERE_TINY = 10, 1
TINY = 0.1
LONGEST_TABLE, LONGEST_DESCRIPTION = 5000, 7900  # MLflow refuses descriptions of more than 8,000 characters
WIDE_SPACE = "&emsp;"  # MLflow draws the columns of a table without a gap

Point = tuple[str, int, float]


def tags_of(config: RunConfig, declaration: Declaration) -> dict[str, str]:
    """What runs are told apart by in MLflow's search: `tags.method = 'epndc'`."""
    tags = {
        "method": declaration.classifier,
        "certificate": declaration.certificate,
        "dataset": config.dataset.name,
        "model": config.model,
        "sigmas": ", ".join(f"{sigma:g}" for sigma in declaration.sigma_pixel),
        "noise": declaration.noise,
        "alpha": f"{declaration.alpha:g}",
        "version": version("ndc"),
    }
    return {**tags, "sweep": config.sweep} if config.sweep else tags


def model_tags(model: Mapping[str, Any], classes: int, class_names: Sequence[str]) -> dict[str, str]:
    """What is known of a run's model and of its classes."""
    kept = {name: f"{model[name]}" for name in ("network", "parameters") if name in model}
    return {**kept, "classes": classes_text(classes, class_names)}


def caller_tags() -> dict[str, str]:
    """Who called which program, under the names by which MLflow's pages show user, source and version."""
    called = command()
    tags = {
        "mlflow.user": user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": " ".join(called.split()[:2]) or "ndc",  # pages show only the end of a path
        "mlflow.source.git.commit": commit().removesuffix("-dirty"),
        "command": called,
    }
    return {name: value for name, value in tags.items() if value}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat


def scalars(summary: Summary) -> dict[str, float]:
    """One number each; a name's part before the slash is its section among MLflow's charts.

    Names hold no method, so that those of different methods share a chart. What every run has comes without a level,
    so that runs of different levels share one too; costs are then those of all levels together.
    """
    values = {f"radius/{radius:g}_{BEST_SIGMA}": share for radius, share in summary.best_accuracy.items()}
    drawn = [level for level in summary.levels if level.name != LARGEST]  # its votes are those of the others
    for cost in ("evaluations", "seconds", "votes"):
        values[f"cost/{cost}"] = sum(getattr(level, f"{cost}_per_image") for level in drawn)
    for level in summary.levels:
        section = metric_name(level.name)
        values[f"{section}/abstained"] = level.abstained / level.images
        values[f"{section}/avg_radius"] = level.average_radius
        values[f"{section}/evaluations"] = level.evaluations_per_image
    return values


def partial_scalars(summary: Summary | None) -> dict[str, float]:
    """What the complete images of a run that is not finished prove; empty as long as there is none."""
    if summary is None:
        return {}
    values: dict[str, float] = {"partial/images": summary.levels[0].images}
    for level in summary.levels:
        name = metric_name(level.name).removeprefix(LEVEL)
        values |= {f"partial/{name}_at_{radius:g}": share for radius, share in level.certified_accuracy.items()}
    return values


def attacked_scalars(summary: Summary) -> dict[str, float]:
    """Accuracy under attack at each radius."""
    names = {True: "attack", False: "estimate"}
    return {
        f"{metric_name(level.name)}/{names[level.attacked.confirmed]}_{radius:g}": share
        for level in summary.levels
        if level.attacked
        for radius, share in level.attacked.accuracy.items()
    }


def metric_name(level: str) -> str:
    return f"{LEVEL}{level}" if level[0].isdigit() else level.split()[0]


def curve_points(levels: Mapping[str, Sequence[CertifiedImage]]) -> list[Point]:
    """Certified accuracy over the radius at each level, and at the best level for each radius (as in the table)."""
    reach = {name: max(item.certificate.radius for item in items) for name, items in levels.items()}
    apart = APART if max(reach.values()) > TINY else APART_WHERE_TINY
    points, best = [], dict[int, float]()
    for name, items in levels.items():
        for step in range(0, int(STEPS_TO_ONE * reach[name]) + 2 * apart, apart):
            share = accuracy_at(items, step / STEPS_TO_ONE)
            points.append((f"curve/{metric_name(name)}", step, share))
            best[step] = max(best.get(step, 0.0), share)
    return points + [(f"curve/{BEST_SIGMA}", step, share) for step, share in best.items()]


def description(summary: Summary | None, folder: str, *, facts: Facts = (), left_out: str = "") -> str:
    """Markdown for the head of the run's page: the result as soon as there is one, with its warnings and where it comes
    from, and the command to go on with."""
    if summary is None:
        return f"Not finished. To go on: `ndc certify {folder}`\n"
    text = f"{result_table(summary)}\n\nFrom the votes again: `ndc report {folder}`\n"
    for paragraph in paragraphs(summary, facts, left_out):
        if len(text) + len(paragraph) < LONGEST_DESCRIPTION:
            text += f"\n{paragraph}\n"
    return text


def paragraphs(summary: Summary, facts: Facts, left_out: str) -> Iterator[str]:
    for warning in summary.warnings:
        yield f"**{escape_markdown(warning)}**"
    if left_out:
        yield f"Too large for the artifacts, and in the run's folder: {escape_markdown(left_out)}"
    for name, text in facts:
        yield f"{name}: {escape_markdown(text)}"


def result_table(summary: Summary) -> str:
    shares = best_of(summary) | {level.name: level.certified_accuracy for level in summary.levels}
    header = ["sigma", *(f"r = {radius:g}" for radius in summary.radii)]
    rows = [header, *([name, *map(percent, row.values())] for name, row in shares.items())]
    first, *others = ("| " + f"{WIDE_SPACE} | ".join(row) + " |" for row in rows)
    table = "\n".join([first, "| --- " * len(header) + "|", *others])
    return table if len(table) <= LONGEST_TABLE else "The table is long: it is `table.md` among the artifacts."


def best_of(summary: Summary) -> dict[str, dict[float, float]]:
    """The row that papers report, if there are levels to choose from."""
    return {"best per radius, chosen on this data": summary.best_accuracy} if len(summary.levels) > 1 else {}


def table_of(summary: Summary) -> dict[str, list[Any]]:
    """Certified accuracies by column, one row per level and radius. MLflow compares runs by the first two columns
    unless told otherwise; what all runs have comes first."""
    levels = {
        level.name if level.name == LARGEST else f"sigma {level.name}": level.certified_accuracy
        for level in summary.levels
    }
    rows = [
        (name, radius, share)
        for name, shares in {BEST_ROW: summary.best_accuracy, **levels}.items()
        for radius, share in shares.items()
    ]
    return {
        "level and radius": [f"{name}, r = {radius:g}" for name, radius, _ in rows],
        "certified accuracy": [share for _, _, share in rows],
        "level": [name for name, _, _ in rows],
        "radius": [radius for _, radius, _ in rows],
    }
