"""Encoded images to Pillow's, by content; what is damaged, hostile or no image is a DataFormatError.

Nothing but the pixels decides whether an image can be used: where its metadata ends the decoder, it is
decoded without.
"""

import io
import struct

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
PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")  # what the pixels need, and how they lie
JPEG_PIXELS = (0xE0, 0xEE)  # of the application segments: JFIF, and Adobe's transform of colours


def decode(data: bytes, where: str = "<bytes>", *, turn: bool = False) -> Image.Image:
    """The RGB image in the bytes of a JPEG, PNG, WebP, BMP, TIFF or PPM, told apart by
    content; with `turn` turned as its EXIF says. DataFormatError names `where`.
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
            return _decode(bare, turn)
    except UnidentifiedImageError:
        raise DataFormatError("is neither JPEG nor PNG, nor WebP, BMP, TIFF or PPM", path=where) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plug-ins raise what the broken bytes lead them to
        reason = str(error) or type(error).__name__
        raise DataFormatError(f"cannot be decoded ({reason})", path=where) from None


def _decode(data: bytes, turn: bool) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {PIXELS}")
        image.load()  # turns a TIFF, which then says so
        how = TURNS.get(_orientation(image)) if turn else None
        pixels = _rgb(image)
    return pixels if how is None else pixels.transpose(how)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as the pixels go, metadata that cannot be read says nothing
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit, which Pillow would cut to 255 instead of scaling it
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    return image.convert("RGB")


def _bare(data: bytes) -> bytes:
    """A JPEG or PNG without what says nothing of its pixels; other bytes as they are."""
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
        if not said or data[at + 1] in JPEG_PIXELS:
            parts.append(data[at : at + length])
        at += length
    return b"".join(parts) + data[at:]
