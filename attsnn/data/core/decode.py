"""Decodes images with Pillow, by content. What is damaged, hostile or no image raises DataFormatError.

Only the pixels decide whether an image can be used. If its metadata stops the decoder, it is decoded without
the metadata.
"""

import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

from attsnn.data.errors import DataFormatError

PIXELS = 89_478_485  # Pillow's MAX_IMAGE_PIXELS, above which it warns; here it is an error
SUFFIXES = (".jpeg", ".jpg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")  # no GIF: it may move
ORIENTATION = 0x0112  # of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BACK = {6: 8, 8: 6}  # the inverse of a turn, if it is not the turn itself
NEITHER = "is neither JPEG nor PNG, nor WebP, BMP, TIFF or PPM"
PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks that the pixels depend on
JPEG_PIXELS = {0xE0: 16, 0xEE: 14}  # segments that pixels depend on, JFIF and Adobe's, and their least length
SIDE = 1 << 18  # pixels; a single row costs memory, too
SCANS = 500  # of a JPEG; each passes over the whole image
EXIF = (b"Exif\0\0", b"eXIf")  # what precedes it in a JPEG, and in a PNG


def decode(data: bytes, where: str = "<bytes>", *, turn: bool = False) -> Image.Image:
    """The RGB image in the bytes of a JPEG, PNG, WebP, BMP, TIFF or PPM file, recognised by its content.

    The image is oriented as its pixels are stored, or with `turn` as its EXIF says. DataFormatError names
    `where`.
    """
    if not data:
        raise DataFormatError("found 0 bytes; wanted a JPEG or PNG", path=where)
    try:
        try:
            return _decode(data, turn)
        except Exception:
            bare = _bare(data)
            if len(bare) == len(data):
                raise
            pixels = _decode(bare, False)
            return _turned(pixels, _said(data)) if turn else pixels
    except UnidentifiedImageError:
        known = data.startswith((PNG, b"\xff\xd8\xff"))
        sentence = "cannot be decoded (its header is damaged)" if known else NEITHER
        raise DataFormatError(sentence, path=where) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plug-ins may raise anything for broken bytes
        reason = str(error) or type(error).__name__
        raise DataFormatError(f"cannot be decoded ({reason})", path=where) from None


def _decode(data: bytes, turn: bool) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > PIXELS or max(image.size) > SIDE:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {PIXELS}, or {SIDE} a side")
        if image.format == "JPEG" and (scans := data.count(b"\xff\xda")) > SCANS:
            raise ValueError(f"{scans} scans, more than {SCANS}")
        orientation = _orientation(image.getexif)
        image.load()
        pixels = _rgb(image)
    if image.format == "TIFF":  # Pillow has turned it
        return pixels if turn else _turned(pixels, BACK.get(orientation, orientation))
    return _turned(pixels, orientation) if turn else pixels


def _turned(pixels: Image.Image, orientation: int) -> Image.Image:
    how = TURNS.get(orientation)
    return pixels if how is None else pixels.transpose(how)


def _orientation(read: Callable[[], Image.Exif]) -> int:
    try:
        return int(read().get(ORIENTATION, 1))
    except Exception:  # metadata that cannot be read does not count
        return 1


def _said(data: bytes) -> int:
    """The orientation that is stated in bytes which the decoder does not accept."""

    def read() -> Image.Exif:
        at = next(data.index(mark) + len(mark) for mark in EXIF if mark in data)
        exif = Image.Exif()
        exif.load(EXIF[0] + data[at : at + (1 << 16)])
        return exif

    return _orientation(read)


def _rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB. Values of more than 8 bits are scaled; Pillow would cut them to 255."""
    if image.mode == "F" or image.mode.startswith("I"):
        values, tags = np.asarray(image), getattr(image, "tag_v2", {})
        low, high = values.min(), values.max()
        top = 1 if image.mode == "F" else 4095 if tags.get(258) in (12, (12,)) else 65_535
        if not (low >= 0 and high <= top):  # NaN, too
            raise ValueError(f"grey values from {low} to {high}; wanted 0 to {top}")
        if image.mode == "F":
            grey = np.round(values * 255)
        else:
            grey = (values.astype(np.uint32) * 255 + top // 2) // top
            if tags.get(262) == 0:  # white is 0
                grey = 255 - grey
        image = Image.fromarray(grey.astype(np.uint8))
    return image.convert("RGB")


def _bare(data: bytes) -> bytes:
    """A JPEG or PNG without the parts that do not affect its pixels; other bytes as they are."""
    try:
        return _bare_png(data) if data.startswith(PNG) else _bare_jpeg(data)
    except (struct.error, IndexError):
        return data


def _bare_png(data: bytes) -> bytes:
    parts, at = [PNG], len(PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in PNG_PIXELS:
            parts.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts)


def _bare_jpeg(data: bytes) -> bytes:
    if not data.startswith(b"\xff\xd8"):
        return data
    parts, at = [data[:2]], 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:  # up to the first scan
        length = 2 + struct.unpack_from(">H", data, at + 2)[0]
        said = 0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE  # application segments and comments
        if not said or length - 2 >= JPEG_PIXELS.get(data[at + 1], 1 << 16):
            parts.append(data[at : at + length])
        at += length
    return b"".join(parts) + data[at:]
