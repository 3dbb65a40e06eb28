"""Labels mean what the model means by them: orders of classes are declared, proved the same, or refused."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ndc_core.checkpoints.denoisers import load_denoiser
from pipeline.data.classes import by_number, class_order, devkit_wnids, listed
from pipeline.data.datasets import DatasetSpec, check_classes, list_images, meaning_of_labels, source_of
from pipeline.data.source import DataError
from pipeline.declaration.config import ConfigError
from pipeline.declaration.toml_files import load_config
from pipeline.driver.prepare import prepare
from pipeline.locations import location
from pipeline.model_tools.diagnose import spread_images
from pipeline.model_tools.distill import fitting_images
from pipeline.store.run_store import OPTIONAL, RunStore
from tests.support.small_runs import small_config

ONE_TO_TEN = tuple(str(number) for number in range(1, 11))
AS_STRINGS = ("1", "10", "2", "3", "4", "5", "6", "7", "8", "9")
ONE_KNOWN = {490: 65, 1: 278, 449: 0, 1000: 543}  # sea snake, kit fox, tench and dumbbell: devkit's and the model's


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(stream, "png")
    return stream.getvalue()


def folders(place: Path, names: tuple[str, ...]) -> str:
    """One image for each class, of a shade that tells which name it has."""
    for shade, name in enumerate(names):
        (place / name).mkdir(parents=True)
        (place / name / "a.png").write_bytes(png(shade))
    return str(place)


def shards(place: Path, *names: tuple[str, ...] | None) -> str:
    """A Parquet file with the images 0 to 11, whose labels are those numbers, for each list of names."""
    place.mkdir()
    for number, called in enumerate(names):
        label = {"names": called, "_type": "ClassLabel"}
        metadata = {b"huggingface": json.dumps({"info": {"features": {"label": label}}}).encode()} if called else None
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())], metadata=metadata)
        rows = {"image": [png(12 * number + row) for row in range(12)], "label": list(range(12))}
        pq.write_table(pa.table(rows, schema=schema), place / f"{number}.parquet")
    return str(place)


def imagenet(place: Path, labels: list[int], name: str = "val_data") -> str:
    np.savez(place / f"{name}.npz", data=np.zeros((len(labels), 3 * 64), np.uint8), labels=np.array(labels))
    return str(place / f"{name}.npz")


def labels_of(spec: DatasetSpec) -> list[int]:
    return [entry.label for entry in source_of(spec).entries()]


def names_of(spec: DatasetSpec) -> dict[str, int]:
    """The label of each folder."""
    return {entry.image_id.partition("/")[0]: entry.label for entry in source_of(spec).entries()}


def check(spec: DatasetSpec, classes: int) -> None:
    check_classes(spec, source_of(spec), num_classes=classes)


# ImageNet


def test_downsampled_imagenet_counts_as_the_devkit_and_models_as_sorted_wnids(tmp_path: Path) -> None:
    spec = DatasetSpec(imagenet(tmp_path, list(ONE_KNOWN)))
    assert labels_of(spec) == list(ONE_KNOWN.values())
    source = source_of(spec)
    assert (source.label_order, source.class_names) == ("devkit", tuple(sorted(devkit_wnids())))
    assert source.class_names[65] == "n01751748"
    said = meaning_of_labels(spec, source, num_classes=1000)
    assert said.startswith("classes, by labels in the order 'devkit' (dataset.label_order): 0 = n01440764, 1 = ")


def test_every_class_of_the_devkit_has_a_place_of_its_own(tmp_path: Path) -> None:
    labels = labels_of(DatasetSpec(imagenet(tmp_path, list(range(1, 1001)))))
    assert sorted(labels) == list(range(1000))
    assert [sorted(devkit_wnids())[label] for label in labels] == list(devkit_wnids())
    assert sum(label == number for number, label in enumerate(labels)) < 5  # `label - 1` is wrong for nearly all


def test_another_order_of_imagenets_labels_is_declared_in_any_format_without_names(tmp_path: Path) -> None:
    assert labels_of(DatasetSpec(imagenet(tmp_path, [0, 65, 999]), label_order="sorted")) == [0, 65, 999]
    np.savez(tmp_path / "own.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([490, 1]))
    own = str(tmp_path / "own.npz")
    assert labels_of(DatasetSpec(own)) == [490, 1]
    assert labels_of(DatasetSpec(own, label_order="devkit")) == [65, 278]
    with pytest.raises(DataError, match="image-folder names its classes"):
        source_of(DatasetSpec(folders(tmp_path / "set", ("ant", "bee")), label_order="devkit"))


@pytest.mark.parametrize(("order", "label", "span"), [("devkit", 0, "1 to 1000"), ("sorted", 1000, "0 to 999")])
def test_a_label_that_the_order_does_not_have_is_refused(tmp_path: Path, order: str, label: int, span: str) -> None:
    spec = DatasetSpec(imagenet(tmp_path, [label]), label_order=order)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"has the label {label}; in the order '{order}' ImageNet's are {span}"):
        labels_of(spec)


def test_imagenets_classes_are_a_thousand(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 1000 classes .*, the model knows 10"):
        check(DatasetSpec(imagenet(tmp_path, [1])), 10)


# Names


def test_folders_whose_order_is_open_are_refused_until_it_is_declared(tmp_path: Path) -> None:
    images = folders(tmp_path / "set", ONE_TO_TEN)
    with pytest.raises(DataError, match=r"'10' is class 1, by number it is class 9\. .* dataset.classes = 'sorted'"):
        check(DatasetSpec(images), 10)
    by_strings = {name: label for label, name in enumerate(AS_STRINGS)}
    by_numbers = {name: label for label, name in enumerate(ONE_TO_TEN)}
    given = {name: label for label, name in enumerate(reversed(ONE_TO_TEN))}
    for classes, expected in (("sorted", by_strings), ("numeric", by_numbers), (tuple(given), given)):
        spec = DatasetSpec(images, classes=classes)
        check(spec, 10)
        assert names_of(spec) == expected
        assert source_of(spec).class_names == tuple(expected)


@pytest.mark.parametrize(
    "names",
    [
        tuple(map(str, range(10))),
        tuple(f"{number:02d}" for number in range(1, 13)),
        ("n01440764", "n01443537", "n02119789"),
        ("1", "3", "7"),
        ("10 pence", "2 euros"),
        ("Boeing 737", "Cessna 172"),
    ],
)
def test_names_that_all_orders_agree_on_need_no_declaration(tmp_path: Path, names: tuple[str, ...]) -> None:
    spec = DatasetSpec(folders(tmp_path, names))
    check(spec, len(names))
    assert names_of(spec) == {name: label for label, name in enumerate(sorted(names))}


@pytest.mark.parametrize("name", ["{}", "class_{}", "{}-class"])
@pytest.mark.parametrize("numbers", [range(11), range(1, 11), (3, 10)])
def test_names_that_differ_by_a_number_alone_are_refused_out_of_its_order(
    tmp_path: Path, name: str, numbers: range | tuple[int, ...]
) -> None:
    names = tuple(name.format(number) for number in numbers)
    with pytest.raises(DataError, match="the order of its classes is open"):
        check(DatasetSpec(folders(tmp_path, names)), len(names))
    spec = DatasetSpec(str(tmp_path), classes="numeric")
    assert list(names_of(spec).values()) != list(range(len(names)))
    assert source_of(spec).class_names == names


def test_some_of_the_models_classes_are_certified_with_all_their_names(tmp_path: Path) -> None:
    images = folders(tmp_path / "set", ("3", "7"))
    with pytest.raises(DataError, match=r"2 classes .* knows 10.*list all that the model knows in dataset.classes"):
        check(DatasetSpec(images), 10)
    spec = DatasetSpec(images, classes=tuple(map(str, range(10))))
    check(spec, 10)
    assert names_of(spec) == {"3": 3, "7": 7}


def test_names_in_the_metadata_of_parquet_are_held_to_the_same_rule(tmp_path: Path) -> None:
    names = tuple(sorted(map(str, range(12))))  # as datasets' imagefolder makes them
    hub = shards(tmp_path / "hub", names)
    with pytest.raises(DataError, match="the order of its classes is open"):
        check(DatasetSpec(hub), 12)
    assert labels_of(DatasetSpec(hub, classes="sorted")) == list(range(12))
    assert labels_of(DatasetSpec(hub, classes="numeric")) == [int(name) for name in names]


def test_files_of_a_set_that_name_other_classes_are_refused(tmp_path: Path) -> None:
    names = tuple("abcdefghijkl")
    assert labels_of(DatasetSpec(shards(tmp_path / "alike", names, names))) == [*range(12), *range(12)]
    for number, other in enumerate((names[::-1], None)):
        with pytest.raises(DataError, match=r"1\.parquet names other classes than .*0\.parquet"):
            labels_of(DatasetSpec(shards(tmp_path / f"other{number}", names, other)))


def test_names_in_the_json_of_a_zip_are_kept(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png(0))
        archive.writestr("dataset.json", json.dumps({"labels": [["a.png", 1]], "class_names": ["ant", "bee"]}))
    source = source_of(DatasetSpec(str(tmp_path / "a.zip")))
    assert (source.class_names, [entry.label for entry in source.entries()]) == (("ant", "bee"), [1])
    assert labels_of(DatasetSpec(str(tmp_path / "a.zip"), classes=("bee", "ant"))) == [0]


def test_a_declaration_that_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    images, numbers = folders(tmp_path / "set", ("ant", "bee")), imagenet(tmp_path, [1])
    with pytest.raises(DataError, match="lacks 1 classes of the data: bee"):
        source_of(DatasetSpec(images, classes=("ant", "cow")))
    with pytest.raises(DataError, match="'numeric' is for names that differ by a number alone"):
        source_of(DatasetSpec(images, classes="numeric"))
    with pytest.raises(DataError, match="orders names, and the data have none"):
        source_of(DatasetSpec(shards(tmp_path / "hub", None), classes="sorted"))
    with pytest.raises(DataError, match=r"lacks 999 classes of the data: n01443537"):
        source_of(DatasetSpec(numbers, classes=("n01440764", "cow")))
    for classes in ((), ("ant", "ant")):
        with pytest.raises(ValueError, match="must name classes, and none of them twice"):
            DatasetSpec(images, classes=classes)


def test_a_list_gives_names_to_labels_that_have_none(tmp_path: Path) -> None:
    spec = DatasetSpec(shards(tmp_path / "hub", None), classes=tuple("abcdefghijkl"))
    assert (source_of(spec).class_names, labels_of(spec)) == (tuple("abcdefghijkl"), list(range(12)))
    assert meaning_of_labels(spec, source_of(spec), num_classes=12).startswith("classes, as dataset.classes declares: ")


def test_a_label_beyond_the_models_classes_ends_a_run_before_it_starts(tmp_path: Path) -> None:
    spec = DatasetSpec(shards(tmp_path / "hub", None))
    with pytest.raises(DataError, match="has label 10, the model knows the classes 0 to 9"):
        list_images(spec, source_of(spec), image_shape=(1, 8, 8), num_classes=10, noise="integer")


# What a run keeps of it


def test_a_file_of_names_is_read_once_and_kept_by_the_run(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffant\r\n\r\nbee \r\n".encode())
    config = load_config("demo", [f"dataset.classes={path}"])
    path.unlink()
    assert config.dataset.classes == ("ant", "bee")
    (tmp_path / "run.toml").write_text(config.to_toml())
    assert load_config(str(tmp_path / "run.toml")).dataset.classes == ("ant", "bee")
    assert load_config("demo", ["dataset.classes=numeric"]).dataset.classes == "numeric"
    with pytest.raises(DataError, match=r"names.txt' is neither sorted nor numeric, nor a file"):
        load_config("demo", [f"dataset.classes={path}"])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is no text in UTF-8"):
        class_order(str(path))
    with pytest.raises(ConfigError, match="label_order"):
        load_config("demo", ["dataset.label_order=keras"])


def test_a_run_says_and_keeps_which_class_is_which(tmp_path: Path, tiny_model: Path) -> None:
    images = folders(tmp_path / "set", ONE_TO_TEN)
    settings = [f"dataset.name={images}", "dataset.limit=10"]
    with pytest.raises(DataError, match="the order of its classes is open"):
        prepare(small_config(tiny_model, *settings), location(tmp_path / "run"))
    run = prepare(small_config(tiny_model, *settings, "dataset.classes=numeric"), location(tmp_path / "run"))
    assert "classes, as dataset.classes declares: 0 = 1, 1 = 2, " in "\n".join(run.remarks)
    kept = {"format": "image-folder", "label_order": None, "classes": ONE_TO_TEN}
    assert run.manifest()["data"] == kept
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps(run.manifest()))
    assert RunStore(tmp_path / "run").manifest()["data"] == kept | {"classes": list(ONE_TO_TEN)}
    before = {key: value for key, value in run.manifest().items() if key not in OPTIONAL}
    (tmp_path / "run/run.json").write_text(json.dumps(before))
    assert RunStore(tmp_path / "run").manifest() == before | OPTIONAL
    other = prepare(small_config(tiny_model, *settings, "dataset.classes=sorted"), location(tmp_path / "other"))
    assert other.fingerprint != run.fingerprint


def test_a_diagnosis_reads_labels_as_a_run_does_and_distillation_needs_none(tmp_path: Path, tiny_model: Path) -> None:
    images, denoiser, said = folders(tmp_path / "set", ONE_TO_TEN), load_denoiser(tiny_model), []
    with pytest.raises(DataError, match="the order of its classes is open"):
        spread_images(DatasetSpec(images), denoiser, say=said.append)
    examples = spread_images(DatasetSpec(images, classes="numeric"), denoiser, say=said.append)
    assert {example.image_id: example.label for example in examples}["10/a.png"] == 9
    assert said == ["classes, as dataset.classes declares: " + listed(ONE_TO_TEN)]
    assert len(fitting_images(DatasetSpec(images), denoiser, said.append)) == 10


def test_names_are_listed_as_long_as_they_are_few() -> None:
    assert listed(("cat", "dog")) == "0 = cat, 1 = dog"
    assert listed(tuple(map(str, range(20)))) == "0 to 19, called by their numbers"
    many = listed(tuple(f"x{number}" for number in range(2, 1002)))
    assert many.endswith("7 = x9, ..., 999 = x1001")
    assert by_number(("a2", "b1")) is None
    assert by_number(("a10", "a9", "a09")) == ("a09", "a9", "a10")
