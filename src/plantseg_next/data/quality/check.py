"""The data doctor: every defect of a data set, found before a run and not during it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from plantseg_next.data.class_names import alike
from plantseg_next.data.manifest import SPLITS, Manifest
from plantseg_next.data.quality.inspect import HARDLY_GREEN, ImageStats, inspect
from plantseg_next.data.quality.issues import (
    CheckReport,
    Issue,
    Severity,
    SourceSummary,
    shorten,
    sort_issues,
)
from plantseg_next.data.quality.leaks import find_leaks, same_scenes

MIN_SIDE_PX = 32
"""Images with a shorter side are below the coarsest scale of the network."""

FEW_LABELS = 20
"""Labeled training images below which a score is mostly luck."""

_FAILURES = {
    "unreadable-image": "Images that cannot be read",
    "unreadable-mask": "Masks that cannot be read",
    "jpeg-mask": "Masks that are JPEGs, whose compression invents classes",
    "size-mismatch": "Masks of another size than their image, turned or not",
    "unknown-mask-value": "Masks with a value whose meaning is not known",
}
# The published ratio is rounded, and of some images was taken before resizing.
_RATIO_TOLERANCE = 0.02


def check(
    manifest: Manifest, *, on_progress: Callable[[int, int], None] | None = None
) -> CheckReport:
    """Return everything that is wrong, doubtful or worth knowing about a manifest.

    Every file is decoded once. Errors are what would spoil training or judging: files
    that cannot be used, masks of another size or of unknown ids, the same image in
    two splits, nothing to learn from.

    Args:
        manifest: Of one or many data sets, with or without splits.
        on_progress: Is told after each row how many are done, and of how many.
    """
    facts = inspect(manifest, on_progress)
    pairs = same_scenes(facts)
    findings = [
        *_failures(facts),
        *find_leaks(facts, pairs),
        *_to_learn(manifest, facts),
        *_classes_in_splits(manifest, facts),
        *_pairing(manifest),
        *_stated(manifest, facts),
        *_names(manifest, pairs),
        *_masks(manifest, facts),
        *_images(facts),
    ]
    sources = tuple(_summary(manifest, facts, name) for name in _sources(manifest))
    same_scene = tuple((one.row.key, other.row.key) for one, other in pairs)
    return CheckReport(sources, sort_issues(findings), same_scene)


def _failures(facts: Sequence[ImageStats]) -> Iterator[Issue]:
    for code, what in _FAILURES.items():
        found = [
            (fact, failure)
            for fact in facts
            for failure in fact.failures
            if failure.code == code
        ]
        if not found:
            continue
        error = found[0][1].error
        yield Issue(
            code,
            "error",
            f"{what}: {len(found)}. The first: {error.came}",
            error.fix,
            tuple(
                fact.row.image if code == "unreadable-image" else _mask(fact)
                for fact, _ in found
            ),
        )


def _to_learn(manifest: Manifest, facts: Sequence[ImageStats]) -> Iterator[Issue]:
    usable = [f for f in facts if f.mask is not None and f.size_hw is not None]
    named = [fact for fact in facts if fact.row.disease is not None]
    if not usable and not named:
        yield Issue(
            "nothing-to-learn",
            "error",
            "No image has a usable mask or an image-level label. Predicting on these "
            "images is fine, learning from them alone is not.",
            "add masks of the same names in a folder `masks`, or sort the images "
            "into folders named after the disease",
        )
    elif not usable:
        yield Issue(
            "no-masks",
            "warning",
            f"No image has a mask. The image-level labels ({len(named)}) teach what "
            "is there, but hardly where.",
            "add a data set with masks, even a small one",
        )
    split = any(row.split == "train" for row in manifest.rows)
    learned = [f for f in usable if f.row.split == "train"] if split else usable
    if usable and len(learned) < FEW_LABELS:
        yield Issue(
            "few-labels",
            "warning",
            f"Few images with masks to train on: {len(learned)}.",
            f"label at least {FEW_LABELS}: fewer can teach a model that starts from the "
            "starter, but how good it is they cannot show",
        )
    undivided = [row for row in manifest.rows if row.split is None]
    if undivided:
        yield Issue(
            "no-splits",
            "note",
            "Images without a split into training, validation and test, which is "
            f"then drawn by group: {len(undivided)}.",
            "state a `split` column in index.csv to choose it yourself",
        )


def _classes_in_splits(manifest: Manifest, facts: Sequence[ImageStats]) -> Iterator[Issue]:
    present = {name: Counter[str]() for name in SPLITS}
    for fact in facts:
        if fact.mask is not None and fact.row.split is not None:
            present[fact.row.split].update(fact.mask.lesion_px.keys())
    if not present["train"]:
        return
    for name in ("train", "val", "test"):
        missing = [c for c in manifest.classes.lesions if not present[name][c]]
        has_rows = any(f.row.split == name and f.mask is not None for f in facts)
        if missing and has_rows:
            consequence = "never learned" if name == "train" else "not judged there"
            yield Issue(
                "class-missing-from-split",
                "warning",
                f"No mask in {name} shows {shorten(missing, 8)}: {consequence}.",
                "label more images of it, or merge it with a like class",
            )


def _pairing(manifest: Manifest) -> Iterator[Issue]:
    orphans = [n for o in manifest.origins.values() for n in o.masks_without_image]
    names = [n for o in manifest.origins.values() for n in o.names_without_image]
    if orphans:
        yield Issue(
            "mask-without-image",
            "warning",
            f"Masks that belong to no image, and are not used: {len(orphans)}.",
            "rename them after their images, or remove them",
            tuple(Path(name) for name in orphans),
        )
    if names:
        yield Issue(
            "name-without-image",
            "warning",
            f"Names in the index without an image: {shorten(names)}.",
            "copy the missing images, or remove the lines",
        )
    for source, origin in manifest.origins.items():
        for doubt in origin.doubts:
            yield Issue(
                "annotation-doubtful",
                "warning",
                f"In {source}: {doubt}.",
                "look at the file of annotations; what is left out teaches nothing",
            )
    bare = [
        row for row in manifest.rows if row.mask is None and row.source in manifest.codings
    ]
    if bare:
        yield Issue(
            "image-without-mask",
            "note",
            f"Images without a mask, which teach no pixels: {len(bare)}.",
            "",
            tuple(row.image for row in bare),
        )


def _stated(manifest: Manifest, facts: Sequence[ImageStats]) -> Iterator[Issue]:
    """Yield where the data set's own index contradicts its files; the files are used."""
    wrong_label, wrong_size, wrong_ratio = [], [], []
    for fact in facts:
        mask, label = fact.mask, fact.row.disease
        if mask and label in manifest.classes.lesions and mask.lesion_px:
            wrong_label += [] if label in mask.lesion_px else [fact]
        if not _agrees_on_size(fact):
            wrong_size.append(fact)
        if not _agrees_on_ratio(fact):
            wrong_ratio.append(fact)
    if wrong_label:
        first = wrong_label[0]
        shows = shorten(list(first.mask.lesion_px)) if first.mask else ""
        yield Issue(
            "label-contradicts-mask",
            "warning",
            "Images labeled with one disease whose mask shows another: "
            f"{len(wrong_label)}. The first: labeled {first.row.disease}, mask {shows}.",
            "mend the index or the mask; the mask teaches pixels, the label images",
            tuple(fact.row.image for fact in wrong_label),
        )
    if wrong_size:
        first = wrong_size[0]
        h, w = first.size_hw or (0, 0)
        yield Issue(
            "resolution-contradicts-index",
            "warning",
            f"Images of another size than the index states: {len(wrong_size)}. The "
            f"first: {w} x {h}, stated {first.row.stated['resolution']}.",
            "look whether these are the right files",
            tuple(fact.row.image for fact in wrong_size),
        )
    if wrong_ratio:
        yield Issue(
            "mask-ratio-contradicts-index",
            "warning",
            "Masks that cover another share of their image than the index states: "
            f"{len(wrong_ratio)}.",
            "look whether these are the right masks",
            tuple(_mask(fact) for fact in wrong_ratio),
        )


def _names(
    manifest: Manifest, pairs: Sequence[tuple[ImageStats, ImageStats]]
) -> Iterator[Issue]:
    """Yield names that may be one, and images that two rows call differently."""
    for one, other in alike(manifest):
        yield Issue(
            "names-alike",
            "warning",
            f"`{one}` and `{other}` are two classes. Perhaps one is misspelt.",
            "if they are one, say so in a file of names: `plantseg-next data names`",
        )
    apart = [p for p in pairs if _labels(p[0]) and _labels(p[1])]
    apart = [p for p in apart if not _labels(p[0]) & _labels(p[1])]
    if apart:
        first = [f"{f.row.key} is {shorten(sorted(_labels(f)))}" for f in apart[0]]
        yield Issue(
            "labels-disagree",
            "warning",
            f"Pairs of images that show the same scene under other labels: {len(apart)}."
            f" The first: {', '.join(first)}.",
            "decide which is right, or give both one name in a file of names",
            tuple(fact.row.image for pair in apart for fact in pair),
        )


def _labels(fact: ImageStats) -> set[str]:
    """Return everything that an image is said to show, but for "lesion"."""
    shown = set(fact.mask.lesion_px) - {"lesion"} if fact.mask else set()
    return shown | ({fact.row.disease} if fact.row.disease else set())


def _masks(manifest: Manifest, facts: Sequence[ImageStats]) -> Iterator[Issue]:
    masked = [(fact, fact.mask) for fact in facts if fact.mask is not None]
    for name, coding in manifest.codings.items():
        if coding.origin.startswith("inferred"):
            yield Issue(
                "coding-inferred",
                "note",
                f"The meaning of the mask values of {name} is {coding.origin}.",
            )
    empty = [f for f, m in masked if m.annotated_px and not m.lesion_px]
    yield from _told(
        [f for f in empty if f.row.disease == "healthy"],
        "healthy-mask",
        "note",
        "Masks without lesions of images labeled healthy, as it should be",
    )
    yield from _told(
        [f for f in empty if f.row.disease != "healthy"],
        "mask-without-lesion",
        "note" if all(f.row.disease is None for f in empty) else "warning",
        "Masks without lesions of images not labeled healthy",
        "label them healthy, draw the lesions, or remove the masks",
    )
    leafy = [(f, m) for f, m in masked if m.leaf_px is not None]
    small = [f for f, m in leafy if sum(m.lesion_px.values()) > (m.leaf_px or 0)]
    yield from _told(
        small,
        "leaf-smaller-than-lesions",
        "warning" if 2 * len(small) > len(leafy) else "note",
        f"Masks, of {len(leafy)}, with more lesion than healthy leaf",
        "look at a few: leaf and lesion may have changed places in classes.yaml",
    )
    yield from _told(
        [f for f, m in masked if m.was_rotated],
        "mask-before-turn",
        "note",
        "Masks that fit their image only as it was before its EXIF turn; they are "
        "turned with it",
    )
    yield from _told(
        [f for f, m in masked if m.mode == "P"],
        "palette-mask",
        "note",
        "Masks with a palette; its indices are the values, not its colors",
    )
    yield from _told(
        [f for f, m in masked if m.mode.startswith("I")],
        "16-bit-mask",
        "note",
        "Masks of 16 bits; their values are kept",
    )


def _images(facts: Sequence[ImageStats]) -> Iterator[Issue]:
    sized = [(fact, fact.size_hw) for fact in facts if fact.size_hw is not None]
    yield from _told(
        [fact for fact, size_hw in sized if min(size_hw) < MIN_SIDE_PX],
        "tiny-image",
        "warning",
        f"Images with a side below {MIN_SIDE_PX} pixels",
        "use the images at their full size",
    )
    for source in dict.fromkeys(fact.row.source for fact in facts):
        greens = [f for f in facts if f.row.source == source and f.green is not None]
        pale = [f for f in greens if f.green is not None and f.green < HARDLY_GREEN]
        if len(pale) >= len(greens) / 2:
            yield from _told(
                pale,
                "no-green",
                "warning",
                f"Images of {source} in which hardly anything is green, as if they "
                f"showed no plants, of {len(greens)}",
                "leave out what is not a plant: a run learns from whatever it is given",
            )
    yield from _told(
        [fact for fact in facts if fact.exif_orientation != 1],
        "exif-turn",
        "note",
        "Images that are stored turned (EXIF), and are read upright; other programs "
        "may show them otherwise",
    )


def _told(
    facts: Sequence[ImageStats], code: str, severity: Severity, what: str, fix: str = ""
) -> Iterator[Issue]:
    """Yield one finding about all these rows, if there are any."""
    if facts:
        files = tuple(fact.row.mask or fact.row.image for fact in facts)
        yield Issue(code, severity, f"{what}: {len(facts)}.", fix, files)


def _agrees_on_size(fact: ImageStats) -> bool:
    stated = re.fullmatch(r"(\d+)\s*[xX*]\s*(\d+)", fact.row.stated.get("resolution", ""))
    if not stated or fact.size_hw is None:
        return True
    w, h = int(stated[1]), int(stated[2])
    # A turned image may be stated as stored.
    return (h, w) == fact.size_hw or (fact.exif_orientation >= 5 and (w, h) == fact.size_hw)


def _agrees_on_ratio(fact: ImageStats) -> bool:
    text = fact.row.stated.get("mask ratio", "").removesuffix("%")
    if fact.mask is None or not fact.mask.annotated_px:
        return True
    try:
        stated = float(text)
    except ValueError:
        return True
    share = sum(fact.mask.lesion_px.values()) / fact.mask.annotated_px
    # Tables state it as a share or in per cent.
    return min(abs(stated - share), abs(stated / 100 - share)) <= _RATIO_TOLERANCE


def _mask(fact: ImageStats) -> Path:
    return fact.row.mask or fact.row.image


def _sources(manifest: Manifest) -> Iterable[str]:
    return dict.fromkeys(row.source for row in manifest.rows)


def _summary(manifest: Manifest, facts: Sequence[ImageStats], name: str) -> SourceSummary:
    own = [fact for fact in facts if fact.row.source == name]
    lesion_px: Counter[str] = Counter()
    annotated_px = 0
    for fact in own:
        if fact.mask is not None:
            lesion_px.update(fact.mask.lesion_px)
            annotated_px += fact.mask.annotated_px
    splits = Counter[str](fact.row.split or "not split" for fact in own)
    origin, coding = manifest.origins.get(name), manifest.codings.get(name)
    return SourceSummary(
        name=name,
        layout=origin.layout if origin else "a manifest",
        coding=coding.origin if coding else "",
        images=len(own),
        masks=sum(fact.row.mask is not None for fact in own),
        splits={n: splits[n] for n in (*SPLITS, "not split") if splits[n]},
        lesion_fraction={n: px / annotated_px for n, px in lesion_px.items()},
    )
