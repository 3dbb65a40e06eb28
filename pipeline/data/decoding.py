"""Encoded images, or arrays, to the pixels that a model is shown; and pixels to files that a browser shows."""

import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

# Those that readers list. Others, such as PostScript, would make Pillow start programs.
FILE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MODES = {1: "L", 3: "RGB"}
# What is lost of an image: docs/data.md lists it, and a run says of how many of its images it was lost.
FRAMES = "have several frames, of which the first is taken"
TRANSPARENCY = "are transparent somewhere, which is dropped and not blended"
OTHER_COLOURS = "are CMYK, Lab or YCbCr files, and were turned into RGB without a colour profile"
PNG_BITS_AT = 24  # signature, length and name of IHDR, width and height come before
TIFF_BITS, TIFF_MAGICS = 258, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_PIXELS = 2**26  # of an image that is resized, before its middle is cut out


class CorruptImageError(ValueError):
    """An image that cannot be decoded, with the reason."""


def unsaid(loss: str) -> None:
    """Says nothing."""


def decode(
    raw: bytes | np.ndarray,
    *,
    channels: int,
    size: int | None,
    resample: str | None,
    on_loss: Callable[[str], None] = unsaid,
) -> UInt8[np.ndarray, "c h w"]:
    """Pixels with 1 (grey) or 3 (red, green, blue) channels; with a size, a square of that many pixels.

    Colour turns grey by the weights of ITU-R 601. Transparency is dropped, not blended. Pixels stay as they are
    stored: an orientation in EXIF is not applied, as training pipelines do not. An animation is its first frame.
    With a size, the shorter side is resized to it by the filter `resample`, and the middle of the longer is kept,
    rounded as torchvision rounds; an image of that size already is left as it is. Other losses
    (FRAMES, TRANSPARENCY, OTHER_COLOURS) are reported to `on_loss`.

    Raises:
        CorruptImageError: damaged, truncated, of an unknown format, too large, or of more than 8 bits per channel.
        ValueError: an array that is not uint8 (c, h, w), an unknown number of channels or filter, or an image of
            another size without a filter.
    """
    if channels not in MODES:
        raise ValueError(f"images are decoded to 1 or 3 channels, not {channels}")
    mode = MODES[channels]
    image = _opened(raw, mode, on_loss) if isinstance(raw, bytes) else _from_array(raw, mode)
    if size is not None and image.size != (size, size):
        image = _square(image, size, resample)
    pixels = np.asarray(image, np.uint8)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def webp_bytes(pixels: UInt8[np.ndarray, "c h w"], *, quality: int | None) -> bytes:
    """A picture as WebP, without loss where the quality (0 to 100) is None."""
    return _file_of(pixels, "WEBP", lossless=quality is None, quality=100 if quality is None else quality)


def png_bytes(pixels: UInt8[np.ndarray, "c h w"]) -> bytes:
    return _file_of(pixels, "PNG")


def _file_of(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    stream = BytesIO()
    _from_array(pixels, MODES[len(pixels)]).save(stream, kind, **options)
    return stream.getvalue()


def _opened(content: bytes, mode: str, on_loss: Callable[[str], None]) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some library may have set it, and half an image would pass for a whole
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(BytesIO(content), formats=FILE_FORMATS)
            bits = _bits(content, image)
            animated = getattr(image, "is_animated", False)
            image.load()
        if bits > 8:
            raise ValueError(f"more than 8 bits a channel ({bits}); convert it first")
        if animated:
            on_loss(FRAMES)
        if _is_transparent(image):
            on_loss(TRANSPARENCY)
        if image.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
            on_loss(OTHER_COLOURS)
        return _with_mode(image, mode)
    except Exception as error:  # on hostile bytes Pillow raises a dozen kinds
        reason = _unidentified(content) if isinstance(error, UnidentifiedImageError) else error
        raise CorruptImageError(f"the image cannot be decoded: {reason or type(error).__name__}") from error


def _bits(content: bytes, image: Image.Image) -> int:
    """Bits per channel as they are stored: of colours Pillow silently drops all but 8."""
    if image.mode in ("I", "F"):
        return 32
    if image.mode.startswith("I;16"):
        return 16
    if image.format == "PNG":
        return content[PNG_BITS_AT]
    if image.format == "TIFF":
        return max(image.tag_v2.get(TIFF_BITS, (1,)))  # type: ignore[attr-defined]
    return 8


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return float(lowest) < 255  # type: ignore[arg-type]


def _unidentified(content: bytes) -> str:
    if content[:4] in TIFF_MAGICS:
        return "a TIFF that is damaged, or of a kind that Pillow does not read, such as one of more than 8 bits"
    return "not a PNG, JPEG, WebP, BMP, GIF or TIFF"


def _from_array(array: np.ndarray, mode: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] not in MODES:
        raise ValueError(f"an array of {array.dtype} {array.shape} is no image; it must be uint8 (1 or 3, h, w)")
    planes = array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))
    return _with_mode(Image.fromarray(planes), mode)


def _with_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "P":
        image = image.convert("RGBA")
    if mode == "L" and image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return image.convert(mode)


def _square(image: Image.Image, size: int, resample: str | None) -> Image.Image:
    if resample not in RESAMPLING:
        wrong = "without a filter" if resample is None else f"with the filter {resample!r}"
        raise ValueError(
            f"an image of {image.width}x{image.height} cannot be made {size}x{size} {wrong}; "
            f"choose one of {', '.join(RESAMPLING)}"
        )
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    if width * height > MOST_PIXELS:
        raise CorruptImageError(f"an image of {image.width}x{image.height} is too narrow to be made {size}x{size}")
    image = image.resize((width, height), RESAMPLING[resample])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
