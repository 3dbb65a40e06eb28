"""Pickles are read without executing anything; hostile ones are refused with the reason and leave nothing behind."""

import collections
import contextlib
import io
import os
import pickle
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ndc_core.untrusted_files.pickle_reader import load_numeric_pickle
from ndc_core.untrusted_files.pickle_values import Instance, StoredTensor, UnsafePickleError
from ndc_core.untrusted_files.torch_files import read_pickle
from tests.support.edm_pickles import Call, Persistent, dumped, torch_saved

KEYS = st.one_of(st.text(max_size=5), st.integers(), st.none(), st.booleans())
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=30,
)


@given(PLAIN, st.integers(1, 5))
def test_plain_data_come_back_as_they_were_written(value: Any, protocol: int) -> None:
    assert load_numeric_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(1, 6))
def test_numbers_of_numpy_come_back_as_they_were_written(protocol: int) -> None:
    arrays = {
        "bytes": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "none": np.zeros((0, 3)),
        "long": np.arange(10_000),
    }
    loaded = load_numeric_pickle(pickle.dumps({**arrays, "scalar": np.sqrt(0.5), "set": {1}}, protocol))
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype
    assert loaded["scalar"] == np.sqrt(0.5)
    assert loaded["set"] == [1]


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_come_back_as_views_of_the_file(legacy: bool, tmp_path: Path) -> None:
    base = torch.arange(5000, dtype=torch.float32)
    tensors = {
        "whole": base,
        "view": base[10:].view(-1, 10).t(),
        "half": torch.randn(3, 3).half(),
        "bfloat": torch.randn(3, 3).bfloat16(),
        "bool": torch.tensor([True, False]),
        "long": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    (tmp_path / "a.pt").write_bytes(torch_saved(collections.OrderedDict(tensors), legacy=legacy))
    stored = read_pickle(tmp_path / "a.pt")
    for name, tensor in tensors.items():
        assert isinstance(stored[name], StoredTensor)
        assert torch.equal(stored[name].tensor(), tensor)
        assert stored[name].tensor().dtype == tensor.dtype
    assert stored["whole"].storage is stored["view"].storage


def touch(marker: Path) -> str:
    return f"touch {marker}"


def nested(depth: int, opening: bytes) -> bytes:
    return b"\x80\x02" + opening * depth + b"."


def deep_list(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def zip_of(content: bytes, *, compress: bool = False, **records: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", content)
        for name, data in records.items():
            archive.writestr(f"a/{name.replace('_', '/')}", data)
    return stream.getvalue()


def tensor_of(marker: Path, *, size: int, stride: int, offset: int) -> bytes:
    """A torch zip whose one storage has 4 elements."""
    content = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
        + b"J"
        + struct.pack("<i", offset)
        + b"J"
        + struct.pack("<i", size)
        + b"\x85J"
        + struct.pack("<i", stride)
        + b"\x85\x89}tR."
    )
    return zip_of(content, data_0=bytes(16))


class Plain:
    """Protocol 0 asks copyreg to make it."""


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (lambda m: pickle.dumps(Call(os.system, touch(m))), r"asks to call (posix|nt)\.system"),
    "builtins.eval": (lambda m: pickle.dumps(Call(eval, f"open({str(m)!r}, 'w')")), r"asks to call builtins\.eval"),
    "builtins.exec": (lambda m: pickle.dumps(Call(exec, f"open({str(m)!r}, 'w')")), r"asks to call builtins\.exec"),
    "a chain of getattr": (
        lambda m: pickle.dumps(Call(getattr, Call(__import__, "os"), "system")),
        r"asks to call builtins\.__import__",
    ),
    "subprocess": (
        lambda m: pickle.dumps(Call(subprocess.Popen, ["touch", str(m)])),
        r"asks to call subprocess\.Popen",
    ),
    "torch's storage loader": (
        lambda m: pickle.dumps(Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, touch(m))))),
        r"asks to call (posix|nt)\.system",
    ),
    "torch's storage loader with a zip": (
        lambda m: pickle.dumps(Call(torch.storage._load_from_bytes, zip_of(pickle.dumps(Call(os.system, touch(m)))))),
        r"asks to call (posix|nt)\.system",
    ),
    "torch.load": (lambda m: pickle.dumps(Call(torch.load, str(m))), r"asks to call torch\.serialization\.load"),
    "an array of objects": (
        lambda m: pickle.dumps({"a": np.array([Call(os.system, touch(m))], dtype=object)}),
        r"array of 'O8', which is no type of numbers|asks to call",
    ),
    "a persistent object that is a module": (
        lambda m: (
            b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}X\x04\x00\x00\x00typeX\x06\x00\x00\x00"
            b"modules\x85R."
        ),
        "no instance of a class",
    ),
    "copyreg": (lambda m: pickle.dumps(Plain(), 0), r"asks to call copy_reg\._reconstructor"),
    "a class of its own": (
        lambda m: b"\x80\x02cos\n_wrap_close\n)\x81.",
        r"asks to make a os\._wrap_close",
    ),
    "opcode INST": (lambda m: f"(S'{touch(m)}'\nios\nsystem\n.".encode(), r"asks to make a os\.system"),
    "opcode OBJ": (lambda m: f"(cos\nsystem\nS'{touch(m)}'\no.".encode(), r"asks to make a os\.system"),
    "a state for a function": (
        lambda m: b"\x80\x02cbuiltins\nprint\n}X\x01\x00\x00\x00aK\x01sb.",
        "gives a Name a state",
    ),
    "the extension registry": (lambda m: b"\x80\x02\x82\x01.", "opcode .*, which no checkpoint needs"),
    "out-of-band buffers": (lambda m: b"\x80\x05\x97.", "opcode .*, which no checkpoint needs"),
    "a persistent id": (lambda m: b"Phttp://evil/x\n.", r"outside of the file \('http://evil/x'\)"),
    "deep lists": (lambda m: deep_list(100_000), "nested more than 200 deep"),
    "deep tuples": (lambda m: nested(1, b"N")[:-1] + b"\x85" * 100_000 + b".", "nested more than 200 deep"),
    "a deep tuple as a key": (
        lambda m: b"\x80\x02}N" + b"\x85" * 100_000 + b"Ns.",
        "a dict with a tuple for a key",
    ),
    "a list that holds itself": (lambda m: b"\x80\x02]q\x00h\x00aN\x85" + b"\x85" * 300 + b".", "nested more than 200"),
    "a huge length": (lambda m: b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.", "truncated .* bytes announced"),
    "a negative length": (lambda m: b"\x80\x02T" + struct.pack("<i", -5) + b"abc.", "truncated"),
    "a huge number": (
        lambda m: b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b"abc.",
        "a number of 1,073,741,824 bytes",
    ),
    "a missing memo": (lambda m: b"\x80\x02j\xff\xff\xff\x7f.", "damaged"),
    "an empty stack": (lambda m: b"\x80\x02.", "takes from an empty stack"),
    "a missing mark": (lambda m: b"\x80\x02t.", "a mark is missing"),
    "no end": (lambda m: b"\x80\x02N", "truncated"),
    "more behind the end": (lambda m: b"\x80\x02N.N.", "2 bytes follow the end"),
    "a compressed record": (lambda m: zip_of(bytes(10**7), compress=True), "is compressed; torch's are not"),
    "a storage that is not there": (
        lambda m: tensor_of(m, size=4, stride=1, offset=0).replace(b"a/data/0", b"a/data/1"),
        "the storage '0' is missing",
    ),
    "a zip without a pickle": (lambda m: zip_of(b"").replace(b"data.pkl", b"date.pkl"), "0 records called data.pkl"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_with_the_reason_and_leave_nothing(name: str, tmp_path: Path) -> None:
    make, message = HOSTILE[name]
    marker = tmp_path / "executed"
    source = tmp_path / "edm.pkl"
    source.write_bytes(make(marker))
    started = time.perf_counter()
    with pytest.raises(UnsafePickleError, match=message) as caught:
        read_pickle(source)
    assert time.perf_counter() - started < 5
    assert str(caught.value).startswith(str(source))
    assert {path.name for path in tmp_path.iterdir()} == {"edm.pkl"}


def test_a_memo_index_does_not_take_memory_by_its_size() -> None:
    assert load_numeric_pickle(b"\x80\x02Nr\xff\xff\xff\x7f.") is None


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [(5, 1, 0), (4, 1, 1), (2, 4, 0), (4, 1, -1), (2, -1, 3), (-1, 1, 0)]
)
def test_a_tensor_that_reaches_outside_of_its_storage_is_refused(
    size: int, stride: int, offset: int, tmp_path: Path
) -> None:
    (tmp_path / "good.pt").write_bytes(tensor_of(tmp_path, size=4, stride=1, offset=0))
    assert torch.equal(read_pickle(tmp_path / "good.pt").tensor(), torch.zeros(4))
    (tmp_path / "bad.pt").write_bytes(tensor_of(tmp_path, size=size, stride=stride, offset=offset))
    with pytest.raises(UnsafePickleError, match=r"outside of its storage|of no known kind"):
        read_pickle(tmp_path / "bad.pt").tensor()


def test_a_storage_shorter_than_it_says_is_refused(tmp_path: Path) -> None:
    short = tensor_of(tmp_path, size=3, stride=1, offset=0)
    (tmp_path / "short.pt").write_bytes(short.replace(b"cpuK\x04", b"cpuK\x05"))
    with pytest.raises(UnsafePickleError, match="whose storage is shorter than it says"):
        read_pickle(tmp_path / "short.pt").tensor()


def test_source_code_in_a_pickle_is_dropped_unread(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    model = Persistent("EDMPrecond", marker, img_resolution=8)
    (tmp_path / "a.pkl").write_bytes(dumped({"ema": model}))
    assert b"os.system" in (tmp_path / "a.pkl").read_bytes()
    instance = read_pickle(tmp_path / "a.pkl")["ema"]
    assert isinstance(instance, Instance)
    assert instance.class_name == "EDMPrecond"
    assert "os.system" not in str(instance.state)
    assert not marker.exists()


VALID = dumped({"ema": Persistent("EDMPrecond", Path("/nonexistent/x"), a=1, b=[2.5, "c"], d=np.arange(4))})


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_give_data_or_a_refusal_and_never_another_error(changes: list[tuple[int, int]]) -> None:
    content = bytearray(VALID)
    for place, value in changes:
        content[place] = value
    with contextlib.suppress(UnsafePickleError):
        load_numeric_pickle(bytes(content))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(VALID) - 1))
def test_a_pickle_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(UnsafePickleError):
        load_numeric_pickle(VALID[:length])
