"""What the values of masks mean, where no file says so: one reading, or a question.

Masks that smoothing, compression or a slip of the brush changed are repaired if there is
one reading only. What was done is said with counts. The numbers below were chosen between
those of real data sets: see each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from plantseg_next.data.formats.mask_questions import (
    ask,
    ask_whether_plant,
    colored,
    faint,
)
from plantseg_next.data.formats.mask_repairs import (
    FAR_APART,
    NOISE_VALUES,
    SMALLEST_MASK_PX,
    find_plateaus,
    find_strays,
    is_solid,
)
from plantseg_next.data.formats.mask_statistics import (
    COLORED_FRACTION,
    Look,
    ValueStats,
    areas_of_values,
    count_colors,
    count_values,
    find_channel,
    look_at,
)
from plantseg_next.data.manifest import IN_DOUBT, Channel
from plantseg_next.errors import UsageError, count_of, shorten

MOST_VALUES = 32
"""Values in the masks of a set from which they are no class ids."""
MUCH = 1 / 3
"""Fraction of an image that lesions rarely cover: 15 % of the masks of mixed leaves off
the web do, and at most 3 % of those of potato, coffee and rice; of whole leaves, up to all.
"""
PLANT_GREENER = 0.3
"""Difference of the green fractions inside and outside the marked areas, as median of the
images. Lesions of four data sets: -0.4 to -0.2; plants on soil 0.6 and 0.7."""
SOME_GREEN, NO_GREEN = 0.1, 0.02
"""Green fractions inside and outside the marks of whole diseased leaves on plain ground,
in half of the images of scanned wheat leaves; of lesions of five sets, in none."""
LEAF_BESIDE_LESION = 0.6
"""Fraction of the rim of lesions that borders on the leaf: 0.8 to 0.9 in three sets."""
LEAF_GREENER = 0.05
"""Difference by which marked areas, leaf and lesions, are greener than the ground."""

_LOOKED_AT = 40
_AREAS_COUNTED = 40


_Meaning = dict[int | str, str]


@dataclass(frozen=True)
class Reading:
    """What masks mean.

    Args:
        meaning: As in ``MaskCoding``.
        origin: How it was found, as text.
        channel: Where the values are.
    """

    meaning: Mapping[int | str, str]
    origin: str
    channel: Channel = "stored"


def read_masks(folder: Path, masks: Sequence[Path], images: Mapping[Path, Path]) -> Reading:
    """Return what the masks of a folder mean.

    Args:
        folder: The data set, which has no class file.
        masks: Its masks, or a choice of them.
        images: The image of each mask, as far as known.

    Raises:
        UsageError: If they have no single meaning; it drafts a class file where one can
            help.
    """
    channel = find_channel(masks)
    colors = count_colors(masks, channel)
    if colors is not None:
        if colors.colored > COLORED_FRACTION or len(colors.counts) <= NOISE_VALUES:
            raise colored(folder, colors, channel)
        channel = "gray"
    stats = count_values(masks, channel)
    if channel == "gray" and 0 < stats.values.max(initial=0) < FAR_APART:
        raise faint(folder, stats)
    reading = _Reader(folder, stats, channel, images).read()
    if channel != "gray":
        return reading
    gray = "compressed with loss; their brightness is read: "
    return Reading(reading.meaning, _after_prefix(reading.origin, gray), channel)


def nearest_of_two(stated: Mapping[int | str, str]) -> _Meaning:
    """Return the meaning of all values of masks with two stated ones and smoothed edges.

    Args:
        stated: The meaning of two values.
    """
    low, high = sorted(int(value) for value in stated)
    first = (low + high) // 2 + 1
    return _threshold(first, 255 if high < 256 else 65535, stated[low], stated[high])


@dataclass(frozen=True)
class _Reader:
    folder: Path
    stats: ValueStats
    channel: Channel
    images: Mapping[Path, Path]

    def read(self) -> Reading:
        stats = self.stats
        if plateaus := find_plateaus(stats):
            lines: _Meaning = {plateaus.low: "background", "edges": "smoothed"}
            self._refuse_plant([plateaus.high], lines, lesion_from=plateaus.first)
            meaning = _threshold(plateaus.first, stats.top, "background", "lesion")
            return self._reading(
                meaning, f"{plateaus}, a lesion", in_doubt=True, smoothed=True
            )
        self._refuse_smoothed_classes()
        strays = find_strays(stats)
        clear = stats.values[~strays]
        said = _strays(stats, strays) if strays.any() else ""
        if self._are_numbers(clear, strays):
            marked = [v for v in clear.tolist() if v]
            self._refuse_plant(marked, {0: "background"}, lesion_from=1)
            return self._reading(
                _threshold(1, stats.top, "background", "lesion"),
                f"the values 1 to {clear[-1]} number single areas, one each, from 1 in "
                f"every mask of {len(stats.in_mask)}; all are read as one class, lesion",
                in_doubt=True,
            )
        if len(clear) > MOST_VALUES:
            raise self._no_classes(len(clear))
        meaning = self._of_ids(clear.tolist()) | _ignored(stats, strays)
        names = [name for name in meaning.values() if name.startswith("class ")]
        read = ", ".join(dict.fromkeys(meaning.values()))
        shown = ", ".join(str(value) for value in clear)
        text = f"mask values {shown} read as {read}"
        text += f"; {said}" if said else ""
        if names:
            text += "; no file names these classes, and one of them may be the leaf"
        if "leaf" in meaning.values():
            text += (
                "; that it is the leaf is seen in the images: it surrounds the lesions and "
                "is greener than the ground"
            )
        return self._reading(meaning, text, in_doubt=bool(names or said))

    def _reading(
        self,
        meaning: Mapping[int | str, str],
        text: str,
        *,
        in_doubt: bool,
        smoothed: bool = False,
    ) -> Reading:
        prefix = IN_DOUBT if in_doubt else "inferred:"
        origin = f"{prefix} {text}; to change it, write a classes.yaml"
        if smoothed or self.channel == "gray":
            origin += " with the line `edges: smoothed`"
        return Reading(meaning, origin, self.channel)

    def _of_ids(self, values: list[int]) -> _Meaning:
        """Return the meaning of clear values."""
        if not values or values == [0]:
            return {0: "background", 1: "lesion"}
        marked = [value for value in values if value]
        ignored = self._ignored_value(marked)
        marked = [value for value in marked if value != ignored]
        if marked == [255, 65535]:
            marked = [65535]  # 8 and 16 bits
        ignore: _Meaning = {} if ignored is None else {255: "ignore"}
        if values[0] != 0:
            unknown: _Meaning = dict.fromkeys(values, "?")
            raise ask(
                self.folder,
                f"No mask in `{self.folder}` holds the value 0, only "
                f"{', '.join(map(str, values))}.",
                unknown | ignore,
            )
        perhaps_leaf = marked in ([1, 2], [128, 255], [127, 255])
        lines: _Meaning = {0: "background"}
        if len(marked) == 1 and self.channel == "gray":
            lines |= {"edges": "smoothed"}
        if len(marked) > 1:
            lines |= dict.fromkeys(marked, "?")
        looks = self._refuse_plant(marked[perhaps_leaf:], lines | ignore)
        if len(marked) == 1:
            both: _Meaning = {255: "lesion"} if marked == [65535] else {}
            return {0: "background", **both, marked[0]: "lesion", **ignore}
        if perhaps_leaf:
            leaf, lesion = marked
            if self._is_leaf(leaf, lesion, looks):
                return {0: "background", leaf: "leaf", lesion: "lesion", **ignore}
            raise ask(
                self.folder,
                f"The masks in `{self.folder}` hold the values "
                f"{', '.join(map(str, values))}, and nothing says what they mean: leaf and "
                "lesion, or two kinds of lesions.",
                lines | ignore,
            )
        named: _Meaning = {value: f"class {value}" for value in marked}
        return {0: "background", **named, **ignore}

    def _ignored_value(self, values: Sequence[int]) -> int | None:
        """Return 255 beside small ids; beside 128 it is the end of a scale.

        Raises:
            UsageError: If it covers more than all classes, and not most.
        """
        *marked, last = values
        if last != 255 or not marked or marked[-1] >= FAR_APART:
            return None
        px = dict(zip(self.stats.values.tolist(), self.stats.px.tolist(), strict=True))
        n_marked = sum(px[value] for value in marked)
        if 3 * n_marked < px[255] < px.get(0, 0):
            doubtful: _Meaning = dict.fromkeys([*marked, 255], "?")
            raise ask(
                self.folder,
                f"In the masks in `{self.folder}`, 255 covers {px[255]:,} pixels, and "
                f"{shorten(marked, 6)} only {n_marked:,}: it may be the lesion, or "
                "ignored.",
                {0: "background", **doubtful},
            )
        return last

    def _look(self, lesion_from: int | None) -> list[Look]:
        pairs = [(self.images[m], m) for m in self.stats.paths if m in self.images]
        step = max(1, len(pairs) // _LOOKED_AT)
        looks = (
            look_at(image, mask, self.channel, lesion_from) for image, mask in pairs[::step]
        )
        return [look for look in looks if look is not None]

    def _is_leaf(self, leaf: int, lesion: int, looks: Sequence[Look]) -> bool:
        """Return whether the images show that a value is the leaf, and another lesions."""
        with_leaf = sum(leaf in values for values in self.stats.in_mask)
        if not looks or with_leaf < 0.9 * len(self.stats.in_mask):
            return False
        beside_leaf = sum(look.sides.get((leaf, lesion), 0) for look in looks)
        beside_ground = sum(look.sides.get((0, lesion), 0) for look in looks)
        if beside_leaf < LEAF_BESIDE_LESION * (beside_leaf + beside_ground):
            return False
        gains = [
            look.green[leaf] - look.green[0]
            for look in looks
            if leaf in look.green and 0 in look.green
        ]
        greener = sum(gain > LEAF_GREENER for gain in gains)
        return bool(gains) and greener >= 0.6 * len(gains)

    def _refuse_plant(
        self, marked: Sequence[int], lines: _Meaning, *, lesion_from: int | None = None
    ) -> list[Look]:
        """Refuse marks that are the plant or the ground, and return what images show.

        Args:
            marked: Values that would be read as lesions.
            lines: The class file to propose, without these values; the ground is first.
            lesion_from: If stated, all values from this one on are marks of one kind.
        """
        looks = self._look(lesion_from)
        all_from = 1 << 16 if lesion_from is None else lesion_from
        groups = [[v] for v in marked] if lesion_from is None else [list(marked)]
        for group in groups:
            key = group[0] if lesion_from is None else 1
            greens = [
                (look.green[key], look.elsewhere[key])
                for look in looks
                if key in look.green
            ]
            covered = [
                sum(p for v, p in values.items() if v in group or v >= all_from)
                for values, size in zip(self.stats.in_mask, self.stats.sizes, strict=True)
                if size >= SMALLEST_MASK_PX
            ]
            plants, much = _count_plants(greens), sum(part > MUCH for part in covered)
            name = f"The value {group[0]}" if len(group) == 1 else "What is marked"
            if plants:
                raise ask_whether_plant(
                    self.folder,
                    f"{name} is greener than what is not marked in {plants} of "
                    f"{count_of(len(greens), 'image')}, as a plant is and no lesion.",
                    group,
                    lines,
                    inverted=False,
                )
            if 2 * much > len(covered):
                raise ask_whether_plant(
                    self.folder,
                    f"{name} covers more than a third of the image in {much} of "
                    f"{count_of(len(covered), 'mask')}.",
                    group,
                    lines,
                    inverted=len(group) == 1 and "?" not in lines.values(),
                )
        return looks

    def _are_numbers(
        self, values: Int[np.ndarray, " clear"], strays: Bool[np.ndarray, " n"]
    ) -> bool:
        """Return whether values number areas, and are no classes.

        Each value is one connected area, and the values of every mask are 1 to n with at
        least three different n; or there are more values than classes, most of them in
        one mask only. Classes that are drawn as one area each, and appear in one order,
        would be taken for numbers; so would four classes of which each image shows the
        first few. Where this is possible, it is asked.
        """
        marked = [v for v in values.tolist() if v]
        if strays.any() or len(marked) < 3:
            return False
        in_mask = [sorted(v for v in mask if v) for mask in self.stats.in_mask]
        in_mask = [present for present in in_mask if present]
        counts = {len(present) for present in in_mask}
        in_order = all(present[-1] == len(present) for present in in_mask)
        once = (self.stats.masks[self.stats.values > 0] == 1).mean()
        scattered = len(marked) > MOST_VALUES and once >= 0.9 and len(in_mask) >= 3
        if not (scattered or (in_order and len(counts) >= 2)):
            return False
        step = max(1, len(self.stats.paths) // _AREAS_COUNTED)
        areas = [
            n
            for path in self.stats.paths[::step]
            for n in areas_of_values(path, self.channel).values()
        ]
        if sum(n == 1 for n in areas) < 0.95 * len(areas):
            return False
        if scattered or (len(counts) >= 3 and len(marked) >= 4):
            return True
        raise ask(
            self.folder,
            f"The values {', '.join(map(str, marked))} of the masks in `{self.folder}` may "
            "be classes, or number single lesions: each is one area wherever it occurs, "
            "and every mask begins with 1.",
            {0: "background"} | dict.fromkeys(marked, "lesion"),
            "\n  or with the name of a class for each",
        )

    def _refuse_smoothed_classes(self) -> None:
        stats = self.stats
        solid = is_solid(stats)
        edges = ~solid & (2 * stats.between_px >= stats.px) & ~find_strays(stats)
        if solid.sum() >= 3 and edges.sum() >= 2:
            areas = shorten(stats.values[solid].tolist(), 6)
            raise UsageError(
                f"The masks in `{self.folder}` hold the values {areas}, and on their edges "
                f"{shorten(stats.values[edges].tolist(), 6)}, as smoothing leaves them "
                f"({count_of(int(stats.px[edges].sum()), 'pixel')}, for example in "
                f"`{stats.example[int(edges.argmax())].name}`).",
                needed="masks that were not smoothed: between three or more classes, a "
                "value on an edge may be another class",
                fix="export or resize the masks again, by the nearest value, without "
                "smoothing or antialiasing",
            )

    def _no_classes(self, n_values: int) -> UsageError:
        per_mask = [len(mask) for mask in self.stats.in_mask]
        worst = self.stats.paths[int(np.argmax(per_mask))]
        return UsageError(
            f"The mask `{worst}` holds {max(per_mask)} different values, and the masks of "
            f"its folder {n_values}.",
            needed="a map of class ids, with few values; this may be a photograph, or a "
            "mask of several classes that was smoothed or compressed with loss",
            fix="export the masks again without smoothing, as PNG, or state what the "
            "values mean in classes.yaml",
        )


def _count_plants(greens: Sequence[tuple[float, float]]) -> int:
    """Return in how many images the marks are the plant, 0 if not in most.

    Args:
        greens: Fraction of green pixels inside and outside the marks of each image.
    """
    if len(greens) < 3:
        return 0
    greener = sum(inside - outside > LEAF_GREENER for inside, outside in greens)
    median = float(np.median([inside - outside for inside, outside in greens]))
    if greener >= 0.8 * len(greens) and median >= PLANT_GREENER:
        return greener
    # A diseased leaf is not very green, but nothing else is green at all.
    alone = sum(inside >= SOME_GREEN and outside <= NO_GREEN for inside, outside in greens)
    return alone if alone >= max(3, 0.4 * len(greens)) else 0


def _threshold(first: int, top: int, low: str, high: str) -> _Meaning:
    return {value: low if value < first else high for value in range(top + 1)}


def _ignored(stats: ValueStats, strays: Bool[np.ndarray, " n"]) -> _Meaning:
    return dict.fromkeys(stats.values[strays].tolist(), "ignore")


def _strays(stats: ValueStats, strays: Bool[np.ndarray, " n"]) -> str:
    parts = [
        f"{value} on {count_of(px, 'pixel')} of {count_of(n, 'mask')} (`{path.name}`)"
        for value, px, n, path in zip(
            stats.values[strays].tolist(),
            stats.px[strays].tolist(),
            stats.masks[strays].tolist(),
            (stats.example[i] for i in np.flatnonzero(strays)),
            strict=True,
        )
    ]
    return f"stray values are ignored: {shorten(parts)}"


def _after_prefix(origin: str, text: str) -> str:
    prefix, _, rest = origin.partition(": ")
    return f"{prefix}: {text}{rest}"
