"""Arrays of images and of labels in NumPy's files."""

from collections.abc import Callable

import numpy as np
import pytest
from upath import UPath

from pipeline.data.formats import open_source
from pipeline.data.source import DataError
from tests.support.stored_images import (
    COUNT,
    EXPECTED,
    LABELS,
    PIXELS,
    RNG,
    npy_of,
    npz_of,
    observed,
    peak_of,
    put,
)


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


def test_pixels_of_a_damaged_npz_are_not_handed_out(here: UPath) -> None:
    content = bytearray(npz_of(images=PIXELS, labels=np.array(LABELS)))
    content[content.index(PIXELS[COUNT - 1].tobytes())] ^= 1
    with pytest.raises(DataError, match=r"a.npz: images cannot be read \(Bad CRC"):
        observed(put(here / "a.npz", bytes(content)))
