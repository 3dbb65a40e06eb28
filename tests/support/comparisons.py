"""Runs and a log to be compared, and their comparison."""

from pathlib import Path

from pipeline.compare.compare import compare
from pipeline.locations import location

# Right twice with all 40 votes, an abstention, and the last image wrong.
WINS = {0.125: [40, 40, 20, 40], 0.25: [40, 20, 20, 40]}
SOME = {0.25: [40, 40, 40, 40]}
LOG = [(0, 1, 1, 0.31), (1, 1, 1, 0.05), (2, 1, -1, 0.0), (3, 2, 0, 0.7)]


def compared(*arguments: object, out: Path, **options: object):
    given = {"alpha": None, "radii": None, "intersect": False} | options
    return compare([str(argument) for argument in arguments], out=location(out), **given)
