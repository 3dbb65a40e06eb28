from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets import Example
from pipeline.locations import LocationError, location
from pipeline.store import run_images
from pipeline.store.run_images import IMAGES_OF_A_SHARD, ChangedImageError, RunImages

COUNT = 2 * IMAGES_OF_A_SHARD + 3
EXAMPLES = [Example(f"image-{i}", np.full((1, 2, 3), i % 251, np.uint8), i % 10) for i in range(COUNT)]
RECORDS = [example.record(index) for index, example in enumerate(EXAMPLES)]


@pytest.fixture
def images(tmp_path: Path) -> RunImages:
    RunImages(location(tmp_path)).write(EXAMPLES, expected=RECORDS)
    return RunImages(location(tmp_path))


def test_images_come_back_in_any_order(images: RunImages) -> None:
    assert images.records() == RECORDS
    for index in (COUNT - 1, 0, IMAGES_OF_A_SHARD, IMAGES_OF_A_SHARD - 1, 7):
        np.testing.assert_array_equal(images.pixels(RECORDS[index]), EXAMPLES[index].image)


def test_images_come_back_whoever_else_reads(images: RunImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that ask for images of other shards do not take each other's."""
    monkeypatch.setattr(run_images, "SHARDS_KEPT", 1)
    monkeypatch.setattr(run_images, "IMAGES_KEPT", 0)
    images = RunImages(images.folder)
    in_turn = [(EXAMPLES[place], RECORDS[place]) for place in (0, IMAGES_OF_A_SHARD) * 200]
    with ThreadPoolExecutor(8) as threads:
        pixels = list(threads.map(lambda pair: images.pixels(pair[1]), in_turn))
    for (example, _), image in zip(in_turn, pixels, strict=True):
        np.testing.assert_array_equal(image, example.image)


def test_an_image_that_an_actor_comes_back_to_is_not_read_again(
    images: RunImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a random order, images that are in work at a time lie in more shards than are kept."""
    reads: list[object] = []
    own = run_images.read
    monkeypatch.setattr(run_images, "read", lambda path: reads.append(path) or own(path))
    monkeypatch.setattr(run_images, "SHARDS_KEPT", 1)
    images = RunImages(images.folder)
    for _ in range(3):
        for place in (0, IMAGES_OF_A_SHARD, 2 * IMAGES_OF_A_SHARD):
            np.testing.assert_array_equal(images.pixels(RECORDS[place]), EXAMPLES[place].image)
    assert len(reads) == 3


def test_another_image_than_the_declared_one_is_refused(images: RunImages) -> None:
    other = EXAMPLES[1].record(0)
    with pytest.raises(
        ChangedImageError, match=r"00000\.parquet: image image-1 is not the one that the run was declar"
    ):
        images.pixels(other)


def test_data_that_change_while_they_are_copied_are_refused(tmp_path: Path) -> None:
    changed = [*EXAMPLES[:-1], Example(EXAMPLES[-1].image_id, EXAMPLES[-1].image + 1, EXAMPLES[-1].label)]
    for examples in (changed, EXAMPLES[:-1], [*EXAMPLES, EXAMPLES[0]]):
        with pytest.raises(ChangedImageError, match="the data changed while they were read"):
            RunImages(location(tmp_path)).write(examples, expected=RECORDS)
        assert not (tmp_path / "images.parquet").exists()


def test_a_damaged_list_of_images_is_named(images: RunImages, tmp_path: Path) -> None:
    path = tmp_path / "images.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(LocationError, match=r"images\.parquet is damaged, or of another version"):
        images.records()
    path.unlink()
    with pytest.raises(LocationError, match=r"images\.parquet is damaged, or of another version"):
        images.records()
