"""Data sets of a hub, which is an imitation on loopback: splits, class names, configurations, shards, and offline."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.datasets import DatasetSpec, source_of
from pipeline.data.decoding import decode
from pipeline.data.source import DataError
from pipeline.declaration.toml_files import load_config
from pipeline.driver.verify import verify_run
from pipeline.hub import HubError
from tests.support.fake_hub import FakeHub, go_offline
from tests.support.small_runs import computed, digits, small_config
from tests.support.stored_images import COUNT, EXPECTED, NAMES, parquet_of, png

TRAIN, FIRST, SECOND = parquet_of([0]), parquet_of(list(range(7))), parquet_of(list(range(7, COUNT)))


def images_of(name: str, **chosen: object) -> list[tuple[str, int, bytes]]:
    source = source_of(DatasetSpec(name, **chosen))  # type: ignore[arg-type]
    return [
        (entry.image_id, entry.label, decode(entry.read(), channels=3, size=None, resample=None).tobytes())
        for entry in source.entries()
    ]


def without_names(content: bytes) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(content)).replace_schema_metadata(None), stream)
    return stream.getvalue()


def push(hub: FakeHub, files: dict[str, bytes]) -> str:
    return hub.push("org/set", files, kind="datasets")


def test_the_images_of_a_split_come_with_their_class_names(hub: FakeHub) -> None:
    commit = push(
        hub,
        {
            "data/train-00000-of-00001.parquet": TRAIN,
            "data/test-00000-of-00002.parquet": FIRST,
            "data/test-00001-of-00002.parquet": SECOND,
        },
    )
    source = source_of(DatasetSpec("hf://datasets/org/set"))
    assert (source.class_names, source.format) == (NAMES, "hub")
    assert source.notes.lines() == [f"2 Parquet files of hf://datasets/org/set@{commit}"]
    assert sorted((label, pixels) for _, label, pixels in images_of("hf://datasets/org/set")) == EXPECTED
    assert set(hub.served) == {"data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"}
    assert len(images_of("hf://datasets/org/set", split="train")) == 1
    ids = [image_id for image_id, _, _ in images_of(f"hf://datasets/org/set@{commit}/data")]
    assert ids == [f"{row:02d}.png" for row in range(COUNT)]


def test_the_hubs_own_conversion_has_the_split_in_its_folders(hub: FakeHub) -> None:
    push(hub, {"plain/train/0000.parquet": TRAIN, "plain/test/0000.parquet": FIRST, "plain/test/0001.parquet": SECOND})
    assert len(images_of("hf://datasets/org/set@refs/convert/parquet")) == COUNT


def test_a_set_without_splits_or_with_others_is_taken_by_what_it_has(hub: FakeHub) -> None:
    push(hub, {"0.parquet": FIRST, "1.parquet": SECOND})
    assert len(images_of("hf://datasets/org/set")) == COUNT
    push(hub, {"a/validation-0.parquet": FIRST, "a/test-0.parquet": SECOND, "a/train-0.parquet": TRAIN})
    with pytest.raises(DataError, match="leaves open which files are the test split"):
        source_of(DatasetSpec("hf://datasets/org/set"))
    assert len(images_of("hf://datasets/org/set/a/valid*")) == 7
    assert len(images_of("hf://datasets/org/set/a/test-0.parquet")) == 5


def test_names_come_from_the_card_where_the_files_have_none(hub: FakeHub) -> None:
    names = "".join(f"            '{label}': {name}\n" for label, name in enumerate(NAMES))
    label = f"  - name: label\n    dtype:\n      class_label:\n        names:\n{names}"
    card = f"---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n{label}---\n# A set\n"
    push(hub, {"README.md": card.encode(), "test.parquet": without_names(FIRST)})
    assert source_of(DatasetSpec("hf://datasets/org/set")).class_names == NAMES
    push(hub, {"README.md": b"---\na: [\n---\n", "test.parquet": without_names(FIRST)})
    with pytest.raises(HubError, match=r"README\.md: its head is no YAML"):
        source_of(DatasetSpec("hf://datasets/org/set"))
    push(hub, {"README.md": b"# nothing", "test.parquet": without_names(FIRST)})
    assert source_of(DatasetSpec("hf://datasets/org/set")).class_names is None


WRONG = {
    "hf://datasets/org/set": (
        {"a/test.parquet": FIRST, "b/test.parquet": FIRST},
        "configurations: a, b; name one",
    ),
    "hf://datasets/org/set/data": (
        {"data/test-00001-of-00003.parquet": FIRST},
        r"1 of 3 shards data/test-\* are",
    ),
    "hf://datasets/org/set@main": (
        {"train.parquet": TRAIN, "x.zip": b""},
        "no Parquet file of the test split",
    ),
    "hf://org/set": ({"test.parquet": FIRST}, "names a model; data sets are hf://datasets/org/set"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_set_that_cannot_be_read_says_why(hub: FakeHub, name: str) -> None:
    files, message = WRONG[name]
    push(hub, files)
    with pytest.raises(DataError, match=message):
        source_of(DatasetSpec(name))
    assert "train.parquet" not in hub.served, "nothing of another split is fetched"


@pytest.mark.usefixtures("workplace_without_ray")
def test_a_run_on_a_hubs_images_is_pinned_and_verified_without_a_network(
    hub: FakeHub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = digits("test", limit=6)
    images = [
        {"bytes": png(np.repeat(example.image, 3, axis=0)), "path": f"{example.image_id}.png"} for example in examples
    ]
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": [example.label for example in examples]}), stream)
    commit = push(hub, {"data/test-00000-of-00001.parquet": stream.getvalue()})
    config = small_config(tiny_model, "dataset.name=hf://datasets/org/set", "tracking=none")
    store = computed(config, Path("run"))
    assert load_config("run/run.toml").dataset.name == f"hf://datasets/org/set@{commit}"
    push(hub, {"data/test-00000-of-00001.parquet": FIRST})
    go_offline(monkeypatch)
    verify_run(store.folder, redraw=1, say=lambda line: None)
