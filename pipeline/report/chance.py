"""Whether a run is right more often than by chance, and if not, which class its model takes for which."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from scipy.special import bdtr, bdtrc, gammaln

LEVEL = 0.05  # of the one-sided test that images are right more often than by chance
TOO_FEW = 0.01  # a classifier half-way between chance and always right would do so badly with this probability
LUCK = 0.001  # of an order that is read out of the predictions

Guesses = Sequence[tuple[int, int]]  # label and predicted class of each image


def right_of(guesses: Guesses) -> int:
    return sum(label == predicted for label, predicted in guesses)


def above_chance(guesses: Guesses, classes: int) -> bool:
    """Whether chance alone would be right so often with a probability of at most 5 %."""
    return bool(bdtrc(right_of(guesses) - 1, len(guesses), 1 / classes) <= LEVEL)


def useless(guesses: Guesses, classes: int) -> bool:
    """Not above chance, on so many images that a useful classifier would hardly look like this."""
    useful = (1 + 1 / classes) / 2
    enough = bdtr(right_of(guesses), len(guesses), useful) <= TOO_FEW
    return bool(enough) and not above_chance(guesses, classes)


def taken_for(guesses: Guesses, classes: int) -> dict[int, int]:
    """The class that each label is taken for, no two for the same; empty unless most images follow it, most labels are
    taken for another class, and guesses would hardly follow any such order by luck."""
    counts, images = Counter(guesses), Counter(label for label, _ in guesses)
    matched: dict[int, int] = {}
    free = {predicted for _, predicted in guesses}
    for (label, predicted), count in counts.most_common():
        if predicted in free and count > images[label] / 2:
            matched[label] = predicted
            free.remove(predicted)
    schedule = sum(counts[pair] for pair in matched.items())
    moved = sum(label != predicted for label, predicted in matched.items())
    if 2 * moved <= len(matched) or 2 * schedule <= len(guesses):
        return {}
    log_chance = log_luck(images=len(guesses), schedule=schedule, labels=len(matched), classes=classes)
    return dict(sorted(matched.items())) if log_chance <= math.log(LUCK) else {}


def log_luck(*, images: int, schedule: int, labels: int, classes: int) -> float:
    """Logarithm of a bound on the probability that `schedule` of the images follow some order of the labels if each is
    given a class at random: summed over which images do, and which order."""
    which = gammaln(images + 1) - gammaln(schedule + 1) - gammaln(images - schedule + 1)
    orders = gammaln(classes + 1) - gammaln(classes - labels + 1)
    return float(which + orders - schedule * math.log(classes))


def chance_warning(levels: Mapping[str, Guesses], *, classes: int, names: Sequence[str] | None = None) -> str | None:
    """What to say of a run that is right no more often than by chance at any noise level; None where it is, or where
    too few images tell."""
    if classes < 2 or not levels or not all(useless(guesses, classes) for guesses in levels.values()):
        return None
    level, guesses = max(levels.items(), key=lambda item: right_of(item[1]) / len(item[1]))
    warning = (
        f"Warning: at no noise level are images right more often than by chance: {right_of(guesses):,} of "
        f"{len(guesses):,} at sigma {level}, where guessing is right in {100 / classes:.3g} % (one-sided binomial test "
        f"at {100 * LEVEL:g} %). A likely cause is that labels are not in the model's order: see dataset.classes and "
        "dataset.label_order. Else the model, or so much noise, does not fit the data."
    )
    observed = taken_for(guesses, classes)
    return f"{warning} {observed_order(observed, classes=classes, names=names)}" if observed else warning


def observed_order(observed: Mapping[int, int], *, classes: int, names: Sequence[str] | None, most: int = 20) -> str:
    """Which class is taken for which, and the order of names that would fit, if all are known."""

    def called(label: int) -> str:
        return f"{label} ({names[label]})" if names else f"{label}"

    pairs = [f"{called(label)} -> {predicted}" for label, predicted in observed.items()]
    more = f" and {len(pairs) - most:,} more" if len(pairs) > most else ""
    text = f"Most images of a class are given one other class each, label -> class: {', '.join(pairs[:most])}{more}."
    if names and len(observed) == classes:
        place_of = {predicted: label for label, predicted in observed.items()}
        fitting = [names[place_of[predicted]] for predicted in range(classes)]
        shown = [*fitting[:most], "..."] if classes > most else fitting
        text += f" The names would fit the model in this order, if its makers confirm it: {', '.join(shown)}."
    return text
