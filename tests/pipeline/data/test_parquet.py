"""Tables of images in Parquet files."""

import io
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from pipeline.data import parquet
from pipeline.data.formats import open_source
from pipeline.data.source import DataError
from tests.support.stored_images import (
    COUNT,
    ENCODED,
    EXPECTED,
    RNG,
    SHUFFLED,
    Observed,
    notes_of,
    observed,
    parquet_of,
    put,
    write_parquet,
)


def one_parquet(here: UPath, rows: list[int], **options) -> UPath:
    return put(here / uuid.uuid4().hex / "all.parquet", parquet_of(rows, **options))


def three_parquets(here: UPath, rows: list[int], **options) -> UPath:
    folder = here / uuid.uuid4().hex
    for number in range(3):
        put(folder / f"{number}.parquet", parquet_of(rows[number::3], group=2, **options))
    return folder


@pytest.mark.parametrize("options", [{}, {"paths": False}, {"plain": True}])
def test_resharded_parquet_is_the_same_set(here: UPath, options: dict[str, bool]) -> None:
    whole = observed(one_parquet(here, list(range(COUNT)), **options))
    assert sorted(whole) == sorted(observed(three_parquets(here, SHUFFLED, **options)))
    assert sorted((label, pixels) for _, label, pixels in whole) == EXPECTED


def test_copies_of_an_image_without_paths_have_ids_that_survive_resharding(here: UPath) -> None:
    rows = [0, 1, 0, 2, 0, 1]
    whole = observed(one_parquet(here, rows, paths=False))
    ids = [image_id for image_id, _, _ in whole]
    assert [len(image_id) for image_id in ids[:2]] == [20, 20]
    assert (ids[2], ids[4], ids[5]) == (f"{ids[0]}-1", f"{ids[0]}-2", f"{ids[1]}-1")
    assert sorted(whole) == sorted(observed(three_parquets(here, rows[::-1], paths=False)))


def test_an_image_that_occurs_with_two_labels_keeps_its_ids_in_either_order(here: UPath) -> None:
    def both_orders() -> Iterator[Observed]:
        for first, second in ((1, 2), (2, 1)):
            folder = here / uuid.uuid4().hex
            put(folder / "0.parquet", parquet_of([0], paths=False, labels=[first]))
            put(folder / "1.parquet", parquet_of([0], paths=False, labels=[second]))
            yield observed(folder)

    one_order, other_order = both_orders()
    assert sorted(one_order) == sorted(other_order)
    assert len({image_id for image_id, _, _ in one_order}) == 2


def test_rows_without_a_path_do_not_change_the_ids_of_others(here: UPath) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [{"bytes": ENCODED[0], "path": "a.png"}, {"bytes": ENCODED[1], "path": None}]
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": [0, 1]}), stream)
    first, second = observed(put(here / "some.parquet", stream.getvalue()))
    assert first[0] == "a.png"
    assert second[0] == observed(one_parquet(here, [1], paths=False, labels=[0, 1]))[0][0]


def test_a_pattern_names_the_shards_to_read(root: UPath) -> None:
    hub = write_parquet(root)
    put(hub / "validation-00000-of-00001.parquet", parquet_of([3]))
    with pytest.raises(DataError, match=r"leaves open which files are the test split .*test\*"):
        observed(hub)
    assert [image_id for image_id, _, _ in observed(hub / "validation-*.parquet")] == ["03.png"]
    assert len(observed(hub / "test-*.parquet")) == COUNT
    with pytest.raises(DataError, match=r"holds no file \*.parquet"):
        observed(hub / "other-*.parquet")


def test_a_file_that_names_no_split_beside_others_that_do_is_not_passed_over(here: UPath) -> None:
    put(write_parquet(here) / "extra.parquet", parquet_of([3]))
    with pytest.raises(DataError, match="leaves open which files are the test split"):
        observed(here / "hub")


def test_system_files_beside_shards_are_no_shards(root: UPath) -> None:
    hub = write_parquet(root)
    before = observed(hub)
    for name in ("_SUCCESS", ".part-0.crc", "_x.parquet", "._test-00000-of-00002.parquet", ".test.parquet"):
        put(hub / name, b"no Parquet")
    put(hub / "_delta_log" / "0.json", b"{}")
    put(hub / "test-00002-of-00002.parquet.part", b"")
    for location in (hub, hub / "*test*.parquet"):
        assert sorted(observed(location)) == sorted(before)
    assert "passed over as no images: 7 (" in notes_of(hub)
    assert "1 *.part" in notes_of(hub)
    assert "1 _delta_log/" in notes_of(hub)
    assert "a Delta table: all its Parquet files are read" in notes_of(hub)


def basenames(here: UPath, *shards: list[tuple[int, int, str]]) -> UPath:
    """A folder of Parquet files, of rows of (image, label, path)."""
    folder = here / uuid.uuid4().hex
    for number, rows in enumerate(shards):
        images = [{"bytes": ENCODED[image], "path": path} for image, _, path in rows]
        stream = io.BytesIO()
        pq.write_table(pa.table({"image": images, "label": [label for _, label, _ in rows]}), stream, row_group_size=2)
        put(folder / f"{number}.parquet", stream.getvalue())
    return folder


def test_paths_that_repeat_in_parquet_become_ids_that_do_not(here: UPath) -> None:
    rows = [(0, 0, "0.png"), (1, 0, "1.png"), (2, 1, "0.png"), (3, 1, "3.png"), (4, 2, "0.png")]
    location = basenames(here, rows)
    whole = observed(location)
    ids = [image_id for image_id, _, _ in whole]
    assert (ids[1], ids[3]) == ("1.png", "3.png")  # unique ones are what they were
    assert len(set(ids)) == len(ids)
    assert all(len(image_id) == len("0.png-") + 20 and image_id.startswith("0.png-") for image_id in ids[::2])
    assert sorted(observed(basenames(here, rows[3:], rows[2::-1]))) == sorted(whole)
    first = next(open_source(location, format=None, split="test").entries())
    assert first.image_id == ids[0]  # also in a pass that does not reach the others
    note = "images that share their path with others (such as 0.png): 3; their ids are the path and a digest of label"
    assert notes_of(location).startswith(note)
    assert notes_of(basenames(here, rows[:2])) == ""


def test_a_path_in_parquet_that_is_no_utf_8_is_an_error_of_its_file(here: UPath) -> None:
    location = basenames(here, [(0, 0, "caf\xe9.png")])
    path = Path(location.path, "0.parquet")
    path.write_bytes(path.read_bytes().replace("\xe9".encode(), b"\xe9\xe9"))
    with pytest.raises(DataError, match=r"0.parquet cannot be read \(.*restore it"):
        observed(location)


def test_true_copies_are_each_taken_and_counted(here: UPath) -> None:
    rows = [(0, 0, "0.png"), (1, 0, "0.png"), (0, 0, "0.png"), (0, 1, "0.png"), (0, 0, "0.png")]
    whole = observed(basenames(here, rows))
    ids = [image_id for image_id, _, _ in whole]
    assert (ids[2], ids[4]) == (f"{ids[0]}-1", f"{ids[0]}-2")
    assert len(set(ids)) == 5
    assert sorted(observed(basenames(here, rows[3:], rows[:3]))) == sorted(whole)
    assert "copies, with content, label and path of an image before: 2; each is taken" in notes_of(
        basenames(here, rows)
    )


def test_listing_parquet_with_paths_leaves_the_pixels_alone(here: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = [RNG.bytes(100_000) for _ in range(50)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": content, "path": str(row)} for row, content in enumerate(noise)], kind)
    table = pa.table({"image": images, "label": [0] * 50})
    pq.write_table(table, (here / "big.parquet").path, row_group_size=25, data_page_size=1000, write_batch_size=1)
    fetched = []

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            content = super().read(size)
            fetched.append(len(content))
            return content

    def opened(fs: object, path: str, mode: str, *, cache_type: str) -> Counting:
        assert cache_type == "none", "a cache would read ahead, over the pixels"
        return Counting(path)

    monkeypatch.setattr(type(here.fs), "open", opened)  # each thread has a file system of its own
    entries = open_source(here / "big.parquet", format=None, split="test").entries()
    assert [next(entries).image_id for _ in range(20)] == [str(row) for row in range(20)]
    # The footer is fetched with the 64 KiB before it: when it is opened, to see which paths repeat, and for the pass.
    assert 0 < sum(fetched) < 260_000
    assert next(entries).read() == noise[20]
    assert max(fetched) < 1_100_000 < sum(fetched)


def test_a_row_group_of_any_length_is_read_in_pieces(here: UPath) -> None:
    images = pa.array([{"bytes": RNG.bytes(20_000)} for _ in range(2000)], pa.struct({"bytes": pa.binary()}))
    path = here / "one-group.parquet"
    table = pa.table({"image": images, "label": [0] * 2000})
    pq.write_table(table, path.path, data_page_size=2**17, write_batch_size=8)
    del images, table
    before = pa.total_allocated_bytes()
    most = 0
    for entry in open_source(path, format=None, split="test").entries():
        assert len(entry.read()) == 20_000
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 15e6


def parquet_file(here: UPath, table: dict[str, object]) -> UPath:
    stream = io.BytesIO()
    pq.write_table(pa.table(table), stream)
    return put(here / "a.parquet", stream.getvalue())


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"image": ENCODED[:1], "img": ENCODED[:1], "label": [1]}, "has the columns image, img, label; exactly one"),
        ({"image": ENCODED[:1], "label": [1], "fine_label": [1]}, "columns image, label, fine_label; exactly one"),
        ({"photo": ENCODED[:1], "label": [1]}, "exactly one must be called image or img or bytes"),
        ({"image": ENCODED[:1], "class": [1]}, "exactly one must be called label"),
        ({"image": ["a.png"], "label": [1]}, "column image is string; it must be bytes"),
        ({"image": [{"path": "a"}], "label": [1]}, "must be bytes, or a struct with the field bytes"),
        ({"image": [{"path": "a", "bytes": b"a"}], "label": [-1]}, "image a has the label -1"),
        ({"image": [{"path": "a", "bytes": b"a"}], "label": [None]}, "image a has the label None"),
        ({"image": [{"path": "a", "bytes": b"a"}], "label": ["cat"]}, "image a has the label 'cat'"),
        ({"image": pa.array([None], pa.binary()), "label": [1]}, "has a row without image bytes"),
    ],
)
def test_a_table_without_images_or_labels_names_its_columns(here: UPath, table: dict[str, object], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        observed(parquet_file(here, table))


def test_class_names_are_left_out_where_the_metadata_are_of_another_kind() -> None:
    for metadata in (None, {b"huggingface": b"no json"}, {b"huggingface": b'{"info": {"features": {"label": 3}}}'}):
        assert parquet.class_names(pa.schema([("label", pa.int64())], metadata=metadata), "label") is None
