import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipeline.data.decoding import FRAMES, OTHER_COLOURS, RESAMPLING, TRANSPARENCY, CorruptImageError, decode

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (9, 7), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def as_stored(raw: bytes | np.ndarray, channels: int = 3) -> np.ndarray:
    return decode(raw, channels=channels, size=None, resample=None)


def losses(raw: bytes) -> list[str]:
    """The losses that are reported."""
    lost: list[str] = []
    decode(raw, channels=3, size=None, resample=None, on_loss=lost.append)
    return lost


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has no pixels."""
    return png_of(width, height, b"", bits=8, kind=2)


def png_of(width: int, height: int, rows: bytes, *, bits: int, kind: int) -> bytes:
    """Rows begin with their filter's byte; kind 0 is grey, 2 colour, 4 grey with alpha, 6 colour with alpha."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_files_give_their_pixels(kind: str) -> None:
    pixels = as_stored(encoded(COLOUR, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (pixels.dtype, pixels.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(pixels, COLOUR.transpose(2, 0, 1))


def test_jpeg_is_decoded_close_to_what_was_encoded() -> None:
    smooth = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    pixels = as_stored(encoded(smooth, "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - smooth.transpose(2, 0, 1)).max() < 12


def test_grey_files_give_one_channel_or_three_equal_ones() -> None:
    np.testing.assert_array_equal(as_stored(encoded(GREY), 1)[0], GREY)
    np.testing.assert_array_equal(as_stored(encoded(GREY)), np.stack([GREY] * 3))


def test_colour_turns_grey_by_the_weights_of_itu_r_601() -> None:
    expected = COLOUR @ np.array([0.299, 0.587, 0.114])
    for raw in (encoded(COLOUR), COLOUR.transpose(2, 0, 1)):
        assert np.abs(as_stored(raw, 1)[0] - expected).max() <= 0.51


def test_transparency_is_dropped_and_not_blended() -> None:
    alpha = np.zeros((9, 7, 1), np.uint8)
    np.testing.assert_array_equal(
        as_stored(encoded(np.concatenate([COLOUR, alpha], axis=2))), COLOUR.transpose(2, 0, 1)
    )
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha[..., 0])])
    np.testing.assert_array_equal(as_stored(encoded(grey_alpha), 1)[0], GREY)


def test_palettes_are_looked_up_also_with_transparent_entries() -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    expected = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)[[[0, 1], [1, 0]]].transpose(2, 0, 1)
    np.testing.assert_array_equal(as_stored(encoded(image)), expected)
    np.testing.assert_array_equal(as_stored(encoded(image, transparency=b"\x00\x80")), expected)


def test_cmyk_becomes_red_green_and_blue() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = as_stored(encoded(cyan, "TIFF"))[:, 4, 4]
    assert red < 10
    assert min(green, blue) > 245


def test_an_orientation_in_exif_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    np.testing.assert_array_equal(as_stored(encoded(COLOUR, exif=exif)), COLOUR.transpose(2, 0, 1))


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (0, 255)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert as_stored(content, 1).max() == 0


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_of_grey_are_refused(mode: str) -> None:
    kind = "PNG" if mode == "I;16" else "TIFF"
    with pytest.raises(CorruptImageError, match="more than 8 bits"):
        as_stored(encoded(Image.new(mode, (4, 4)), kind))


def tiff_of(*, bits: int, samples: int, kind: int) -> bytes:
    """2 x 2 zeros; kind 1 is grey, 2 colour, 5 CMYK."""
    pixels, each = bytes(4 * samples * bits // 8), struct.pack(f"<{samples}H", *[bits] * samples)
    long_tags = {256: 2, 257: 2, 259: 1, 262: kind, 277: samples, 278: 2, 279: len(pixels)}
    start = 8 + 2 + 12 * 9 + 4
    offset_of_bits = start if len(each) > 4 else int.from_bytes(each, "little")
    entries = {tag: (4, 1, value) for tag, value in long_tags.items()}
    entries |= {258: (3, samples, offset_of_bits), 273: (4, 1, start + len(each))}
    directory = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, 9) + directory + bytes(4) + each + pixels


@pytest.mark.parametrize(("kind", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_a_png_of_16_bits_is_refused_whatever_its_channels(kind: int, samples: int) -> None:
    rows = (b"\0" + bytes(2 * 2 * samples)) * 2
    with pytest.raises(CorruptImageError, match=r"more than 8 bits a channel \(16\); convert it first"):
        as_stored(png_of(2, 2, rows, bits=16, kind=kind))
    rows = (b"\0" + bytes(2 * samples)) * 2
    assert as_stored(png_of(2, 2, rows, bits=8, kind=kind)).shape == (3, 2, 2)


@pytest.mark.parametrize(("kind", "samples"), [(1, 1), (1, 2), (2, 3), (2, 4), (5, 4)])
def test_a_tiff_of_16_bits_is_refused_whatever_its_channels(kind: int, samples: int) -> None:
    # Pillow does not read grey with alpha.
    with pytest.raises(CorruptImageError, match=r"more than 8 bits( a channel \(16\); convert it first)?$"):
        as_stored(tiff_of(bits=16, samples=samples, kind=kind))
    if (kind, samples) != (1, 2):
        assert as_stored(tiff_of(bits=8, samples=samples, kind=kind)).shape == (3, 2, 2)


def test_what_an_image_loses_is_reported() -> None:
    plain, other = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (9, 9, 9))
    for kind in ("PNG", "GIF", "WEBP", "TIFF"):
        assert losses(encoded(plain, kind)) == []
        assert losses(encoded(plain, kind, save_all=True, append_images=[other])) == [FRAMES]
    assert losses(encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 255)))) == []
    assert losses(encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 254)))) == [TRANSPARENCY]
    assert losses(encoded(Image.new("P", (4, 4)), transparency=0)) == [TRANSPARENCY]
    assert losses(encoded(plain, transparency=(0, 0, 0))) == [TRANSPARENCY]
    for kind in ("JPEG", "TIFF"):
        assert losses(encoded(plain.convert("CMYK"), kind)) == [OTHER_COLOURS]
    assert losses(encoded(plain, "JPEG")) == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_truncated_files_are_refused_even_where_pillow_was_told_to_accept_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert as_stored(content).shape == (3, 64, 64)
    with pytest.raises(CorruptImageError, match=r"cannot be decoded: \S+"):
        as_stored(content[: len(content) // 2])


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"])
def test_other_bytes_are_no_image(content: bytes) -> None:
    with pytest.raises(CorruptImageError, match="not a PNG, JPEG, WebP, BMP, GIF or TIFF"):
        as_stored(content)


def test_flipped_bytes_give_pixels_or_a_corrupt_image_and_nothing_else() -> None:
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        content = encoded(COLOUR, kind)
        for _ in range(60):
            damaged = bytearray(content)
            damaged[RNG.integers(len(content))] ^= 1 << RNG.integers(8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own, on odd metadata
                try:
                    assert as_stored(bytes(damaged)).dtype == np.uint8
                except CorruptImageError:
                    continue


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_images_that_would_fill_the_memory_are_refused(side: int) -> None:
    with pytest.raises(CorruptImageError, match="decompression bomb"):
        as_stored(png_header(side, side))


def test_a_resize_takes_the_shorter_side_and_keeps_the_middle_of_the_longer() -> None:
    image = np.zeros((3, 6, 14), np.uint8)
    image[:, :, 4:10] = 200  # the middle square
    for raw in (image, encoded(image.transpose(1, 2, 0))):
        assert (decode(raw, channels=3, size=3, resample="box") == 200).all()
        assert (decode(raw, channels=3, size=6, resample="lanczos") == 200).all()
    assert (decode(image.transpose(0, 2, 1), channels=1, size=3, resample="box") == 200).all()


@pytest.mark.parametrize("name", RESAMPLING)
def test_each_filter_is_pillows_of_that_name(name: str) -> None:
    expected = Image.fromarray(GREY[:7]).resize((4, 4), Image.Resampling[name.upper()])
    np.testing.assert_array_equal(decode(GREY[None, :7], channels=1, size=4, resample=name)[0], np.asarray(expected))


def test_an_image_of_the_size_asked_is_left_as_it_is() -> None:
    square = COLOUR[:7].transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(square, channels=3, size=7, resample=None), square)
    np.testing.assert_array_equal(decode(square, channels=3, size=7, resample="lanczos"), square)


def test_a_resize_needs_a_known_filter() -> None:
    with pytest.raises(ValueError, match="7x9 cannot be made 4x4 without a filter; choose one of nearest, box"):
        decode(encoded(COLOUR), channels=3, size=4, resample=None)
    with pytest.raises(ValueError, match="with the filter 'cubic'; choose one of"):
        decode(encoded(COLOUR), channels=3, size=4, resample="cubic")


def test_a_thread_of_an_image_is_not_blown_up_to_a_square() -> None:
    with pytest.raises(CorruptImageError, match="1x60000 is too narrow to be made 64x64"):
        decode(np.zeros((1, 60_000, 1), np.uint8), channels=1, size=64, resample="box")


def test_what_is_no_image_array_and_other_channels_are_refused() -> None:
    for array in (np.zeros((3, 4, 4)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="is no image; it must be uint8"):
            as_stored(array)
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        as_stored(COLOUR.transpose(2, 0, 1), 4)
