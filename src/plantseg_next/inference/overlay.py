"""Overlays: an image with its predicted lesions and leaf, for visual inspection.

Axes: h row, w column.
"""

from collections.abc import Sequence
from itertools import cycle, islice

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from plantseg_next.errors import count_of
from plantseg_next.inference.severity import Assessment, whole_leaf
from plantseg_next.structures import NO_LESION, ClassMap

Color = tuple[int, int, int]

OKABE_ITO: tuple[Color, ...] = (
    (213, 94, 0),  # vermilion
    (86, 180, 233),  # sky blue
    (240, 228, 66),  # yellow
    (204, 121, 167),  # reddish purple
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green: last, because leaves are green
)
"""Colors that are distinct for all common kinds of color vision (Okabe and Ito 2008)."""

LEAF_COLOR: Color = (255, 255, 255)
SHORTEST_SIDE_PX, LONGEST_SIDE_PX = 512, 1600
"""Bounds of the long side of an overlay; images outside them are resized."""

_DARK: Color = (30, 30, 30)
_LIGHT: Color = (245, 245, 245)
_TINT = 0.25
_SHIFT = 4  # fractional bits of the coordinates of outlines


def class_colors(n: int) -> tuple[Color, ...]:
    """Return one color per lesion class; the first 21 are distinct, then they repeat.

    The seven of Okabe and Ito come first, then their light and their dark shades, which
    are harder to distinguish.
    """
    light = [((r + 255) // 2, (g + 255) // 2, (b + 255) // 2) for r, g, b in OKABE_ITO]
    dark = [(r // 2, g // 2, b // 2) for r, g, b in OKABE_ITO]
    return tuple(islice(cycle((*OKABE_ITO, *light, *dark)), n))


def summary(assessment: Assessment) -> str:
    """Return the caption of an overlay.

    Example: "severity 12.3 % of the leaf, 14 lesions >= 20 px".
    """
    measure, n = assessment.measure, len(assessment.counted)
    if measure.severity_pct is None:
        area = f"affected {measure.affected_pct_of_image:.1f} % of the image"
    else:
        area = f"severity {measure.severity_pct:.1f} % of the leaf"
    least = f" >= {assessment.min_lesion_px} px" if assessment.min_lesion_px > 1 else ""
    return f"{area}, {count_of(n, 'lesion')}{least}"


def draw_overlay(
    image: UInt8[np.ndarray, "h w 3"], assessment: Assessment, classes: ClassMap
) -> UInt8[np.ndarray, "hh ww 3"]:
    """Return the image with lesions and leaf outlined, and a caption below it.

    Outlines are computed at full size and then scaled, so that a lesion of a few pixels
    is visible in the overlay of a large image.

    Args:
        image: RGB, of the size of the masks.
        assessment: Lesions and severity of the image.
        classes: Names for the legend, which lists the classes predicted in this image.

    Returns:
        RGB, its long side between 512 and 1600 pixels (plus the caption).
    """
    lesion, leaf = assessment.prediction.lesion, assessment.prediction.leaf
    if leaf is not None and assessment.measure.denominator == "leaf":
        leaf = whole_leaf(lesion, leaf)
    else:
        leaf = None
    long_side = int(np.clip(max(lesion.shape), SHORTEST_SIDE_PX, LONGEST_SIDE_PX))
    colors = class_colors(len(classes.lesions))
    canvas = draw_masks(image, lesion, leaf, colors, long_side)
    class_ids = sorted({lesion.class_id for lesion in assessment.lesions})
    legend = [(classes.lesion_name(i), colors[i - 1]) for i in class_ids]
    return _with_caption(canvas, summary(assessment), legend)


def draw_masks(
    image: UInt8[np.ndarray, "h w 3"],
    lesion: UInt8[np.ndarray, "h w"],
    leaf: UInt8[np.ndarray, "h w"] | None,
    colors: Sequence[Color],
    long_side_px: int,
    tint: float = _TINT,
) -> UInt8[np.ndarray, "hh ww 3"]:
    """Return the image with lesions tinted and outlined, and the leaf outlined.

    Args:
        image: RGB, of the size of the masks.
        lesion: Lesion class ids.
        leaf: 1 on the leaf; ``None`` to leave it out.
        colors: Of each lesion class.
        long_side_px: Long side of the result.
        tint: Weight of the colors of lesions, in [0, 1].
    """
    canvas = resized(image, long_side_px)
    scale = long_side_px / max(lesion.shape)
    thickness = max(1, round(max(canvas.shape) / 600))
    if leaf is not None:
        _outline(canvas, leaf == 1, LEAF_COLOR, scale, thickness)
    for class_id in np.flatnonzero(np.bincount(lesion.ravel())[: len(colors) + 1]).tolist():
        if class_id != NO_LESION:
            mask = lesion == class_id
            _tint(canvas, mask, colors[class_id - 1], tint)
            _outline(canvas, mask, colors[class_id - 1], scale, thickness)
    return canvas


def resized(
    image: UInt8[np.ndarray, "h w 3"], long_side_px: int
) -> UInt8[np.ndarray, "hh ww 3"]:
    """Return an image at another size, for viewing."""
    height, width = image.shape[:2]
    scale = long_side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=smooth))


def _tint(
    canvas: UInt8[np.ndarray, "hh ww 3"],
    mask: Bool[np.ndarray, "h w"],
    color: Color,
    tint: float,
) -> None:
    size = (canvas.shape[1], canvas.shape[0])
    coverage = cv2.resize(mask.view(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    weight = (tint / 255) * coverage[..., None].astype(np.float32)
    canvas[:] = canvas + (np.array(color, np.float32) - canvas) * weight


def _outline(
    canvas: UInt8[np.ndarray, "hh ww 3"],
    mask: Bool[np.ndarray, "h w"],
    color: Color,
    scale: float,
    thickness: int,
) -> None:
    contours, _ = cv2.findContours(
        mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    scaled = [
        np.round(((contour + 0.5) * scale - 0.5) * (1 << _SHIFT)).astype(np.int32)
        for contour in contours
    ]
    for line_color, width in ((_DARK, thickness + 2), (color, thickness)):
        cv2.polylines(
            canvas,
            scaled,
            isClosed=True,
            color=line_color,
            thickness=width,
            lineType=cv2.LINE_AA,
            shift=_SHIFT,
        )


def _with_caption(
    canvas: UInt8[np.ndarray, "hh ww 3"],
    text: str,
    legend: Sequence[tuple[str, Color]],
) -> UInt8[np.ndarray, "hhh www 3"]:
    """Return the canvas above a strip with a wrapped text and a legend."""
    height, width = canvas.shape[:2]
    total_width = max(width, SHORTEST_SIDE_PX // 2)
    font_px = max(13, round(total_width / 55))
    font = ImageFont.load_default(font_px)
    margin, line_px = font_px // 2, round(font_px * 1.5)

    # Each piece is a text and the color of the square before it, if any.
    pieces: list[tuple[str, Color | None]] = [(f"{word} ", None) for word in text.split()]
    pieces += [(f"{name}   ", color) for name, color in legend]
    placed: list[tuple[int, int, str, Color | None]] = []
    x, y = margin, height + margin
    for number, (piece, color) in enumerate(pieces):
        needed = round(font.getlength(piece)) + (line_px if color else 0)
        new_line = number == len(pieces) - len(legend) and legend
        if x > margin and (new_line or x + needed > total_width - margin):
            x, y = margin, y + line_px
        placed.append((x, y, piece, color))
        x += needed

    strip = Image.new("RGB", (total_width, y + line_px + margin), _DARK)
    strip.paste(Image.fromarray(canvas), (0, 0))
    draw = ImageDraw.Draw(strip)
    for x, y, piece, color in placed:
        if color is not None:
            draw.rectangle((x, y + 2, x + font_px - 2, y + font_px), fill=color)
        draw.text((x + (line_px if color else 0), y), piece, _LIGHT, font)
    return np.array(strip)
