import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets import DatasetSpec, Example, Listing, examples_of, ids_in, list_images, selected, source_of
from pipeline.data.source import DataError
from pipeline.locations import location
from tests.support.small_runs import digits, listing_of


def png(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six colour images of 8 x 8 pixels."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(6):
            (tmp_path / name / f"{index}.png").write_bytes(png(random.integers(0, 256, (8, 8, 3), np.uint8)))
    return tmp_path


def listed(
    spec: DatasetSpec, *, shape: tuple[int, ...] = (3, 8, 8), classes: int = 2, noise: str = "integer"
) -> Listing:
    return list_images(spec, source_of(spec), image_shape=shape, num_classes=classes, noise=noise)


def ids(spec: DatasetSpec) -> list[str]:
    return [entry.image_id for entry in selected(spec, source_of(spec))]


def test_digits_are_split_once_and_for_all() -> None:
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1297, 500)
    assert not {example.image_id for example in train} & {example.image_id for example in test}
    assert train[0].image.shape == (1, 8, 8)
    assert train[0].image.dtype == np.uint8
    assert max(example.image.max() for example in test) == 255
    # Pinned: another split would mix held-out digits into the training of published models.
    assert listing_of(test).digest.startswith("9cc213b37185e399")


def test_images_are_chosen_by_place_or_by_id(folder: Path) -> None:
    everything = ids(DatasetSpec(str(folder)))
    assert everything == [f"{name}/{index}.png" for name in ("cat", "dog") for index in range(6)]
    assert ids(DatasetSpec(str(folder), offset=1, every=3, limit=3)) == everything[1::3][:3]
    assert ids(DatasetSpec(str(folder), ids=("dog/4.png", "cat/2.png"))) == ["cat/2.png", "dog/4.png"]
    with pytest.raises(DataError, match=r"2 of 3 dataset\.ids are not in .*: cow/1\.png, dog/9\.png$"):
        ids(DatasetSpec(str(folder), ids=("dog/9.png", "cat/2.png", "cow/1.png")))
    with pytest.raises(DataError, match=r"1 of 1 dataset\.ids are not in .*: 0\.png; ids there are such as cat/0\.png"):
        ids(DatasetSpec(str(folder), ids=("0.png",)))


def test_a_list_of_ids_may_come_from_any_editor() -> None:
    assert ids_in(b"\xef\xbb\xbfa b/0.png\r\n\r\nc.png \t\n  \n\n", where="ids.txt") == ["a b/0.png", "c.png"]
    assert ids_in("d\u2028e.png".encode(), where="ids.txt") == ["d\u2028e.png"]
    with pytest.raises(DataError, match=r"ids\.txt has no ids; write the ids of the images to take, one a line"):
        ids_in(b"\n \n", where="ids.txt")
    with pytest.raises(DataError, match=r"ids\.txt is no text in UTF-8"):
        ids_in(b"caf\xe9", where="ids.txt")


def test_decisions_about_the_data_are_noted_once_for_the_images_of_a_run(folder: Path) -> None:
    assert listed(DatasetSpec(str(folder))).notes == ()
    (folder / "cat" / "Thumbs.db").write_bytes(b"")
    Image.new("RGBA", (8, 8)).save(folder / "dog" / "0.png")
    dogs = DatasetSpec(str(folder), offset=6)
    source = source_of(dogs)
    for _ in range(2):
        listing = list_images(dogs, source, image_shape=(3, 8, 8), num_classes=2, noise="integer")
        assert listing.notes == (
            "passed over as no images: 1 (1 Thumbs.db)",
            "images that are transparent somewhere, which is dropped and not blended: 1",
        )
    assert listed(DatasetSpec(str(folder), limit=6)).notes == ("passed over as no images: 1 (1 Thumbs.db)",)


def test_data_that_are_all_passed_over_are_empty_and_say_why(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        shard.addfile(tarfile.TarInfo("._a.png"))
    with pytest.raises(DataError, match=r"empty: there is nothing to certify; passed over as no images: 1 \(1 \._\*\)"):
        listed(DatasetSpec(str(tmp_path / "a.tar")))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"every": 0}, "dataset.every must be at least 1, not 0"),
        ({"offset": -1}, "dataset.offset must be at least 0"),
        ({"limit": 0}, "dataset.limit must be at least 1"),
        ({"resize": 8}, "dataset.resize and dataset.filter go together"),
        ({"ids": ("a", "b"), "limit": 1}, "leave out offset, every and limit"),
        ({"ids": ("a",), "every": 2}, "leave out offset, every and limit"),
        ({"ids": ("b", "a", "a")}, "names an image twice: a"),
    ],
)
def test_choices_that_mean_nothing_are_refused(choice: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetSpec("digits", **choice)


def test_colours_and_sizes_are_what_was_declared(folder: Path) -> None:
    as_stored = listed(DatasetSpec(str(folder)))
    assert listed(DatasetSpec(str(folder), channels="rgb")) == as_stored
    grey = listed(DatasetSpec(str(folder), limit=3), shape=(1, 8, 8))
    assert grey == listed(DatasetSpec(str(folder), limit=3, channels="grey"), shape=(1, 8, 8))
    with pytest.raises(DataError, match=r"cat/0.png has shape \(1, 8, 8\)"):
        listed(DatasetSpec(str(folder), channels="grey"))
    box, nearest = (
        listed(DatasetSpec(str(folder), resize=4, filter=name), shape=(3, 4, 4)) for name in ("box", "nearest")
    )
    assert box.image_shape == (3, 4, 4)
    assert box.digest != nearest.digest


def test_mixed_sizes_and_labels_that_do_not_fit_are_refused(folder: Path) -> None:
    (folder / "dog" / "3.png").write_bytes(png(np.zeros((9, 8, 3), np.uint8)))
    with pytest.raises(DataError, match=r"dog/3.png has shape \(3, 9, 8\).*declare a resize"):
        listed(DatasetSpec(str(folder)))
    with pytest.raises(DataError, match=r"has 2 classes \(cat, dog\), the model knows 10: labels would not mean"):
        listed(DatasetSpec(str(folder)), classes=10)


def truncated(content: bytes) -> bytes:
    return content[:-40]


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncated, empty])
def test_corrupt_images_are_named_and_counted_or_left_out_on_request(
    folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    for name in ("cat/1.png", "dog/5.png"):
        path = folder / name
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"2 of 12 images cannot be decoded: cat/1.png \(.*dog/5.png .*--skip-corrupt"):
        listed(DatasetSpec(str(folder)))
    listing = listed(DatasetSpec(str(folder), skip_corrupt=True))
    assert len(listing.records) == 10
    assert [line.split()[0] for line in listing.corrupt] == ["cat/1.png", "dog/5.png"]
    assert [record.index for record in listing.records] == list(range(10))
    whole = list(examples_of(DatasetSpec(str(folder)), source_of(DatasetSpec(str(folder))), channels=3, corrupt=[]))
    assert [example.record(index) for index, example in enumerate(whole)] == listing.records


def test_an_id_that_occurs_twice_and_no_images_at_all_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", images=np.zeros((0, 8, 8, 3), np.uint8), labels=np.zeros(0, np.int64))
    with pytest.raises(DataError, match="empty: there is nothing to certify"):
        listed(DatasetSpec(str(tmp_path / "none.npz")))
    image = png(np.zeros((8, 8, 3), np.uint8))
    with tarfile.open(tmp_path / "twice.tar", "w") as shard:
        for name, content in (("a.png", image), ("a.cls", b"0"), ("b.png", image), ("b.cls", b"0")) * 2:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, BytesIO(content))
    with pytest.raises(DataError, match=r"image id a occurs twice in .*twice.tar; rename one: votes of the two"):
        listed(DatasetSpec(str(tmp_path / "twice.tar")))


def test_data_in_an_object_store_are_the_same_data(folder: Path, s3: str) -> None:
    """A class folder, a Parquet file and a pattern of tar shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = location(s3)
    store.fs.put(f"{folder}/", f"{s3}/folder", recursive=True)
    assert listed(DatasetSpec(f"{s3}/folder")) == listed(DatasetSpec(str(folder)))
    files = [(path, label) for label, name in enumerate(("cat", "dog")) for path in sorted((folder / name).iterdir())]
    images = [{"bytes": path.read_bytes(), "path": str(path.relative_to(folder))} for path, _ in files]
    pq.write_table(pa.table({"image": images, "label": [label for _, label in files]}), folder / "all.parquet")
    store.fs.put(str(folder / "all.parquet"), f"{s3}/all.parquet")
    assert listed(DatasetSpec(f"{s3}/all.parquet")) == listed(DatasetSpec(str(folder)))
    for name in ("cat", "dog"):
        with tarfile.open(folder / f"{name}.tar", "w") as shard:
            for path, label in files:
                if path.parent.name == name:
                    shard.add(path, f"{name}/{path.name}")
                    (folder / "label.cls").write_text(str(label))
                    shard.add(folder / "label.cls", f"{name}/{path.stem}.cls")
        store.fs.put(str(folder / f"{name}.tar"), f"{s3}/{name}.tar")
    tars = listed(DatasetSpec(f"{s3}/*.tar"))
    expected = listed(DatasetSpec(str(folder / "*.tar")))
    assert tars == expected
    assert [record.sha256 for record in tars.records] == [
        record.sha256 for record in listed(DatasetSpec(f"{s3}/folder")).records
    ]


def test_the_digest_sees_ids_labels_pixels_and_order() -> None:
    image = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    base = [Example("a", image, 0), Example("b", image, 1)]
    variants = [
        base[::-1],
        base[:1],
        [Example("c", image, 0), base[1]],
        [Example("a", image, 1), base[1]],
        [Example("a", image + 1, 0), base[1]],
        [Example("a", image.reshape(1, 4, 1), 0), base[1]],
    ]
    assert len({listing_of(examples).digest for examples in [base, *variants]}) == len(variants) + 1


def test_data_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"has shape \(1, 8, 8\) \(channels, height, width\), the model takes \(1, 9, 9\)"
    ):
        listed(DatasetSpec("digits"), shape=(1, 9, 9), classes=10)
    with pytest.raises(DataError, match="dataset 'emnist' is unknown; there are: digits, mnist, and your paths"):
        source_of(DatasetSpec("emnist"))
    with pytest.raises(DataError, match="does not exist"):
        source_of(DatasetSpec("data/mnist"))


def test_mnist_is_split_once_and_for_all() -> None:
    train, test = (list(source_of(DatasetSpec("mnist", split=split)).entries()) for split in ("train", "test"))
    assert (len(train), len(test)) == (4500, 500)
    assert not {entry.image_id for entry in train} & {entry.image_id for entry in test}
    image = examples_of(DatasetSpec("mnist", limit=1), source_of(DatasetSpec("mnist")), channels=1, corrupt=[])
    assert next(iter(image)).image.shape == (1, 28, 28)
