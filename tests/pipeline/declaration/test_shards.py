"""Which images a driver takes: each image in one shard, stable as shards are added."""

import pytest

from pipeline.declaration.shards import WHOLE, Shard, shard_of

IDS = [f"image-{number}" for number in range(4000)]


@pytest.mark.parametrize("shards", [1, 2, 3, 8, 64])
def test_every_image_is_in_one_shard_and_shards_are_about_equal(shards: int) -> None:
    counts = [sum(Shard(number, shards).has(image_id) for image_id in IDS) for number in range(1, shards + 1)]
    assert sum(counts) == len(IDS)
    expected = len(IDS) / shards
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts)


@pytest.mark.parametrize("shards", [1, 2, 7, 8, 63])
def test_with_one_shard_more_images_stay_or_go_into_the_new_one(shards: int) -> None:
    before, after = ([shard_of(image_id, of) for image_id in IDS] for of in (shards, shards + 1))
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {shards + 1}
    expected = len(IDS) / (shards + 1)
    assert abs(len(moved) - expected) < 5 * expected**0.5


def test_where_an_image_is_depends_on_no_program_version() -> None:
    assert [shard_of(image_id, 8) for image_id in ("digits-0001", "größe", "a/b.png")] == [3, 6, 3]


def test_the_first_of_one_is_the_whole_run() -> None:
    assert all(map(WHOLE.has, IDS))
    assert (WHOLE.is_whole, WHOLE.option, Shard(2, 8).option) == (True, "", " --shard 2/8")


def test_what_is_no_shard_is_refused() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    for text in ("", "2", "2-8", "a/b", "1/", "/8", "-1/8"):
        with pytest.raises(ValueError, match="is no shard: write I/N"):
            Shard.parse(text)
    for text in ("0/8", "9/8", "0/0"):
        with pytest.raises(ValueError, match="shards are numbered from 1"):
            Shard.parse(text)
