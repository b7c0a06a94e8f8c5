"""Several images in one picture."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attsnn._files import replace_file


def grid(
    path: Path, rows: Sequence[Tensor], *, gap: int = 2, scale: int = 2, fill: float = 1.0
) -> list[Path]:
    """Draws rows of images as one PNG. Needs no matplotlib.

    Args:
        path: the file to write.
        rows: images `[n, C, h, w]` from -1 to 1, with C = 1 or 3. A row may have images of another size.
        gap: pixels between the images.
        scale: the factor by which the picture is enlarged.
        fill: the grey of the gaps, from -1 to 1.
    """
    lines = [
        torch.cat(
            [F.pad(image, (gap, 0), value=fill) for image in row.detach().cpu().float().clamp(-1, 1)], 2
        )
        for row in rows
    ]
    width, channels = max(line.shape[2] for line in lines), max(line.shape[0] for line in lines)
    lines = [
        F.pad(x.expand(channels, -1, -1), (0, width + gap - x.shape[2], gap, 0), value=fill) for x in lines
    ]
    whole = F.pad(torch.cat(lines, 1), (0, 0, 0, gap), value=fill)
    pixels = ((whole + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    png = io.BytesIO()
    image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST).save(png, "PNG")
    replace_file(path, png.getvalue())
    return [path]
