"""Which images a person should look at: masks that look wrong, and doubtful labels.

Shifted, swapped and inverted masks fit their image badly. How well a good mask fits depends
on the data set, so an image is compared with the others of its data set. The scores sort
images for a person to look at; nothing is decided by them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.data.quality.inspect import ImageStats
from plantseg_next.data.quality.mask_fit import Fit, fit_of, read_masks
from plantseg_next.errors import PlantSegError

MOST_COMPARED = 3000
"""Images whose masks are compared with them; of more, so many are chosen by a hash."""
MOST_OF_A_KIND = 4
"""Images that are shown for one reason that is no comparison of mask and image."""
MOST_SHIFTED = 0.18
"""Shift, as a fraction of the long side, above which the mask is said to fit badly."""

_THREADS = 2
Doubt = tuple[float, str]
"""Score and reason."""


@dataclass(frozen=True)
class Suspect:
    """An image that a person should look at.

    Args:
        stats: The image.
        score: Larger is worse.
        reasons: Why, worst first.
    """

    stats: ImageStats
    score: float
    reasons: tuple[str, ...]


def find_suspects(
    manifest: Manifest,
    all_stats: Sequence[ImageStats],
    pairs: Sequence[tuple[ImageStats, ImageStats]],
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Suspect]:
    """Return the images that a person should look at, worst first.

    Args:
        manifest: The images, in their splits.
        all_stats: Statistics of its rows.
        pairs: Images of one scene.
        on_progress: Called after each mask that is compared with its image.
    """
    doubts: dict[str, list[Doubt]] = defaultdict(list)
    masked = [s for s in all_stats if s.mask is not None and s.file is not None]
    masked.sort(key=lambda stats: sha256(stats.row.key.encode(errors="replace")).digest())
    compared = masked[:MOST_COMPARED]
    fits: list[Fit | None] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for fit in pool.map(lambda stats: _fit_of_row(stats.row, manifest), compared):
            fits.append(fit)
            on_progress(len(fits), len(compared))
    for source in dict.fromkeys(stats.row.source for stats in compared):
        own = [
            (stats, fit)
            for stats, fit in zip(compared, fits, strict=True)
            if fit is not None and stats.row.source == source
        ]
        for (stats, _), found in zip(
            own, _doubts_of_fits([f for _, f in own]), strict=True
        ):
            doubts[stats.row.key] += found
    for key, doubt in _doubts_of_labels(all_stats, pairs):
        doubts[key].append(doubt)
    suspects = []
    for stats in all_stats:
        if stats.file is not None and (
            found := sorted(doubts[stats.row.key], reverse=True)
        ):
            reasons = tuple(reason for _, reason in found)
            suspects.append(Suspect(stats, sum(score for score, _ in found), reasons))
    return sorted(suspects, key=lambda suspect: (-suspect.score, suspect.stats.row.key))


def _fit_of_row(row: Row, manifest: Manifest) -> Fit | None:
    try:
        return fit_of(*read_masks(row, manifest))
    except PlantSegError:
        return None


@dataclass(frozen=True)
class _Usual:
    """The usual value in a data set, and a robust standard deviation."""

    value: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float], *, least: float) -> "_Usual":
        if not values:
            return cls(0.0, least)
        median = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(np.array(values) - median)))
        return cls(median, max(spread, least))

    def distance(self, value: float) -> float:
        """Return by how many standard deviations a value is above the usual one."""
        return (value - self.value) / self.spread


def _doubts_of_fits(fits: Sequence[Fit]) -> list[list[Doubt]]:
    """Return what is doubtful of each mask of a data set."""
    edge = _Usual.of([fit.edge for fit in fits if fit.edge is not None], least=0.8)
    area = _Usual.of([np.log(fit.lesion) for fit in fits if fit.lesion > 0], least=0.5)
    green = _Usual.of([f.greener for f in fits if f.greener is not None], least=8.0)
    return [
        [*_of_borders(fit, edge), *_of_colors(fit, green), *_of_area(fit, area)]
        for fit in fits
    ]


def _of_borders(fit: Fit, usual: _Usual) -> Iterator[Doubt]:
    if fit.edge is None:
        return
    below = -usual.distance(fit.edge)
    if fit.gain > 1 and fit.edge + fit.gain > 2:
        score = min(fit.gain + max(below, 0), 8.0)
        if np.hypot(*fit.shift) < MOST_SHIFTED:
            where = _direction(*fit.shift)
            yield score, f"The mask would fit the image better {where}."
        else:
            yield score, "The mask may be that of another image: it lies on few edges."
    elif below > 1.5 or fit.edge < 0.5:
        score = min(max(below, 1.0), 6.0)
        yield score, "The borders of the mask lie on few edges of the image."


def _of_colors(fit: Fit, usual: _Usual) -> Iterator[Doubt]:
    if fit.greener is None:
        return
    above = usual.distance(fit.greener)
    if fit.lesion > 0.5 and fit.greener > 0:
        yield 8.0, "Most of the image is marked, and it is greener than the rest: inverted?"
    elif fit.greener > 4 and (above > 2.5 or usual.value < -10):
        yield min(1 + above, 6.0), "What is marked as lesion is greener than what is not."


def _of_area(fit: Fit, usual: _Usual) -> Iterator[Doubt]:
    distance = usual.distance(float(np.log(fit.lesion))) if fit.lesion > 0 else 0.0
    if distance > 2.5:
        yield min(distance, 6.0), "Unusually much is marked as lesion."
    elif distance < -3.5:
        yield 1.0, "Unusually little is marked as lesion."
    if fit.off_leaf is not None and fit.off_leaf > 0.1:
        yield 2 + 4 * fit.off_leaf, "Lesions are marked outside the leaf."


def _direction(down: float, right: float) -> str:
    words = []
    for amount, positive, negative in ((right, "right", "left"), (down, "down", "up")):
        if abs(amount) >= 0.01:
            words.append(
                f"{100 * abs(amount):.0f} % {positive if amount > 0 else negative}"
            )
    return "moved " + " and ".join(words or ["a little"])


def _doubts_of_labels(
    all_stats: Sequence[ImageStats], pairs: Sequence[tuple[ImageStats, ImageStats]]
) -> Iterator[tuple[str, Doubt]]:
    """Yield the doubts that need no comparison, and whose: a few of each kind."""
    shown = {name for stats in all_stats if stats.mask for name in stats.mask.lesion_px}
    n_of_kind: dict[str, int] = defaultdict(int)
    found = [(stats, doubt) for stats in all_stats for doubt in _of_row(stats, shown)]
    found += [item for pair in pairs for item in _of_scene(*pair)]
    for stats, (kind, score, reason) in found:
        n_of_kind[kind] += 1
        if n_of_kind[kind] <= MOST_OF_A_KIND:
            yield stats.row.key, (score, reason)


def _of_row(stats: ImageStats, shown: set[str]) -> Iterator[tuple[str, float, str]]:
    """Yield kind, score and reason of the doubts of one image."""
    mask, disease = stats.mask, stats.row.disease
    for failure in stats.failures:
        if failure.code != "unreadable-image":
            yield failure.code, 9.0, failure.error.came
    if mask is None:
        return
    if mask.lesion_px and disease == "healthy":
        yield "healthy", 5.0, "Labeled healthy, and a lesion is marked."
    elif mask.lesion_px and disease in shown and disease not in mask.lesion_px:
        yield "label", 5.0, f"Labeled {disease}, and another class is marked."
    if stats.file is not None and stats.file.exif_orientation != 1:
        height, width = stats.file.size_hw
        if stats.file.exif_orientation < 5 or height == width:
            yield (
                "exif",
                3.0,
                "Stored rotated or mirrored: its size does not show whether the mask was "
                "drawn on the upright image.",
            )


def _of_scene(
    first: ImageStats, second: ImageStats
) -> Iterator[tuple[ImageStats, tuple[str, float, str]]]:
    """Yield the doubts of two images of one scene."""
    splits = {first.row.split, second.row.split} - {None, "unlabeled"}
    classes = [set(s.mask.lesion_px) if s.mask else set() for s in (first, second)]
    for stats, other in ((first, second), (second, first)):
        scene = f"Shows the scene of {other.row.key}"
        if len(splits) > 1:
            yield stats, ("splits", 4.0, f"{scene}, which is in {other.row.split}.")
        if all(classes) and not classes[0] & classes[1]:
            yield stats, ("classes", 5.0, f"{scene}, where another class is marked.")
