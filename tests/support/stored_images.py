"""Twelve images in each of the formats that are read, and what a pass over them gives."""

import io
import json
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from upath import UPath

from pipeline.data.classes import arranged
from pipeline.data.decoding import decode
from pipeline.data.formats import open_source

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


SHUFFLED = [7, 3, 11, 0, 5, 1, 10, 2, 8, 6, 4, 9]


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


def peak_of(location: UPath) -> tuple[int, int]:
    """Entries of a pass that reads each, and the most memory that it held."""
    source = open_source(location, format=None, split="test")
    tracemalloc.start()
    try:
        count = sum(1 for entry in source.entries() if len(entry.read()))
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
