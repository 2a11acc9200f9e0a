"""Decoding of masks: from stored values to the targets of the lesion and leaf heads.

Axes: h row, w column.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Integer, UInt8, UInt16

from plantseg_next.data.manifest import MaskCoding
from plantseg_next.errors import DataError
from plantseg_next.structures import IGNORE, NO_LESION, ClassMap

MaskValues = UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]
MaskColors = UInt8[np.ndarray, "h w 3"]


def decode_mask(
    values: MaskValues | MaskColors,
    coding: MaskCoding,
    classes: ClassMap,
    *,
    name: str = "the mask",
) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
    """Return the lesion mask and the leaf mask of the stored values.

    Args:
        values: A mask from ``read_mask``, as colors if the coding is by color.
        coding: Meaning of the values. A coding without lesion classes does not
            annotate the lesion head.
        classes: The common classes; they include all lesion classes of the coding.
        name: Name of the mask in errors, for example its file.

    Returns:
        Lesion class ids, 0 for none; and 1 on the leaf, lesions included, 0 off it.
        ``IGNORE`` where the meaning is "ignore", and everywhere in a head that the
        coding does not annotate.

    Raises:
        DataError: If a value has no meaning, or the mask is colored and the coding is
            not by color.

    Example:
        >>> coding = MaskCoding({0: "background", 1: "leaf", 7: "rust"}, True, "doc")
        >>> mask = np.array([[0, 1, 7]], np.uint8)
        >>> lesion, leaf = decode_mask(mask, coding, ClassMap(("phoma", "rust")))
        >>> lesion.tolist(), leaf.tolist()
        ([[0, 0, 2]], [[0, 1, 1]])
    """
    if values.ndim == 3 and not coding.by_color:
        raise DataError(
            f"`{name}` is a colored mask.",
            needed=f"a mask of the values {_known_values(coding.meaning)}",
            fix='state the meaning of its colors in classes.yaml: "#ff0000": rust',
        )
    by_color = coding.by_color
    flat = _packed(values) if by_color else values
    known = {_as_number(v, by_color=by_color): m for v, m in coding.meaning.items()}
    order = sorted(known)
    position = _positions(flat, np.array(order, np.int64))
    if (position < 0).any():
        raise _unknown_value(flat[position < 0], flat.size, coding, name)

    meanings = [known[value] for value in order]
    lesion_ids = {lesion: i + 1 for i, lesion in enumerate(classes.lesions)}
    lesion_of = dict.fromkeys(("background", "leaf", "no lesion"), NO_LESION)
    lesion_of["ignore"] = IGNORE
    leaf_of = {"background": 0, "no lesion": IGNORE, "ignore": IGNORE}
    unmarked = np.full(flat.shape, IGNORE, np.uint8)
    lesion = leaf = unmarked
    if coding.lesions:
        target_of = lesion_of | lesion_ids
        table = [target_of[m] for m in meanings]
        lesion = np.array(table, np.uint8)[position]
    if coding.marks_leaf:
        leaf = np.array([leaf_of.get(m, 1) for m in meanings], np.uint8)[position]
    return lesion, leaf


def _packed(values: MaskValues | MaskColors) -> Integer[np.ndarray, "h w"]:
    """Return colors as 0xrrggbb; a gray level is converted to its color."""
    wide = values.astype(np.int64)
    if wide.ndim == 2:
        return wide * 0x010101
    packed: np.ndarray = wide @ np.array([0x10000, 0x100, 1])
    return packed


def _as_number(value: int | str, *, by_color: bool) -> int:
    if isinstance(value, str):
        return int(value.removeprefix("#"), 16)
    return value * 0x010101 if by_color else value


def _positions(
    values: Integer[np.ndarray, "h w"], known: Integer[np.ndarray, " n"]
) -> Integer[np.ndarray, "h w"]:
    """Return the index of each value in the sorted known ones, -1 if unknown."""
    if values.dtype.itemsize <= 2:
        table = np.full(1 << 16, -1, np.int32)
        table[known] = np.arange(len(known))
        looked_up: np.ndarray = table[values]
        return looked_up
    index = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[index] == values, index, -1)


def _known_values(meaning: Mapping[int | str, str]) -> str:
    shown = [str(value) for value in meaning]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:11], "...", shown[-1]])


def _unknown_value(
    unknown: Integer[np.ndarray, " n"], size: int, coding: MaskCoding, name: str
) -> DataError:
    values, counts = np.unique(unknown, return_counts=True)
    most = counts.argmax()
    value = int(values[most])
    shown = f"#{value:06x}" if coding.by_color else str(value)
    edges = "" if coding.by_color or len(values) < 2 else "; for smoothed edges between "
    edges += "two values, add the line `edges: smoothed`" if edges else ""
    others = f", and {len(values) - 1} other such values" if len(values) > 1 else ""
    return DataError(
        f"`{name}` holds the value {shown} on {_per_cent(counts[most] / size)} of its "
        f"pixels{others}; its meaning is unknown.",
        needed=f"only the values {_known_values(coding.meaning)} ({coding.origin})",
        fix="state its meaning in classes.yaml (a class, background, leaf or ignore), "
        f"or correct the mask{edges}",
    )


def _per_cent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %" if fraction >= 0.0001 else "less than 0.01 %"
