"""The containers that torch writes around a pickle: zip archives, and the older sequence of pickles."""

import mmap
import zipfile
from collections.abc import Callable
from io import RawIOBase
from pathlib import Path
from typing import Any

from ndc_core.untrusted_files.file_kinds import foreign_kind
from ndc_core.untrusted_files.pickle_reader import Machine
from ndc_core.untrusted_files.pickle_values import STORAGE_DTYPES, Name, Storage, UnsafePickleError

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LOCAL_HEADER_BYTES = 30
# Records that TorchScript and torch.export write, and torch.save does not.
PROGRAMS = ("/constants.pkl", "/models/model.json", "/serialized_exported_program.json")
MOST_NESTED_FILES = 2


def read_pickle(path: Path) -> Any:
    """The data of a pickle, plain or as torch writes it, whose tensors are views of the file.

    Raises:
        UnsafePickleError: it is damaged, another kind of file, or asks for more than data; says which file, where, and
            what.
    """
    if kind := foreign_kind(path):
        raise UnsafePickleError(f"{path} is {kind}")
    try:
        with path.open("rb") as stream:
            # A private map: pages are read when they are needed, and nothing is ever written to the file.
            content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))
        return read_content(content)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from error
    except (ValueError, zipfile.BadZipFile) as error:
        raise UnsafePickleError(f"{path} is no readable pickle ({error}): truncated, or of another kind") from error


def read_content(content: memoryview, *, nested: int = 0) -> Any:
    if nested > MOST_NESTED_FILES:
        raise UnsafePickleError("files within files within files: no checkpoint has them")

    def load_bytes(inner: memoryview) -> Any:
        return read_content(inner, nested=nested + 1)

    if bytes(content[:4]) == ZIP_MAGIC:
        return _read_zip(content, load_bytes)
    machine = Machine(content, 0, load_bytes=load_bytes)
    value = machine.run()
    if type(value) is int and value == LEGACY_MAGIC:
        return _read_legacy(content, machine.position, load_bytes)
    if machine.position != len(content):
        raise UnsafePickleError(f"{len(content) - machine.position:,} bytes follow the end of the pickle")
    return value


def _identity(identity: Any) -> tuple[Any, str, int]:
    """Type, key and number of elements of a persistent id of torch's."""
    if len(identity) < 5 or identity[0] != "storage" or not isinstance(identity[1], Name):
        raise UnsafePickleError("it refers to something outside of the file")
    module, _, kind = identity[1].path.rpartition(".")
    if module not in ("torch", "torch.storage", "torch.cuda") or kind not in STORAGE_DTYPES:
        raise UnsafePickleError(f"it holds a {identity[1].path}, which is no storage of numbers")
    if not isinstance(identity[2], str) or type(identity[4]) is not int or identity[4] < 0:
        raise UnsafePickleError("it refers to a storage in no known way")
    return STORAGE_DTYPES[kind], identity[2], identity[4]


def _read_zip(content: memoryview, load_bytes: Callable[[memoryview], Any]) -> Any:
    records: dict[str, memoryview] = {}
    with zipfile.ZipFile(_Mapped(content)) as archive:
        if any(name.endswith(PROGRAMS) for name in archive.namelist()):
            raise UnsafePickleError(
                "it is a program (TorchScript, torch.export); for a classifier's program, use --classifier"
            )
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise UnsafePickleError(f"the record {info.filename} is compressed; torch's are not")
            records[info.filename] = _record(content, info)
    names = [name for name in records if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(names) != 1:
        raise UnsafePickleError(f"a zip with {len(names)} records called data.pkl: not written by torch.save")
    folder = names[0].removesuffix("data.pkl")
    if bytes(records.get(f"{folder}byteorder", b"little")) != b"little":
        raise UnsafePickleError("it was written on a big-endian machine")
    storages: dict[str, Storage] = {}

    def find(identity: Any) -> Storage:
        dtype, key, numel = _identity(identity)
        if f"{folder}data/{key}" not in records:
            raise UnsafePickleError(f"the storage {key!r} is missing: truncated")
        return storages.setdefault(key, Storage(dtype, numel, records[f"{folder}data/{key}"]))

    return Machine(records[names[0]], 0, find_storage=find, load_bytes=load_bytes).run()


def _record(content: memoryview, info: zipfile.ZipInfo) -> memoryview:
    header = content[info.header_offset : info.header_offset + LOCAL_HEADER_BYTES]
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = info.header_offset + LOCAL_HEADER_BYTES + lengths
    if len(header) < LOCAL_HEADER_BYTES or start + info.file_size > len(content):
        raise UnsafePickleError(f"the record {info.filename} reaches beyond the end: truncated")
    return content[start : start + info.file_size]


class _Mapped(RawIOBase):
    """A mapped file as a stream to read and seek in, without a copy of it."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.place = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        taken = self.content[self.place : self.place + len(buffer)]
        buffer[: len(taken)] = taken
        self.place += len(taken)
        return len(taken)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.place = max(0, offset + (0, self.place, len(self.content))[whence])
        return self.place

    def tell(self) -> int:
        return self.place


def _read_legacy(content: memoryview, start: int, load_bytes: Callable[[memoryview], Any]) -> Any:
    """Pickles of protocol version, system, object and keys follow; then each storage, with its number of elements."""
    storages: dict[str, Storage] = {}

    def find(identity: Any) -> Storage | Name:
        if identity[:1] == ("module",) and len(identity) > 1 and isinstance(identity[1], Name):
            return identity[1]  # a class; its source code, which follows, is dropped
        dtype, key, numel = _identity(identity)
        return storages.setdefault(key, Storage(dtype, numel))

    position, values = start, []
    for _ in range(4):
        machine = Machine(content, position, find_storage=find, load_bytes=load_bytes)
        values.append(machine.run())
        position = machine.position
    _, system, result, keys = values
    if not isinstance(system, dict) or not system.get("little_endian", True) or not isinstance(keys, list):
        raise UnsafePickleError("an old torch file in no known form, or of a big-endian machine")
    for key in keys:
        if not isinstance(key, str) or key not in storages:
            raise UnsafePickleError("an old torch file with a storage that nothing refers to")
        storage = storages[key]
        size = storage.numel * storage.dtype.itemsize
        stored = int.from_bytes(content[position : position + 8], "little")
        if stored != storage.numel or position + 8 + size > len(content):
            raise UnsafePickleError(f"the storage {key!r} reaches beyond the end: truncated")
        storage.content = content[position + 8 : position + 8 + size]
        position += 8 + size
    return result
