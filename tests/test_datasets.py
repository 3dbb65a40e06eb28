import numpy as np
import pytest

from pipeline.datasets import Example, check_examples, dataset_digest, digits, load_dataset


def test_digits_are_split_once_and_for_all() -> None:
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1297, 500)
    assert not {example.image_id for example in train} & {example.image_id for example in test}
    assert train[0].image.shape == (1, 8, 8)
    assert train[0].image.dtype == np.uint8
    assert max(example.image.max() for example in test) == 255
    # Pinned: another split would mix held-out digits into the training of published models.
    assert dataset_digest(test).startswith("769341d2028166ff")


def test_a_limit_takes_the_first_examples() -> None:
    whole = load_dataset("digits", split="test")
    some = load_dataset("digits", split="test", limit=7)
    assert [example.image_id for example in some] == [example.image_id for example in whole[:7]]


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
    assert len({dataset_digest(examples) for examples in [base, *variants]}) == len(variants) + 1


def test_data_that_do_not_fit_the_model_are_refused() -> None:
    good = Example("a", np.zeros((1, 8, 8), np.uint8), 3)
    check_examples([good], image_shape=(1, 8, 8), num_classes=10, noise="integer")
    with pytest.raises(ValueError, match="empty"):
        check_examples([], image_shape=(1, 8, 8), num_classes=10, noise="integer")
    with pytest.raises(ValueError, match="a occurs twice"):
        check_examples([good, good], image_shape=(1, 8, 8), num_classes=10, noise="integer")
    with pytest.raises(ValueError, match=r"image a has shape \(1, 8, 8\)"):
        check_examples([good], image_shape=(3, 32, 32), num_classes=10, noise="integer")
    real = Example("a", np.zeros((1, 8, 8)), 3)
    with pytest.raises(
        ValueError, match="image a is float64, images must have 8 bits; integer noise is for 8-bit images"
    ):
        check_examples([real], image_shape=(1, 8, 8), num_classes=10, noise="integer")
    with pytest.raises(ValueError, match="label 3, the model knows the classes 0 to 2"):
        check_examples([good], image_shape=(1, 8, 8), num_classes=3, noise="integer")
