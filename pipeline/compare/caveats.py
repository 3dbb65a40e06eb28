"""What must be known to read a comparison: said above its tables, and on the terminal."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from pipeline.compare.inputs import LogInput, RunInput, Seen
from pipeline.compare.method_tables import MethodAtLevel
from pipeline.report.chance import chance_warning

Named = Sequence[tuple[str, RunInput | LogInput]]  # by the method's name


def caveats(
    named: Named,
    entries: Sequence[MethodAtLevel],
    images: Sequence[tuple[str, Mapping[str, Seen]]],
    *,
    shared: int,
    alpha: float | None,
) -> tuple[str, ...]:
    runs = [(name, opened) for name, opened in named if isinstance(opened, RunInput)]
    logs = [(name, opened) for name, opened in named if isinstance(opened, LogInput)]
    return (
        *_on_images(images, shared),
        *_on_alpha(runs, alpha),
        *_on_sampling(runs),
        *_on_logs(logs, alone=not runs),
        *_on_chance(runs, entries),
        *_on_scopes(entries),
        *_on_devices(entries),
    )


def _on_images(images: Sequence[tuple[str, Mapping[str, Seen]]], shared: int) -> Iterator[str]:
    yield f"Compared on {shared:,} images."
    if larger := [f"{name} has {len(seen):,}" for name, seen in images if len(seen) > shared]:
        yield (
            f"These are the images that all share; {', '.join(larger)}. Accuracy under attack is known for all "
            "images of a run together, so it is left out where some of the images are left out."
        )


def _on_alpha(runs: Sequence[tuple[str, RunInput]], alpha: float | None) -> Iterator[str]:
    if not runs:
        return
    declared = runs[0][1].declaration.alpha
    yield f"Each certificate of a run is wrong with a probability of at most {declared if alpha is None else alpha:g}."
    changed = [
        f"{name} with {run.declaration.alpha:g}" for name, run in runs if alpha not in (None, run.declaration.alpha)
    ]
    if changed:
        yield (
            f"Declared with another alpha than this one: {', '.join(changed)}. That is sound if this one was chosen "
            "without a look at the results."
        )
    for name, run in runs:
        if run.declaration.maximum_over_sigmas:
            yield f"{name} shares this among its noise levels, for the row with each image's largest radius."


def _on_sampling(runs: Sequence[tuple[str, RunInput]]) -> Iterator[str]:
    stopped = defaultdict(list)
    for name, run in runs:
        if radii := run.declaration.radii:
            stopped[tuple(radii)].append(name)
    for radii, names in stopped.items():
        natural = "" if 0.0 in radii else " natural accuracy,"
        its = "its" if len(names) == 1 else "their"
        yield (
            f"{', '.join(names)} stopped drawing votes of an image when {its} declared radii "
            f"({', '.join(f'{radius:g}' for radius in radii)}) were decided. {its.capitalize()}{natural} average "
            "radius and curve between them are lower than more votes would make them."
        )


def _on_logs(logs: Sequence[tuple[str, LogInput]], *, alone: bool) -> Iterator[str]:
    if logs:
        names = ", ".join(dict.fromkeys(name for name, _ in logs))
        yield f"A log does not say its alpha, evaluations or device: those of {names} are unknown."
    if rounded := ", ".join(dict.fromkeys(name for name, log in logs if not log.log.own)):
        yield f"Radii of {rounded} are as its log prints them; published logs give three digits, and may round up."
    if logs and alone:
        yield "No run is there to name the images: logs are taken to be about the same ones where idx and label agree."
    if untimed := ", ".join(dict.fromkeys(name for name, log in logs if not log.log.timed)):
        yield f"The log of {untimed} does not tell the time of each image: its seconds are unknown."
    for _, log in logs:
        if log.log.remark:
            yield f"Warning: {log.log.remark}."


def _on_chance(runs: Sequence[tuple[str, RunInput]], entries: Sequence[MethodAtLevel]) -> Iterator[str]:
    """About images that a method names a class for; a log does not say how many classes there are."""
    for name, run in runs:
        guesses = {
            entry.level: [
                (outcome.label, outcome.predicted)
                for outcome in entry.outcomes.values()
                if outcome.predicted is not None
            ]
            for entry in entries
            if entry.method == name
        }
        if warning := chance_warning(guesses, classes=run.num_classes):
            yield f"{name}: {warning}"


def _on_scopes(entries: Sequence[MethodAtLevel]) -> Iterator[str]:
    """Only if runs differ."""
    scopes = {entry.method: entry.scope for entry in entries if entry.scope}
    if len(set(scopes.values())) > 1:
        listed = "; ".join(f"{method}: {scope}" for method, scope in scopes.items())
        yield f"Radii do not cover the same adversarial images: {listed}."


def _on_devices(entries: Sequence[MethodAtLevel]) -> Iterator[str]:
    devices = {entry.method: ", ".join(entry.devices) or "unknown" for entry in entries}
    if len(set(devices.values())) > 1:
        listed = "; ".join(f"{method}: {device}" for method, device in devices.items())
        yield f"Warning: seconds are of different or unknown devices, and do not compare ({listed})."
    elif entries[0].devices:
        yield f"Seconds are those of actors at work, all on {devices[entries[0].method]}."
