"""Masks that annotation files embed: run lengths and images, decoded within bounds.

Every function knows the size that the mask must have. Runs are summed before memory is
allocated, and must fill the mask exactly: the C code of pycocotools leaves the rest of a
mask uninitialized if they do not, and writes beyond it if they are too many.

Axes: h row, w column.
"""

import base64
import binascii
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image, UnidentifiedImageError

from plantseg_next.data.formats.numbers import shown, whole
from plantseg_next.data.image_io import MAX_PIXELS

_DIGIT, _MORE, _SIGN = 0x1F, 0x20, 0x10
_FIRST_LETTER, _LAST_LETTER = 48, 111
_MAX_LETTERS_PER_RUN = 7
"""Letters of 5 bits: 35 bits with sign, more than any run of ``MAX_PIXELS`` needs."""


def decode_rle(
    rle: object, size_hw: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> Bool[np.ndarray, "h w"]:
    """Return the mask of the run lengths of a COCO annotation, compressed or not.

    Args:
        rle: An object with ``size`` (rows, columns) and ``counts``: a list, or text.
        size_hw: Rows and columns of the image.
        max_pixels: Largest number of pixels that is decoded.

    Raises:
        ValueError: If it is not of that size, or its runs do not fill it.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise ValueError(f"run lengths are {shown(rle)}, not an object of size and counts")
    size = rle["size"]
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise ValueError(f"the size of run lengths is {shown(size)}, not rows and columns")
    h, w = whole(size[0], "the rows of a mask"), whole(size[1], "the columns of a mask")
    if (h, w) != tuple(size_hw):
        raise ValueError(
            f"run lengths of {w} x {h} pixels, for an image of {size_hw[1]} x {size_hw[0]}"
        )
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        return decode_compressed_counts(counts, size_hw, max_pixels)
    if isinstance(counts, list | tuple):
        return decode_counts(counts, size_hw, max_pixels)
    raise ValueError(f"the counts of run lengths are {shown(counts)}, not a list or text")


def decode_counts(
    counts: Sequence[object], size_hw: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> Bool[np.ndarray, "h w"]:
    """Return the mask of COCO run lengths: by columns, beginning with background.

    Args:
        counts: Lengths of the runs.
        size_hw: Rows and columns of the mask.
        max_pixels: Largest number of pixels that is decoded.

    Raises:
        ValueError: If the runs are not whole numbers of at least 0, or do not fill the
            mask exactly.

    Example:
        >>> decode_counts([1, 2, 1], (2, 2)).astype(int).tolist()
        [[0, 1], [1, 0]]
    """
    h, w = _checked_size(size_hw, max_pixels)
    return _filled(_whole_runs(counts, h * w), h * w).reshape(w, h).T


def decode_compressed_counts(
    counts: str | bytes, size_hw: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> Bool[np.ndarray, "h w"]:
    """Return the mask of compressed COCO run lengths.

    A run is stated in letters of 5 bits from ``0`` to ``o``, low bits first; a sixth bit
    marks letters that continue. From the fourth run on, it is the difference to the run
    before the last one (``rleFrString`` of pycocotools).

    Args:
        counts: The letters.
        size_hw: Rows and columns of the mask.
        max_pixels: Largest number of pixels that is decoded.

    Raises:
        ValueError: If they are other letters, end within a run, or the runs do not fill
            the mask exactly.

    Example:
        >>> decode_compressed_counts("121", (2, 2)).astype(int).tolist()
        [[0, 1], [1, 0]]
    """
    h, w = _checked_size(size_hw, max_pixels)
    _refuse_many(len(counts) // _MAX_LETTERS_PER_RUN, h * w)
    return _filled(_runs_of_letters(counts), h * w).reshape(w, h).T


def decode_row_runs(
    runs: str | Sequence[object],
    left: object,
    top: object,
    width: object,
    height: object,
    size_hw: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
) -> Bool[np.ndarray, "h w"]:
    """Return the mask of a CVAT brush: runs by rows in a part of the image.

    Args:
        runs: Lengths of the runs, beginning with background: a list, or text such as
            ``"1, 2, 1"``.
        left: Column of the first pixel of the part in the image, as the file states it.
        top: Its row.
        width: Columns of the part.
        height: Rows of the part.
        size_hw: Rows and columns of the image.
        max_pixels: Largest number of pixels that is decoded.

    Raises:
        ValueError: If a number is not whole, the part is larger than the image or
            outside it, or the runs do not fill the part exactly.

    Example:
        >>> decode_row_runs("1,1", 0, 1, 2, 1, (2, 2)).astype(int).tolist()
        [[0, 0], [0, 1]]
    """
    image_h, image_w = _checked_size(size_hw, max_pixels)
    x, y = (
        whole(value, f"{what} of a mask", -max_pixels, max_pixels)
        for value, what in ((left, "left"), (top, "top"))
    )
    w = whole(width, "the width of a mask", 1, image_w)
    h = whole(height, "the height of a mask", 1, image_h)
    if isinstance(runs, str):
        runs = runs.split(",", 2 * h * w + 2)
    part = _filled(_whole_runs(runs, h * w), h * w).reshape(h, w)
    return place(part, x, y, (image_h, image_w))


def place(
    part: Bool[np.ndarray, "part_h part_w"], left: int, top: int, size_hw: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """Return the mask of an image, of which a part is given; what is outside is cut.

    Args:
        part: The mask of the part.
        left: Column of its first pixel in the image; may be negative.
        top: Row of its first pixel.
        size_hw: Rows and columns of the image.

    Raises:
        ValueError: If the whole part is outside the image.
    """
    visible = part[max(0, -top) :, max(0, -left) :]
    top, left = max(0, top), max(0, left)
    visible = visible[: max(0, size_hw[0] - top), : max(0, size_hw[1] - left)]
    if not visible.size:
        raise ValueError(
            f"a mask of {part.shape[1]} x {part.shape[0]} is outside its image"
        )
    mask = np.zeros(size_hw, bool)
    mask[top : top + visible.shape[0], left : left + visible.shape[1]] = visible
    return mask


def decode_png_mask(text: object, max_pixels: int = MAX_PIXELS) -> Bool[np.ndarray, "h w"]:
    """Return the mask of an embedded PNG image, true where it is not 0.

    Args:
        text: The file in base64, as LabelMe embeds it.
        max_pixels: Largest number of pixels; checked before the image is decoded.

    Raises:
        ValueError: If it is not base64, not a PNG image, colored, truncated or too large.
    """
    if not isinstance(text, str | bytes) or not text:
        raise ValueError(f"an embedded mask is {shown(text)}, not a PNG image in base64")
    try:
        # Some tools break its lines.
        content = base64.b64decode(
            "".join(text.split()) if isinstance(text, str) else b"".join(text.split()),
            validate=True,
        )
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"an embedded mask is not base64: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images
            image = Image.open(BytesIO(content), formats=("PNG",))
        w, h = image.size
        if h * w > max_pixels:
            raise ValueError(f"an embedded mask of {w} x {h} pixels is too large")
        if image.mode not in {"1", "L", "P", "I", "I;16"}:
            raise ValueError(f"an embedded mask is in color ({image.mode}), not gray")
        return np.array(image) > 0
    except UnidentifiedImageError as error:
        raise ValueError("an embedded mask is not a PNG image") from error
    except Image.DecompressionBombError as error:
        raise ValueError("an embedded mask is too large") from error
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything where content is damaged
        raise ValueError(f"an embedded mask is damaged or truncated: {error}") from error


def _checked_size(size_hw: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    h = whole(size_hw[0], "the height of a mask", 1)
    w = whole(size_hw[1], "the width of a mask", 1)
    if h * w > max_pixels:
        raise ValueError(f"a mask of {w} x {h} pixels, more than {max_pixels:,}")
    return h, w


def _refuse_many(n_runs: int, pixels: int) -> None:
    # A run of 0 joins its neighbors, so there may be more runs than pixels.
    if n_runs > 2 * pixels + 2:
        raise ValueError(f"{n_runs:,} runs, too many for {pixels:,} pixels")


def _whole_runs(counts: Sequence[object], pixels: int) -> Int[np.ndarray, " n"]:
    _refuse_many(len(counts), pixels)
    if set(map(type, counts)) <= {int} and all(0 <= n <= pixels for n in counts):  # type: ignore[operator]
        return np.array(counts, np.int64)
    runs = [whole(n, f"run {i}", 0, pixels) for i, n in enumerate(counts, 1)]
    return np.array(runs, np.int64)


def _runs_of_letters(counts: str | bytes) -> Int[np.ndarray, " n"]:
    try:
        letters = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise ValueError("the text of run lengths has letters other than 0 to o") from error
    codes = np.frombuffer(letters, np.uint8).astype(np.int64)
    if not codes.size:
        return codes
    if codes.min() < _FIRST_LETTER or codes.max() > _LAST_LETTER:
        raise ValueError("the text of run lengths has letters other than 0 to o")
    codes -= _FIRST_LETTER
    last = np.flatnonzero((codes & _MORE) == 0)
    if not last.size or last[-1] != len(codes) - 1:
        raise ValueError("the text of run lengths ends within a run")
    first = np.concatenate([[0], last[:-1] + 1])
    n_letters = last - first + 1
    if n_letters.max() > _MAX_LETTERS_PER_RUN:
        raise ValueError(f"a run is stated in {n_letters.max()} letters")
    shift = 5 * (np.arange(len(codes)) - np.repeat(first, n_letters))
    runs = np.add.reduceat((codes & _DIGIT) << shift, first)
    runs -= ((codes[last] & _SIGN) != 0).astype(np.int64) << (5 * n_letters)
    # Below 2**35 each, and below 2**28 of them: the sums stay below 2**63.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _filled(runs: Int[np.ndarray, " n"], pixels: int) -> Bool[np.ndarray, " pixels"]:
    """Return the pixels of runs that fill a mask exactly."""
    if (wrong := np.flatnonzero((runs < 0) | (runs > pixels))).size:
        i = int(wrong[0])
        raise ValueError(f"run {i + 1} is {runs[i]}, not 0 to {pixels:,}")
    total = sum(runs.tolist())
    if total != pixels:
        raise ValueError(f"runs of {total:,} pixels in sum, for a mask of {pixels:,}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)
