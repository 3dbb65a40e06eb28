"""Draws by a table: looking up a number's first bits finds what a search of the thresholds finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndc_core.noise.draw_tables import DrawTable
from ndc_core.noise.shared_path import discrete_gaussian_table
from ndc_core.noise.smoothing import rounded_gaussian_table

WORDS = st.integers(0, 2**64 - 1)
TABLES = {
    "far below a level": rounded_gaussian_table(1e-4),
    "a level": rounded_gaussian_table(1 / 255),
    "a quarter": rounded_gaussian_table(0.25),
    "wide": rounded_gaussian_table(2.0),
    "an increment": discrete_gaussian_table(0.125, 0.25),
    "thresholds in one prefix": DrawTable(np.array([2**48 + 1, 2**48 + 2, 2**48 + 2, 2**49 - 1], np.uint64)),
}


def searched(table: DrawTable, uniform: np.ndarray) -> np.ndarray:
    return np.searchsorted(table.thresholds, uniform, side="right") - len(table) // 2


@pytest.mark.parametrize("name", TABLES)
def test_every_threshold_and_its_neighbours_are_looked_up_as_they_are_searched(name: str) -> None:
    table = TABLES[name]
    edges = {(int(threshold) + step) % 2**64 for threshold in table.thresholds for step in (-1, 0, 1)}
    prefixes = {(prefix << 48) + step for prefix in range(1, 2**16, 7) for step in (-1, 0)}
    uniform = np.array(sorted(edges | prefixes | {0, 2**64 - 1}), np.uint64)
    np.testing.assert_array_equal(table.look_up(uniform), searched(table, uniform))


@given(st.sampled_from(sorted(TABLES)), st.lists(WORDS, min_size=1))
def test_any_numbers_are_looked_up_as_they_are_searched(name: str, words: list[int]) -> None:
    uniform = np.array(words, np.uint64)
    np.testing.assert_array_equal(TABLES[name].look_up(uniform), searched(TABLES[name], uniform))


def test_a_draw_reads_the_generator_as_its_law_says() -> None:
    """One word of 64 bits for each number, in their order: what has been drawn stays what it was."""
    table, shape = rounded_gaussian_table(0.25), (3, 4, 5)
    words = np.random.Generator(np.random.Philox(key=7)).integers(0, 2**64, size=shape, dtype=np.uint64)
    drawn = table.draw(np.random.Generator(np.random.Philox(key=7)), shape)
    np.testing.assert_array_equal(drawn, searched(table, words.ravel()).reshape(shape))
    assert drawn.dtype == np.int64
