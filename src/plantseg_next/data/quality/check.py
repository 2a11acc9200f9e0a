"""Check of a data set before a run: all its defects, as issues."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from plantseg_next.data.class_names import alike
from plantseg_next.data.manifest import IN_DOUBT, SPLITS, Manifest, Row
from plantseg_next.data.quality.inspect import (
    HARDLY_GREEN,
    ImageFile,
    ImageStats,
    of_rows,
    shown_mask,
)
from plantseg_next.data.quality.issues import CheckReport, Issue, Severity, sort_issues
from plantseg_next.data.quality.leaks import find_leaks, same_scenes
from plantseg_next.data.quality.refusals import (
    Refusal,
    failures,
    refusals,
    refusals_of_files,
)
from plantseg_next.data.quality.scene_splits import Inspection, inspect_all
from plantseg_next.data.quality.summary import (
    LONG_SIDE_PX,
    classes_of,
    labels_of,
    severity_of,
    sources_of,
    summary_of,
    too_small,
    unused_files,
)
from plantseg_next.errors import shorten

FEW_LABELS = 20
"""Labeled training images below which metrics are mostly noise."""

MIN_SIDE_PX = 32
"""Images with a shorter side are smaller than the largest stride of the network."""

_WITHOUT_CLASS = {
    "train": "never trained",
    "val": "not evaluated there",
    "test": "not evaluated there",
}
_WITHOUT_LESION = {
    "train": "never trained",
    "val": "validations have no lesion Dice, and the best model cannot be chosen by it",
    "test": "not evaluated there",
}
# Published ratios are rounded, and some were computed before the image was resized.
_RATIO_TOLERANCE = 0.02


def check(
    manifest: Manifest,
    *,
    origin: object = "",
    drawn: Manifest | None = None,
    known: Inspection | None = None,
    long_side_px: int | None = LONG_SIDE_PX,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> CheckReport:
    """Return all errors, warnings and notes about a manifest.

    Every file is decoded once, unless it is in the index. Errors would invalidate
    training or evaluation: files that cannot be used, masks of another size or with
    unknown ids, the same image in two splits, no labels. What makes ``train`` refuse the
    data set is among them.

    Args:
        manifest: Of one or many data sets, with or without splits.
        origin: Name of the images in the text; default: the names of the data sets.
        drawn: The manifest as training divides it, with its groups; default: ``manifest``.
        known: What is known of the images, if they were inspected before.
        long_side_px: Long side to which training reduces larger images.
        on_progress: Called after each row with the number done and the total.
    """
    known = known or inspect_all(manifest, on_progress)
    all_stats = of_rows(known.all_stats, manifest.rows)
    pairs = same_scenes(all_stats, alike=known.alike)
    origin = origin or shorten(list(sources_of(manifest)))
    classes = classes_of(all_stats, long_side_px)
    issues = [
        *map(_of_refusal, failures(all_stats)),
        *find_leaks(all_stats, pairs),
        *_to_learn(manifest, drawn or manifest, all_stats, origin),
        *_classes_in_splits(manifest, all_stats),
        *_pairing(manifest),
        *unused_files(manifest),
        *_stated(manifest, all_stats),
        *_names(manifest, pairs),
        *_masks(manifest, all_stats),
        *too_small(classes, long_side_px),
        *_images(all_stats),
    ]
    return CheckReport(
        tuple(summary_of(manifest, all_stats, name) for name in sources_of(manifest)),
        sort_issues(issues),
        tuple((first.row.key, second.row.key) for first, second in pairs),
        classes,
        labels_of(all_stats),
        severity_of(all_stats),
    )


def _of_refusal(refusal: Refusal) -> Issue:
    error = refusal.error
    return Issue(refusal.code, "error", error.came, error.fix, refusal.files)


def _to_learn(
    manifest: Manifest, drawn: Manifest, all_stats: Sequence[ImageStats], origin: object
) -> Iterator[Issue]:
    """Yield what ``train`` refuses, beside failures, and what is doubtful of the labels."""
    has_splits = any(row.split == "train" for row in manifest.rows)
    divided = any(row.split in ("train", "val", "test") for row in manifest.rows)
    found = {r.code: r for r in refusals_of_files(manifest, all_stats, origin)}
    if divided or not len(manifest.labeled):
        found |= {r.code: r for r in refusals(drawn, origin)}
    known = {refusal.code for refusal in failures(all_stats)}
    yield from (_of_refusal(r) for code, r in found.items() if code not in known)
    usable = [f for f in all_stats if f.mask is not None and f.file is not None]
    learned = [f for f in usable if f.row.split == "train"] if has_splits else usable
    if usable and len(learned) < FEW_LABELS:
        yield Issue(
            "few-labels",
            "warning",
            f"Few images with masks to train on: {len(learned)}.",
            f"label at least {FEW_LABELS}: fewer can fine-tune the starter model, but "
            "metrics on so few are unreliable",
        )
    undivided = [row for row in manifest.rows if row.split is None]
    if undivided:
        yield Issue(
            "no-splits",
            "note",
            "Images without a split into training, validation and test, which is "
            f"then drawn by group: {len(undivided)}.",
            "to choose it yourself, state it in index.csv, in the columns `name` and "
            "`split`",
        )


def _classes_in_splits(
    manifest: Manifest, all_stats: Sequence[ImageStats]
) -> Iterator[Issue]:
    present = {name: Counter[str]() for name in SPLITS}
    for stats in all_stats:
        if stats.mask is not None and stats.row.split is not None:
            present[stats.row.split].update(stats.mask.lesion_px.keys())
    if not present["train"]:
        return  # it is refused
    for name in ("train", "val", "test"):
        missing = [c for c in manifest.classes.lesions if not present[name][c]]
        has_rows = any(f.row.split == name and f.mask is not None for f in all_stats)
        if missing and has_rows:
            consequence = _WITHOUT_CLASS[name] if present[name] else _WITHOUT_LESION[name]
            yield Issue(
                "class-missing-from-split",
                "warning",
                f"No mask in {name} shows {shorten(missing, 8)}: {consequence}.",
                "label more images of it, or merge it with a similar class",
            )


def _pairing(manifest: Manifest) -> Iterator[Issue]:
    orphans = [n for o in manifest.origins.values() for n in o.masks_without_image]
    names = [n for o in manifest.origins.values() for n in o.names_without_image]
    if orphans:
        yield Issue(
            "mask-without-image",
            "warning",
            f"Masks without an image, which are not used: {len(orphans)}.",
            "a mask needs the name of its image, apart from the ending and a suffix such "
            "as `_mask`; of several masks an image, make one with a value for each class",
            tuple(Path(name) for name in orphans),
        )
    if names:
        yield Issue(
            "name-without-image",
            "warning",
            f"Names of images that are listed, but missing: {shorten(names)}.",
            "add the missing images, or remove their names where they are listed",
        )
    for source, origin in manifest.origins.items():
        for doubt in origin.doubts:
            yield Issue(
                "annotation-doubtful",
                "warning",
                f"In {source}: {doubt}.",
                "check the annotation file; what is not used is not trained on",
            )
    bare = [
        row for row in manifest.rows if row.mask is None and row.source in manifest.codings
    ]
    if bare:
        yield Issue(
            "image-without-mask",
            "note",
            f"Images without a mask, beside images with one: {len(bare)}. Training uses "
            "them as unlabeled images.",
            "nothing; `--set semi.method=supervised` leaves them out",
            tuple(row.image for row in bare),
        )


def _stated(manifest: Manifest, all_stats: Sequence[ImageStats]) -> Iterator[Issue]:
    """Yield contradictions between the index of a data set and its files."""
    lesions = manifest.classes.lesions
    masked = [(stats, stats.mask.lesion_px) for stats in all_stats if stats.mask]
    wrong_label = [
        (stats, shown)
        for stats, shown in masked
        if shown and stats.row.disease in lesions and stats.row.disease not in shown
    ]
    if wrong_label:
        first, shown = wrong_label[0]
        yield Issue(
            "label-contradicts-mask",
            "warning",
            "Images labeled with one disease whose mask shows another: "
            f"{len(wrong_label)}. The first: labeled {first.row.disease}, mask "
            f"{shorten(list(shown))}.",
            "correct the label or the mask; segmentation is trained on the mask, "
            "classification on the label",
            tuple(stats.row.image for stats, _ in wrong_label),
        )
    readable = [(stats, stats.file) for stats in all_stats if stats.file]
    wrong_size = [
        (s, file.size_hw) for s, file in readable if not _agrees_on_size(s.row, file)
    ]
    if wrong_size:
        first, (h, w) = wrong_size[0]
        yield Issue(
            "resolution-contradicts-index",
            "warning",
            f"Images of another size than the index states: {len(wrong_size)}. The "
            f"first: {w} x {h}, stated {first.row.stated['resolution']}.",
            "check whether these are the right files",
            tuple(stats.row.image for stats, _ in wrong_size),
        )
    yield from _issue(
        [stats for stats in all_stats if not _agrees_on_ratio(stats)],
        "mask-ratio-contradicts-index",
        "warning",
        "Masks that cover another fraction of their image than the index states",
        "check whether these are the right masks",
    )


def _names(
    manifest: Manifest, pairs: Sequence[tuple[ImageStats, ImageStats]]
) -> Iterator[Issue]:
    """Yield names that may be the same class, and duplicates with different labels."""
    for name, other in alike(manifest):
        yield Issue(
            "names-alike",
            "warning",
            f"`{name}` and `{other}` are two classes. One may be misspelled.",
            "if they are the same, map them to one name in a file of class names: "
            "`plantseg-next data class-names`",
        )
    differing = [p for p in pairs if _labels(p[0]) and _labels(p[1])]
    differing = [p for p in differing if not _labels(p[0]) & _labels(p[1])]
    if differing:
        first = [f"{f.row.key} is {shorten(sorted(_labels(f)))}" for f in differing[0]]
        yield Issue(
            "labels-disagree",
            "warning",
            f"Pairs of images of the same scene with different labels: {len(differing)}."
            f" The first: {', '.join(first)}.",
            "correct the wrong label, or map both to one name in a file of class names",
            tuple(stats.row.image for pair in differing for stats in pair),
        )


def _labels(stats: ImageStats) -> set[str]:
    """Return the labels and lesion classes of an image, without "lesion"."""
    shown = set(stats.mask.lesion_px) - {"lesion"} if stats.mask else set()
    return shown | ({stats.row.disease} if stats.row.disease else set())


def _masks(manifest: Manifest, all_stats: Sequence[ImageStats]) -> Iterator[Issue]:
    masked = [(stats, stats.mask) for stats in all_stats if stats.mask is not None]
    for name, coding in manifest.codings.items():
        if coding.origin.startswith("inferred"):
            in_doubt = coding.origin.startswith(IN_DOUBT)
            yield Issue(
                "coding-inferred",
                "warning" if in_doubt else "note",
                f"The meaning of the mask values of {name} is {coding.origin}.",
                "look at some masks, and state what the values mean in classes.yaml"
                if in_doubt
                else "",
            )
    empty = [f for f, m in masked if m.annotated_px and not m.lesion_px]
    yield from _issue(
        [f for f in empty if f.row.disease == "healthy"],
        "healthy-mask",
        "note",
        "Masks without lesions of images labeled healthy, as expected",
    )
    yield from _issue(
        [f for f in empty if f.row.disease != "healthy"],
        "mask-without-lesion",
        "note" if all(f.row.disease is None for f in empty) else "warning",
        "Masks without lesions of images not labeled healthy",
        "label them healthy, draw the lesions, or remove the masks",
    )
    leafy = [(f, m) for f, m in masked if m.leaf_px is not None]
    small = [f for f, m in leafy if sum(m.lesion_px.values()) > (m.leaf_px or 0)]
    yield from _issue(
        small,
        "leaf-smaller-than-lesions",
        "warning" if 2 * len(small) > len(leafy) else "note",
        f"Masks, of {len(leafy)}, with more lesion than healthy leaf",
        "check some of them: leaf and lesion may be swapped; classes.yaml states which "
        "value is which",
    )
    yield from _issue(
        [f for f, m in masked if m.was_rotated],
        "mask-not-rotated",
        "note",
        "Masks that fit their image only before its EXIF orientation is applied, or "
        "are said to; they are rotated with it",
    )
    either_way = [f for f, m in masked if m.lies_either_way]
    if either_way:
        yield Issue(
            "exif-ambiguous",
            "warning",
            "Images with an EXIF orientation whose mask or outlines would fit them both "
            "as stored and upright; the annotation is taken as made on the upright "
            f"image: {len(either_way)}.",
            "look at some of them; if they were annotated as stored, give "
            "`--exif as-stored` (or NAME=as-stored for one data set of several), "
            "otherwise `--exif upright`",
            tuple(stats.row.image for stats in either_way),
        )
    yield from _issue(
        [f for f, m in masked if m.mode == "P"],
        "palette-mask",
        "note",
        "Masks with a palette; the indices are the values, not the colors",
    )
    yield from _issue(
        [f for f, m in masked if m.mode.startswith("I")],
        "16-bit-mask",
        "note",
        "Masks of 16 bits; their values are kept",
    )


def _images(all_stats: Sequence[ImageStats]) -> Iterator[Issue]:
    readable = [(stats, stats.file) for stats in all_stats if stats.file is not None]
    yield from _image_issue(
        [stats for stats, file in readable if min(file.size_hw) < MIN_SIDE_PX],
        "tiny-image",
        "warning",
        f"Images with a side below {MIN_SIDE_PX} pixels",
        "use the images at their full size",
    )
    for source in dict.fromkeys(stats.row.source for stats in all_stats):
        own = [(stats, file) for stats, file in readable if stats.row.source == source]
        pale = [stats for stats, file in own if file.green < HARDLY_GREEN]
        if len(pale) >= len(own) / 2:
            yield from _image_issue(
                pale,
                "no-green",
                "warning",
                f"Images of {source} with hardly any green pixels, which may not show "
                f"plants, of {len(own)}",
                "remove images that do not show plants: all images are trained on",
            )
    yield from _image_issue(
        [stats for stats, file in readable if file.exif_orientation != 1],
        "exif-orientation",
        "note",
        "Images with an EXIF orientation, which are read upright; other programs may "
        "show them rotated",
    )


def _issue(
    all_stats: Sequence[ImageStats], code: str, severity: Severity, what: str, fix: str = ""
) -> Iterator[Issue]:
    """Yield one issue about the masks of all these rows, if there are any."""
    if all_stats:
        files = tuple(shown_mask(stats.row) for stats in all_stats)
        yield Issue(code, severity, f"{what}: {len(all_stats)}.", fix, files)


def _image_issue(
    all_stats: Sequence[ImageStats], code: str, severity: Severity, what: str, fix: str = ""
) -> Iterator[Issue]:
    """Yield one issue about the images of all these rows, if there are any."""
    images = tuple(stats.row.image for stats in all_stats)
    for issue in _issue(all_stats, code, severity, what, fix):
        yield replace(issue, files=images)


def _agrees_on_size(row: Row, file: ImageFile) -> bool:
    stated = re.fullmatch(r"(\d+)\s*[xX*]\s*(\d+)", row.stated.get("resolution", ""))
    if not stated:
        return True
    w, h = int(stated[1]), int(stated[2])
    # The index may state the size before the EXIF orientation.
    return (h, w) == file.size_hw or (file.exif_orientation >= 5 and (w, h) == file.size_hw)


def _agrees_on_ratio(stats: ImageStats) -> bool:
    text = stats.row.stated.get("mask ratio", "").removesuffix("%")
    if stats.mask is None or not stats.mask.annotated_px:
        return True
    try:
        stated = float(text)
    except ValueError:
        return True
    fraction = sum(stats.mask.lesion_px.values()) / stats.mask.annotated_px
    # Tables state it as a fraction or in percent.
    return min(abs(stated - fraction), abs(stated / 100 - fraction)) <= _RATIO_TOLERANCE
