import io
import json
import pickle
import tarfile
import tracemalloc
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from upath import UPath

from pipeline.data import parquet
from pipeline.data.classes import arranged
from pipeline.data.decoding import decode
from pipeline.data.formats import FORMATS, guess_format, open_source
from pipeline.data.source import DataError
from pipeline.locations import LocationError
from pipeline.locations import location as as_location

RNG = np.random.default_rng(0)
COUNT = 12
PIXELS = RNG.integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 1, 2]
NAMES = ("ant", "bee", "cat")


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


ENCODED = [png(pixels) for pixels in PIXELS]
EXPECTED = sorted((label, pixels.tobytes()) for label, pixels in zip(LABELS, PIXELS, strict=True))

Observed = list[tuple[str, int, bytes]]


def observed(location: UPath, format: str | None = None) -> Observed:
    """Ids, labels and pixels in the order of the entries."""
    stored = open_source(location, format=format, split="test")
    entries = arranged(stored, classes=None, label_order=None).entries()
    return [
        (entry.image_id, entry.label, decode(entry.read(), channels=3, size=None, resample=None).tobytes())
        for entry in entries
    ]


def put(path: UPath, content: bytes) -> UPath:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UPath]:
    folder = UPath(tmp_path) if request.param == "local" else UPath(f"memory://{uuid.uuid4().hex}")
    yield folder
    if request.param == "memory" and folder.fs.exists(folder.path):
        folder.fs.rm(folder.path, recursive=True)


@pytest.fixture
def here(tmp_path: Path) -> UPath:
    return UPath(tmp_path)


# One writer a format: the twelve images, below a folder


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy_of(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz_of(save: Callable[..., None] = np.savez, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def write_folder(root: UPath) -> UPath:
    for index, (label, content) in enumerate(zip(LABELS, ENCODED, strict=True)):
        put(root / "images" / NAMES[label] / f"{index}.PNG", content)
    put(root / "images" / "ant" / "notes.txt", b"")
    put(root / "images" / "LICENSE", b"")
    return root / "images"


def parquet_of(
    rows: list[int], *, paths: bool = True, plain: bool = False, labels: list[int] = LABELS, group: int = 5
) -> bytes:
    label = {"feature": {}, "names": NAMES, "_type": "ClassLabel"}
    described = {b"huggingface": json.dumps({"info": {"features": {"label": label}}}).encode()}
    images = [
        ENCODED[row] if plain else {"bytes": ENCODED[row], "path": f"{row:02d}.png" if paths else None} for row in rows
    ]
    kind = pa.binary() if plain else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema([("image", kind), ("label", pa.int64())], metadata=described)
    stream = io.BytesIO()
    table = pa.table({"image": images, "label": [labels[row] for row in rows]}, schema=schema)
    pq.write_table(table, stream, row_group_size=group)
    return stream.getvalue()


def write_parquet(root: UPath) -> UPath:
    put(root / "hub" / "train-00000-of-00001.parquet", parquet_of([0]))
    put(root / "hub" / "test-00000-of-00002.parquet", parquet_of(list(range(7))))
    put(root / "hub" / "test-00001-of-00002.parquet", parquet_of(list(range(7, COUNT))))
    return root / "hub"


def sample(row: int) -> dict[str, bytes]:
    """In either order, with either kind of label."""
    label = (
        {f"s/{row:02d}.cls": b"%d\n" % LABELS[row]}
        if row % 2
        else {f"s/{row:02d}.json": b'{"label": %d}' % LABELS[row]}
    )
    image = {f"s/{row:02d}.png": ENCODED[row]}
    return image | label if row % 3 else label | image


def samples(rows: range | list[int]) -> dict[str, bytes]:
    return {name: content for row in rows for name, content in sample(row).items()}


def write_tars(root: UPath) -> UPath:
    put(root / "shards" / "0.tar", tar_of(samples(range(7))))
    put(root / "shards" / "1.tgz", tar_of(samples(range(7, COUNT)), "w:gz"))
    return root / "shards"


def write_npy(root: UPath) -> UPath:
    put(root / "arrays" / "images.npy", npy_of(PIXELS.transpose(0, 2, 3, 1).copy()))
    put(root / "arrays" / "labels.npy", npy_of(np.array(LABELS)))
    return root / "arrays"


def write_npz(root: UPath) -> UPath:
    return put(root / "set.npz", npz_of(np.savez_compressed, x=PIXELS, y=np.array(LABELS, np.uint8)))


def write_edm(root: UPath) -> UPath:
    files = {f"{row:05d}/img{row:08d}.png": content for row, content in enumerate(ENCODED)}
    labels = [[name, label] for name, label in zip(files, LABELS, strict=True)]
    return put(root / "edm.zip", zip_of({"dataset.json": json.dumps({"labels": labels}).encode()} | files))


def python_2_pickle(value: object) -> bytes:
    """As Python 2 wrote CIFAR: 8-bit strings, and arrays from the modules that NumPy had then."""

    def opcodes(value: object) -> bytes:
        match value:
            case dict():
                return b"}(" + b"".join(opcodes(part) for item in value.items() for part in item) + b"u"
            case list():
                return b"](" + b"".join(map(opcodes, value)) + b"e"
            case str():
                return b"U" + bytes([len(value)]) + value.encode()
            case int():
                return b"M" + value.to_bytes(2, "little")
            case np.ndarray():
                empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
                uint8 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
                shape = b"".join(map(opcodes, value.shape)) + b"\x86"
                content = b"T" + value.nbytes.to_bytes(4, "little") + value.tobytes()
                return empty + b"(K\x01" + shape + uint8 + b"\x89" + content + b"tb"
        raise AssertionError(value)

    return b"\x80\x02" + opcodes(value) + b"."


def python_batch(rows: slice = slice(None)) -> bytes:
    return python_2_pickle({"data": PIXELS.reshape(COUNT, -1)[rows], "labels": LABELS[rows]})


def write_cifar_python(root: UPath) -> UPath:
    files = {
        "test_batch": python_batch(),
        "data_batch_1": python_batch(slice(1)),
        "batches.meta": python_2_pickle({"label_names": list(NAMES)}),
    }
    for name, content in files.items():
        put(root / "cifar" / name, content)
    return root / "cifar"


def write_cifar_100_python(root: UPath) -> UPath:
    batch = {"data": PIXELS.reshape(COUNT, -1), "fine_labels": LABELS, "coarse_labels": [7] * COUNT}
    content, meta = python_2_pickle(batch), python_2_pickle({"fine_label_names": list(NAMES)})
    names = {"cifar-100-python/train": b"", "cifar-100-python/test": content, "cifar-100-python/meta": meta}
    return put(root / "cifar-100-python.tar.gz", tar_of(names, "w:gz"))


def binary_batch(prefix: bytes = b"", rows: slice = slice(None)) -> bytes:
    return b"".join(
        prefix + bytes([label]) + pixels.tobytes() for label, pixels in zip(LABELS[rows], PIXELS[rows], strict=True)
    )


def write_cifar_binary(root: UPath) -> UPath:
    files = {"test_batch.bin": binary_batch(), "batches.meta.txt": "\n".join([*NAMES, ""]).encode()}
    files |= {f"data_batch_{number}.bin": binary_batch(rows=slice(number, number + 1)) for number in range(1, 6)}
    return put(root / "cifar-10-binary.tar.gz", tar_of({f"c/{name}": files[name] for name in sorted(files)}, "w:gz"))


def write_cifar_100_binary(root: UPath) -> UPath:
    files = {"train.bin": b"", "test.bin": binary_batch(b"\x09"), "fine_label_names.txt": "\n".join(NAMES).encode()}
    for name, content in files.items():
        put(root / "cifar" / name, content)
    return root / "cifar"


def write_imagenet(root: UPath) -> UPath:
    devkit = np.array([449, 450, 442])  # of tench, goldfish and great white shark, whose wnids are the first three
    flat = {"data": PIXELS.reshape(COUNT, -1), "labels": devkit[LABELS]}
    put(root / "in32" / "val_data.npz", npz_of(**flat))
    return root / "in32"


WRITERS = {
    write_folder: ("image-folder", NAMES),
    write_parquet: ("parquet", NAMES),
    write_tars: ("webdataset", None),
    write_npy: ("npy", None),
    write_npz: ("npz", None),
    write_edm: ("edm-zip", None),
    write_cifar_python: ("cifar-python", NAMES),
    write_cifar_100_python: ("cifar-python", NAMES),
    write_cifar_binary: ("cifar-binary", NAMES),
    write_cifar_100_binary: ("cifar-binary", NAMES),
    write_imagenet: ("imagenet64-npz", None),
}


@pytest.mark.parametrize("write", WRITERS)
def test_the_same_images_come_through_every_format(write: Callable[[UPath], UPath], root: UPath) -> None:
    location, (format, class_names) = write(root), WRITERS[write]
    assert guess_format(location) == format
    source = open_source(location, format=None, split="test")
    assert (source.format, source.class_names) == (format, class_names)
    first, again = observed(location), observed(location, format)
    assert first == again
    assert sorted((label, pixels) for _, label, pixels in first) == EXPECTED
    assert len({image_id for image_id, _, _ in first}) == COUNT


def test_every_format_is_written_and_read_by_these_tests() -> None:
    assert {format for format, _ in WRITERS.values()} == set(FORMATS)


def test_passes_over_one_source_do_not_disturb_each_other(here: UPath) -> None:
    for write in WRITERS:
        source = open_source(write(here / write.__name__), format=None, split="test")
        one, other = source.entries(), source.entries()
        for entry, same in zip(one, other, strict=True):
            assert entry.image_id == same.image_id
            assert np.array_equal(entry.read(), same.read())  # type: ignore[arg-type]


def test_ids_are_what_the_data_call_their_images(here: UPath) -> None:
    first = {
        write_folder: "ant/1.PNG",
        write_parquet: "00.png",
        write_tars: "s/00",
        write_npy: "images-00000000",
        write_npz: "set-00000000",
        write_edm: "00000/img00000000.png",
        write_cifar_python: "test_batch-00000",
        write_cifar_100_python: "test-00000",
        write_cifar_binary: "test_batch-00000",
        write_cifar_100_binary: "test-00000",
        write_imagenet: "val_data-00000000",
    }
    assert {write: observed(write(here / write.__name__))[0][0] for write in WRITERS} == first


def test_the_split_picks_the_files(here: UPath) -> None:
    def train(location: UPath) -> list[str]:
        return [entry.image_id for entry in open_source(location, format=None, split="train").entries()]

    assert train(write_cifar_binary(here)) == [f"data_batch_{number}-00000" for number in range(1, 6)]
    assert train(write_parquet(here)) == ["00.png"]
    with pytest.raises(DataError, match=r"lacks data_batch_2, data_batch_3, .* of the train split"):
        train(write_cifar_python(here))
    with pytest.raises(DataError, match=r"lacks train_data_batch_1.npz, .* of the train split"):
        train(write_imagenet(here))
    for number in range(1, 11):
        one = {"data": PIXELS[:1].reshape(1, -1), "labels": np.array([1000])}
        put(here / "in32" / f"train_data_batch_{number}.npz", npz_of(**one))
    assert train(here / "in32") == [f"train_data_batch_{number}-00000000" for number in range(1, 11)]


# Sharding


def one_parquet(here: UPath, rows: list[int], **options) -> UPath:
    return put(here / uuid.uuid4().hex / "all.parquet", parquet_of(rows, **options))


def three_parquets(here: UPath, rows: list[int], **options) -> UPath:
    folder = here / uuid.uuid4().hex
    for number in range(3):
        put(folder / f"{number}.parquet", parquet_of(rows[number::3], group=2, **options))
    return folder


SHUFFLED = [7, 3, 11, 0, 5, 1, 10, 2, 8, 6, 4, 9]


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

    one, other = both_orders()
    assert sorted(one) == sorted(other)
    assert len({image_id for image_id, _, _ in one}) == 2


def test_rows_without_a_path_do_not_change_the_ids_of_others(here: UPath) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [{"bytes": ENCODED[0], "path": "a.png"}, {"bytes": ENCODED[1], "path": None}]
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": [0, 1]}), stream)
    first, second = observed(put(here / "some.parquet", stream.getvalue()))
    assert first[0] == "a.png"
    assert second[0] == observed(one_parquet(here, [1], paths=False, labels=[0, 1]))[0][0]


def test_resharded_tars_are_the_same_set(here: UPath) -> None:
    whole = put(here / "all.tar.gz", tar_of(samples(range(COUNT)), "w:gz"))
    for number in range(3):
        put(here / "three" / f"{number}.tar", tar_of(samples(SHUFFLED[number::3])))
    assert sorted(observed(whole)) == sorted(observed(here / "three"))


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


# What is no data


def notes_of(location: UPath, format: str | None = None) -> str:
    """What a whole pass says that it decided."""
    source = open_source(location, format=format, split="test")
    assert list(source.entries())
    return "; ".join(source.notes.lines())


JUNK = (
    ".DS_Store",
    "._ant",
    ".ipynb_checkpoints/0-checkpoint.png",
    "@eaDir/0.png",
    "__MACOSX/ant/._0.png",
    "ant/.ipynb_checkpoints/0-checkpoint.png",
    "ant/@eaDir/1.PNG/SYNOPHOTO_THUMB_S.png",
    "ant/._1.PNG",
    "ant/Thumbs.db",
    "ant/desktop.ini",
    "ant/deep/er/.trash/0.png",
)


def test_what_systems_leave_in_class_folders_is_no_image(root: UPath) -> None:
    folder = write_folder(root)
    before = observed(folder)
    for name in JUNK:
        put(folder / name, ENCODED[0])
    assert observed(folder) == before
    assert open_source(folder, format=None, split="test").class_names == NAMES
    # Of the three leftover folders beside the classes only the names are read. Two files are of the writer.
    note = notes_of(folder)
    assert "passed over as no images: 13 (" in note
    assert "2 ._*, 2 .ipynb_checkpoints/, 2 @eaDir/" in note


def test_what_systems_leave_in_a_zip_is_no_image(root: UPath) -> None:
    before = observed(write_edm(root))
    with zipfile.ZipFile(io.BytesIO((root / "edm.zip").read_bytes())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    junk = dict.fromkeys([*JUNK, "__MACOSX/00000/._img00000000.png", "readme.txt"], ENCODED[0])
    again = put(root / "again" / "edm.zip", zip_of(files | junk))
    assert observed(again) == before
    assert "passed over as no images: 13 (" in notes_of(again)
    assert "1 *.txt" in notes_of(put(root / "b.zip", zip_of(files | {"readme.txt": b""})))


def test_what_systems_leave_in_tars_is_no_sample(root: UPath) -> None:
    before = observed(write_tars(root))
    # macOS's tar writes `._name` before each name, between the parts of a sample too.
    doubled = {
        name: content
        for path, part in samples(range(COUNT)).items()
        for name, content in ((path.replace("s/", "s/._"), b"Mac OS X"), (path, part))
    }
    again = put(root / "again.tar", tar_of({"__MACOSX/s/00.png": b"", "s/@eaDir/00.png/T.png": b""} | doubled))
    assert sorted(observed(again)) == sorted(before)
    assert "passed over as no images: 26 (24 ._*, 1 __MACOSX/, 1 @eaDir/)" in notes_of(again)
    batches = {"cifar-100-python/._test": b"", "cifar-100-python/test": python_batch(), "cifar-100-python/train": b""}
    assert len(observed(put(root / "cifar-100-python.tar", tar_of(batches)))) == COUNT


def test_what_systems_leave_beside_shards_is_no_shard(root: UPath) -> None:
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


def test_an_empty_class_folder_is_named_wherever_it_stands_in_the_order(here: UPath) -> None:
    folder = write_folder(here)
    put(folder / "aardvark" / "Thumbs.db", b"")
    for format in (None, "image-folder"):
        with pytest.raises(DataError, match="images/aardvark holds no image; fill the class folder or remove it"):
            observed(folder, format)


# Ids


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
    assert first.image_id == ids[0]  # also of a pass that does not come to the others
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


def restarting(root: UPath) -> UPath:
    for name, rows in (("a.tar", range(6)), ("b.tgz", range(6, COUNT))):
        files = samples(rows)
        renamed = {f"{int(path[2:4]) % 6:02d}{path[4:]}": content for path, content in files.items()}
        put(root / "restart" / name, tar_of(renamed, "w:gz" if name == "b.tgz" else "w"))
    return root / "restart"


def test_keys_that_restart_in_each_shard_are_told_apart_by_the_shards_names(root: UPath) -> None:
    location = restarting(root)
    whole = observed(location)
    assert [image_id for image_id, _, _ in whole] == [f"{shard}/{key:02d}" for shard in "ab" for key in range(6)]
    assert sorted((label, pixels) for _, label, pixels in whole) == EXPECTED
    assert observed(location / "*.t*", "webdataset") == whole
    first = next(open_source(location, format=None, split="test").entries())
    assert first.image_id == "a/00"  # also of a pass that stays in the first shard
    assert "keys restart in the shards (00 comes again): ids are the shard's name and the key" in notes_of(location)
    assert observed(location / "a.tar")[0][0] == "00"
    assert "restart" not in notes_of(write_tars(root))


def test_only_the_beginning_of_other_shards_is_read_for_ids(here: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    put(here / "shards" / "0.tar", tar_of(samples(range(2))))
    put(here / "shards" / "1.tar", tar_of(samples(range(2, 3)) | {"s/99.bin": RNG.bytes(3_000_000)}))
    fetched = []

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            content = super().read(size)
            fetched.append(len(content) if str(self.name).endswith("1.tar") else 0)
            return content

    def opened(fs: object, path: str, mode: str, **options: str) -> Counting:
        assert path.endswith("0.tar") or options == {"cache_type": "none"}, "a cache would read ahead"
        return Counting(path)

    monkeypatch.setattr(type(here.fs), "open", opened)  # each thread has a file system of its own
    assert next(open_source(here / "shards", format=None, split="test").entries()).image_id == "s/00"
    assert 0 < sum(fetched) < 100_000


def test_shards_in_several_folders_are_told_apart_by_their_folders(root: UPath) -> None:
    for name, row in (("cat", 0), ("dog", 1)):
        put(root / "by-class" / name / "0.tar", tar_of({"000.png": ENCODED[row], "000.cls": b"%d" % row}))
    assert [image_id for image_id, _, _ in observed(root / "by-class" / "*" / "*.tar", "webdataset")] == [
        "cat/0/000",
        "dog/0/000",
    ]


def test_a_zip_that_says_something_twice_is_refused(here: UPath) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("dataset.json", json.dumps({"labels": [["a.png", 1]]}))
        archive.writestr("a.png", ENCODED[0])
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", ENCODED[1])
    with pytest.raises(DataError, match=r"a.zip holds a.png twice"):
        observed(put(here / "a.zip", stream.getvalue()))
    labels = json.dumps({"labels": [["a.png", 1], ["a.png", 2]]}).encode()
    with pytest.raises(DataError, match=r"dataset.json gives a.png two labels, 1 and 2"):
        observed(put(here / "b.zip", zip_of({"dataset.json": labels, "a.png": ENCODED[0]})))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_name_that_is_no_utf_8_has_an_id_that_is(here: UPath, kind: str) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    if kind == "tar":
        location = put(here / "a.tar", tar_of({f"{name}/0.png": ENCODED[0], f"{name}/0.cls": b"0"}))
    else:
        location = put(here / "set" / name / "0.png", ENCODED[0]).parent.parent
    [(image_id, label, pixels)] = observed(location)
    assert (image_id.removesuffix(".png"), label, pixels) == (r"caf\xe9/0", 0, PIXELS[0].tobytes())
    assert pa.array([image_id]).to_pylist() == [image_id]
    assert r"not UTF-8" in notes_of(location)
    names = open_source(location, format=None, split="test").class_names
    assert names == (None if kind == "tar" else (r"caf\xe9",))


def test_an_image_with_a_name_that_is_no_utf_8_is_named_where_it_is_at_fault(here: UPath) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    put(write_folder(here) / name, ENCODED[0])
    with pytest.raises(DataError, match=r"caf\\xe9\.png lies outside of the class folders"):
        observed(here / "images")
    with pytest.raises(LocationError, match=r"images/caf\\xe9\.png is no UTF-8, .*; rename it"):
        as_location(f"{here}/images/{name}")


def test_a_byte_order_mark_does_not_change_what_is_read(here: UPath) -> None:
    bom = b"\xef\xbb\xbf"
    marked = {
        name: bom + content if name.endswith(("cls", "json")) else content
        for name, content in samples(range(COUNT)).items()
    }
    assert observed(put(here / "a.tar", tar_of(marked))) == observed(put(here / "b.tar", tar_of(samples(range(COUNT)))))
    before = observed(write_edm(here))
    with zipfile.ZipFile(io.BytesIO((here / "edm.zip").read_bytes())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert observed(put(here / "m.zip", zip_of(files | {"dataset.json": bom + files["dataset.json"]}))) == before
    folder = write_cifar_100_binary(here)
    put(folder / "fine_label_names.txt", bom + b"ant\r\nbee\r\ncat\r\n")
    assert open_source(folder, format=None, split="test").class_names == NAMES


# What is taken for what


def test_a_folder_with_cifar_in_it_says_where(root: UPath) -> None:
    archive = {"cifar-10-batches-py/test_batch": python_batch()}
    put(root / "data" / "cifar-10-python.tar.gz", tar_of(archive, "w:gz"))
    with pytest.raises(DataError, match=r"holds CIFAR in cifar-10-python.tar.gz; point at it, such as .*data/cifar-10"):
        observed(root / "data")
    put(root / "data" / "cifar-10-batches-py" / "test_batch", python_batch())
    with pytest.raises(DataError, match=r"in cifar-10-batches-py, cifar-10-python.tar.gz; point at one of them"):
        observed(root / "data")
    assert len(observed(root / "data" / "cifar-10-python.tar.gz")) == COUNT
    renamed = put(root / "c.tar.gz", tar_of(archive, "w:gz"))
    with pytest.raises(DataError, match=r"holds CIFAR's batches \(cifar-10-batches-py/test_batch\)"):
        observed(renamed)
    with pytest.raises(DataError, match="is none of image-folder"):
        observed(put(root / "cifar-10-matlab.tar.gz", tar_of({"a.mat": b""}, "w:gz")))


def test_arrays_beside_their_labels_are_told_apart_by_name(root: UPath) -> None:
    """As CIFAR-10-C has them: a file for each corruption, and labels.npy."""
    folder = root / "cifar-c"
    put(folder / "gaussian_noise.npy", npy_of(PIXELS.transpose(0, 2, 3, 1).copy()))
    put(folder / "labels.npy", npy_of(np.array(LABELS)))
    for format in (None, "npy"):
        only = observed(folder, format)
        assert only[0][0] == "gaussian_noise-00000000"
        assert sorted((label, pixels) for _, label, pixels in only) == EXPECTED
    put(folder / "fog.npy", npy_of(PIXELS))
    for format in (None, "npy"):
        with pytest.raises(
            DataError, match=r"one .npy of images \(uint8\).* several: fog.npy, gaussian_noise.npy. Point .*c/fog.npy"
        ):
            observed(folder, format)
    assert observed(folder / "gaussian_noise.npy") == only
    put(folder / "images.npy", npy_of(PIXELS))
    assert observed(folder)[0][0] == "images-00000000"
    with pytest.raises(DataError, match=r"beside labels.npy; there are none"):
        observed(put(root / "empty" / "labels.npy", npy_of(np.array(LABELS))).parent, "npy")


# Memory, and what is left unread


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


def peak_of(location: UPath) -> tuple[int, int]:
    """Entries of a pass that reads each, and the most memory that it held."""
    source = open_source(location, format=None, split="test")
    tracemalloc.start()
    try:
        count = sum(1 for entry in source.entries() if len(entry.read()))
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_not_loaded_whole(here: UPath, save: Callable[..., None]) -> None:
    images, labels = np.zeros((4000, 64, 64, 3), np.uint8), np.zeros(4000, np.int64)
    assert images.nbytes > 49e6
    count, peak = peak_of(put(here / "a.npz", npz_of(save, images=images, labels=labels)))
    assert count == 4000
    assert peak < 5e6


def test_a_folder_of_arrays_is_not_loaded_whole(here: UPath) -> None:
    put(here / "images.npy", npy_of(np.zeros((2000, 64, 64, 3), np.uint8)))
    put(here / "labels.npy", npy_of(np.zeros(2000, np.int64)))
    count, peak = peak_of(here)
    assert count == 2000
    assert peak < 5e6


def test_a_long_tar_is_not_held_in_memory(here: UPath) -> None:
    files = {
        f"{row:05d}.{kind}": content for row in range(3000) for kind, content in (("png", bytes(2000)), ("cls", b"1"))
    }
    count, peak = peak_of(put(here / "long.tar", tar_of(files)))
    assert count == 3000
    assert peak < 2e6


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


# Bad input


def test_a_malicious_pickle_is_refused_and_does_not_run(here: UPath) -> None:
    marker = here / "it-ran"

    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (Path(marker.path),)

    for name in ("test_batch", "batches.meta"):
        folder = here / name
        put(folder / "test_batch", python_batch())
        put(folder / name, pickle.dumps({b"data": Malicious(), b"labels": []}))
        with pytest.raises(DataError, match=f"{name} is refused"):
            observed(folder, "cifar-python")
        assert not marker.exists()


def test_a_pickle_that_is_no_batch_is_refused(here: UPath) -> None:
    wrong = [
        {"labels": LABELS},
        {"data": PIXELS.reshape(COUNT, -1)},
        {"data": PIXELS.reshape(COUNT, -1)[:, :-1], "labels": LABELS},
        {"data": PIXELS.reshape(COUNT, -1), "labels": LABELS[1:]},
        {"data": LABELS, "labels": LABELS},
    ]
    for batch in wrong:
        put(here / "test_batch", python_2_pickle(batch))
        with pytest.raises(DataError, match="test_batch is no CIFAR batch"):
            observed(here, "cifar-python")


def test_a_binary_batch_that_ends_within_an_image_is_refused(here: UPath) -> None:
    put(here / "test_batch.bin", binary_batch()[:-1])
    with pytest.raises(DataError, match=r"test_batch.bin ends within image 11"):
        observed(here, "cifar-binary")


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (np.array([None] * 2), np.zeros(2, int), "holds Python objects, which are never loaded"),
        (np.zeros((2, 8, 8)), np.zeros(2, int), "images must be uint8"),
        (np.zeros((2, 12), np.uint8), np.zeros(2, int), "images must be uint8 of shape"),
        (np.zeros((2, 3, 8, 3), np.uint8), np.zeros(2, int), "exactly one axis can be"),
        (np.zeros((2, 8, 8, 4), np.uint8), np.zeros(2, int), "exactly one axis can be"),
        (np.asfortranarray(np.zeros((2, 8, 8), np.uint8)), np.zeros(2, int), "stored column by column"),
        (np.zeros((2, 8, 8), np.uint8), np.zeros(3, int), "one integer for each image"),
        (np.zeros((2, 8, 8), np.uint8), np.zeros(2), "one integer for each image"),
        (
            np.zeros((2, 8, 8), np.uint8),
            np.array([0, -1]),
            "-00000001 has the label -1; labels must be integers from 0",
        ),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(
    here: UPath, images: np.ndarray, labels: np.ndarray, reason: str
) -> None:
    put(here / "f" / "images.npy", npy_of(images))
    put(here / "f" / "labels.npy", npy_of(labels))
    with pytest.raises(DataError, match=reason):
        observed(here / "f")
    with pytest.raises(DataError, match=reason):
        observed(put(here / "a.npz", npz_of(images=images, labels=labels)))


@pytest.mark.parametrize(("shape", "first"), [((2, 3, 4, 5), 1), ((2, 4, 5, 3), 3), ((2, 4, 5), 0), ((2, 4, 5, 1), 0)])
def test_the_axis_of_1_or_3_is_the_channels(here: UPath, shape: tuple[int, ...], first: int) -> None:
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    put(here / "images.npy", npy_of(images))
    put(here / "labels.npy", npy_of(np.zeros(2, int)))
    entries = open_source(here, format=None, split="test").entries()
    expected = images[0].reshape(1, 4, 5) if first == 0 else np.moveaxis(images[0], first - 1, 0)
    np.testing.assert_array_equal(next(entries).read(), expected)


def test_an_array_cut_short_is_refused_before_its_first_image(here: UPath) -> None:
    put(here / "images.npy", npy_of(PIXELS)[:-1])
    put(here / "labels.npy", npy_of(np.array(LABELS)))
    with pytest.raises(DataError, match=r"images.npy has 36863 bytes after its header, which says uint8"):
        observed(here)


def test_images_without_labels_are_refused(here: UPath) -> None:
    put(here / "images.npy", npy_of(PIXELS))
    with pytest.raises(DataError, match=r"labels.npy cannot be read"):
        observed(here)


def test_an_npz_names_its_images_and_labels_once(here: UPath) -> None:
    with pytest.raises(DataError, match=r"holds x, data, y; exactly one must be called images or x or data or arr_0"):
        observed(put(here / "a.npz", npz_of(x=PIXELS, data=PIXELS, y=np.array(LABELS))))
    with pytest.raises(DataError, match=r"holds x; exactly one must be called labels or y"):
        observed(put(here / "b.npz", npz_of(x=PIXELS)))


@pytest.mark.parametrize("label", [0, 1001])
def test_downsampled_imagenet_has_labels_from_1_to_1000(here: UPath, label: int) -> None:
    content = npz_of(data=PIXELS[:1].reshape(1, -1), labels=np.array([label]))
    with pytest.raises(DataError, match=f"val_data-00000000 has the label {label}; in the order 'devkit' .* 1 to 1000"):
        observed(put(here / "val_data.npz", content))


def test_downsampled_imagenet_has_square_images(here: UPath) -> None:
    content = npz_of(data=np.zeros((1, 3 * 32 * 31), np.uint8), labels=np.array([1]))
    with pytest.raises(DataError, match="rows must be uint8 of length 3"):
        observed(put(here / "val_data.npz", content), "imagenet64-npz")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.png": ENCODED[0]}, "sample a has no label; add a.cls"),
        ({"a.cls": b"1"}, "sample a has no image; there are: cls"),
        ({"a.seg.png": ENCODED[0], "a.cls": b"1"}, "sample a has no image"),
        ({"a.png": ENCODED[0], "a.cls": b"one"}, "sample a has no label"),
        ({"a.png": ENCODED[0], "a.json": b"[]"}, "sample a has no label"),
        ({"a.png": ENCODED[0], "a.json": b'{"label": 1.5}'}, r"image a has the label 1.5; labels must be integers"),
        ({"a.png": ENCODED[0], "a.json": b'{"label": true}'}, "image a has the label True"),
        ({"a.png": ENCODED[0], "a.cls": b"-1"}, "image a has the label -1"),
        ({"a.png": ENCODED[0], "b.cls": b"1"}, "sample a has no label"),
    ],
)
def test_a_sample_without_an_image_or_a_label_is_named(here: UPath, files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        observed(put(here / "a.tar", tar_of(files)))


def test_two_samples_with_one_key_are_not_merged(here: UPath) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for content in ENCODED[:2]:
            member = tarfile.TarInfo("a.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"sample a has two files .png"):
        observed(put(here / "a.tar", stream.getvalue()))


def test_names_and_links_in_a_tar_that_lead_out_of_it_write_nothing(
    here: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "work").mkdir()
    monkeypatch.chdir((here / "work").path)
    stream = io.BytesIO(tar_of({"../../out/a.png": ENCODED[0], "../../out/a.cls": b"1"}))
    with tarfile.open(fileobj=stream, mode="a") as archive:
        link = tarfile.TarInfo("../../out/a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    location = put(here / "data" / "a.tar", stream.getvalue())
    assert [(image_id, label) for image_id, label, _ in observed(location)] == [("../../out/a", 1)]
    assert {path.name for path in Path(here.path).rglob("*")} == {"work", "data", "a.tar"}


def test_hidden_files_are_no_samples(here: UPath) -> None:
    files = {"./._a.png": b"", "./.DS_Store": b"", "./b/.DS_Store": b"", "./a.png": ENCODED[0], "./a.cls": b"1"}
    assert [image_id for image_id, _, _ in observed(put(here / "a.tar", tar_of(files)))] == ["a"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_cut_short_is_refused(here: UPath, mode: str) -> None:
    content = tar_of(samples(range(COUNT)), mode)
    for share in (0.3, 0.7):
        with pytest.raises(DataError, match=r"a.tar cannot be read \(.+\); restore it"):
            observed(put(here / "a.tar", content[: int(share * len(content))]), "webdataset")


def test_a_damaged_header_within_a_tar_is_not_taken_for_its_end(here: UPath) -> None:
    content = bytearray(tar_of(samples(range(COUNT))))
    content[content.index(b"s/06.json")] = 0xFF
    with pytest.raises(DataError, match=r"cannot be read \(damaged header"):
        observed(put(here / "a.tar", bytes(content)))


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        (None, "has no dataset.json with labels; certifying needs labels"),
        ({"labels": None}, "the labels in dataset.json are null"),
        ({}, "has no dataset.json with labels"),
        ({"labels": [["a.png", 1]]}, "b.png has no label"),
        ({"labels": [["a.png", 1], ["b.png", 1], ["c.png", 1]]}, "c.png has no image"),
        ({"labels": [["a.png", 1], ["b.png", -1]]}, "image b.png has the label -1"),
        ({"labels": [["a.png", 1], ["b.png", [0, 1]]]}, r"image b.png has the label \[0, 1\]"),
        ({"labels": [1, 2]}, r"are no list of \[file name, integer\]"),
    ],
)
def test_a_zip_without_fitting_labels_is_refused(here: UPath, described: object, reason: str) -> None:
    files = {"a.png": ENCODED[0], "b.png": ENCODED[1]}
    if described is not None:
        files["dataset.json"] = json.dumps(described).encode()
    with pytest.raises(DataError, match=reason):
        observed(put(here / "a.zip", zip_of(files)))


def test_damaged_archives_say_so(here: UPath) -> None:
    damaged = bytearray(write_edm(here).read_bytes())
    damaged[damaged.index(ENCODED[0][20:40])] ^= 1
    with pytest.raises(DataError, match=r"img00000000.png cannot be read \(Bad CRC"):
        observed(put(here / "damaged.zip", bytes(damaged)))
    misnamed = zip_of({"\xe9.png": ENCODED[0]}).replace("\xe9".encode(), b"\xe9\xe9")
    with pytest.raises(DataError, match=r"misnamed.zip cannot be read \('utf-8' codec"):
        observed(put(here / "misnamed.zip", misnamed))
    for name in ("a.zip", "a.npz", "a.parquet", "a.tar"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            observed(put(here / name, b"none of these"))


def test_pixels_of_a_damaged_npz_are_not_handed_out(here: UPath) -> None:
    content = bytearray(npz_of(images=PIXELS, labels=np.array(LABELS)))
    content[content.index(PIXELS[COUNT - 1].tobytes())] ^= 1
    with pytest.raises(DataError, match=r"a.npz: images cannot be read \(Bad CRC"):
        observed(put(here / "a.npz", bytes(content)))


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


def test_class_folders_hold_the_images_and_nothing_lies_beside_them(here: UPath) -> None:
    folder = write_folder(here)
    stray = put(folder / "stray.png", ENCODED[0])
    with pytest.raises(DataError, match=r"stray.png lies outside of the class folders"):
        observed(folder)
    stray.unlink()
    put(folder / "bear" / "notes.txt", b"")
    with pytest.raises(DataError, match="images/bear holds no image; fill the class folder or remove it"):
        observed(folder)


def test_images_below_a_class_folder_and_linked_ones_belong_to_it(here: UPath) -> None:
    put(here / "store" / "deep" / "1.png", ENCODED[0])
    put(here / "set" / "ant" / "0.png", ENCODED[1])
    Path(here.path, "set", "bee").symlink_to(Path(here.path, "store"))
    put(here / "set" / ".hidden" / "0.png", ENCODED[2])
    assert [(image_id, label) for image_id, label, _ in observed(here / "set")] == [
        ("ant/0.png", 0),
        ("bee/deep/1.png", 1),
    ]


def test_a_folder_may_be_named_relative_to_the_working_folder(here: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = observed(write_folder(here))
    monkeypatch.chdir(here.path)
    assert observed(UPath("images")) == whole
    assert observed(UPath("./images/../images/")) == whole


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "test"), ("validation",)])
def test_a_folder_of_splits_is_not_taken_for_one_of_classes(root: UPath, names: tuple[str, ...]) -> None:
    for name in names:
        put(root / name / "ant" / "0.png", ENCODED[0])
    for format in (None, "image-folder"):
        with pytest.raises(DataError, match=f"holds splits, not classes; point at one of them, such as .*{names[0]}"):
            observed(root, format)


def test_a_location_of_no_known_format_says_how_to_name_one(root: UPath) -> None:
    put(root / "notes" / "a.txt", b"")
    put(root / "b.txt", b"")
    for location in (root, root / "notes", root / "b.txt"):
        with pytest.raises(DataError, match=r"is none of image-folder, .*; give dataset.format"):
            observed(location)
    write_npy(root)
    put(root / "arrays" / "a.parquet", b"")
    with pytest.raises(DataError, match=r"could be parquet or npy, as far as its names tell; give dataset.format"):
        observed(root / "arrays")
    assert len(observed(root / "arrays", "npy")) == COUNT
    with pytest.raises(DataError, match=r"dataset.format 'numpy' is unknown; there are: image-folder"):
        observed(root / "arrays", "numpy")


def test_a_location_where_nothing_is_does_not_exist(root: UPath) -> None:
    for format in (None, *FORMATS):
        with pytest.raises(DataError, match=r"nowhere.npz does not exist"):
            observed(root / "nowhere.npz", format)
