"""Summary of a data set: its labels, its lesions, and whether severity can be learned."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from pathlib import Path

from plantseg_next.data.manifest import SPLITS, Manifest
from plantseg_next.data.quality.inspect import ImageStats
from plantseg_next.data.quality.issues import Issue, SourceSummary, SplitLabels
from plantseg_next.data.quality.lesion_sizes import (
    MIN_ACROSS_PX,
    Components,
    LesionClass,
    lesion_classes,
)
from plantseg_next.data.tiling import shrink_scale
from plantseg_next.settings import DataSettings

LONG_SIDE_PX = DataSettings().long_side_px
"""Long side to which training reduces larger images, if no setting says otherwise."""


def sources_of(manifest: Manifest) -> Iterable[str]:
    """Return the names of the data sets, in the order of their rows."""
    return dict.fromkeys(row.source for row in manifest.rows)


def summary_of(
    manifest: Manifest, all_stats: Sequence[ImageStats], name: str
) -> SourceSummary:
    """Return the numbers of a data set."""
    own = [stats for stats in all_stats if stats.row.source == name]
    lesion_px: Counter[str] = Counter()
    annotated_px = 0
    for stats in own:
        if stats.mask is not None:
            lesion_px.update(stats.mask.lesion_px)
            annotated_px += stats.mask.annotated_px
    splits = Counter[str](stats.row.split or "not split" for stats in own)
    origin, coding = manifest.origins.get(name), manifest.codings.get(name)
    return SourceSummary(
        name=name,
        layout=origin.layout if origin else "a manifest",
        coding=coding.origin if coding else "",
        images=len(own),
        masks=sum(stats.row.mask is not None for stats in own),
        splits={n: splits[n] for n in (*SPLITS, "not split") if splits[n]},
        lesion_fraction={n: px / annotated_px for n, px in lesion_px.items()},
    )


def labels_of(all_stats: Sequence[ImageStats]) -> tuple[SplitLabels, ...]:
    """Return how many labels each split has that has an image."""
    splits: dict[str, list[ImageStats]] = defaultdict(list)
    for stats in all_stats:
        splits[stats.row.split or "not split"].append(stats)
    return tuple(
        SplitLabels(
            name,
            masks=sum(stats.mask is not None for stats in splits[name]),
            with_lesions=sum(bool(s.mask and s.mask.lesion_px) for s in splits[name]),
            image_labels=sum(
                s.row.mask is None and s.row.disease is not None for s in splits[name]
            ),
            unlabeled=sum(s.row.mask is None and not s.row.disease for s in splits[name]),
        )
        for name in (*SPLITS, "not split")
        if name in splits
    )


def classes_of(
    all_stats: Sequence[ImageStats], long_side_px: int | None
) -> tuple[LesionClass, ...]:
    """Return what the masks show of each lesion class, at the scale of training."""
    masks: dict[str, list[tuple[int, Components, float]]] = defaultdict(list)
    for stats in all_stats:
        if stats.mask is not None and stats.file is not None:
            scale = shrink_scale(stats.file.size_hw, long_side_px)
            for name, components in stats.mask.lesions.items():
                masks[name].append((stats.mask.lesion_px[name], components, scale))
    return lesion_classes(masks)


def too_small(classes: Sequence[LesionClass], long_side_px: int | None) -> Iterator[Issue]:
    """Yield the classes of which half of the lesions are too small to be learned."""
    for found in classes:
        if found.median_across_px >= MIN_ACROSS_PX:
            continue
        larger = "use the images at their full size, or photograph leaves from nearer"
        if found.shrunk and long_side_px is not None:
            wanted = 256 * ceil(long_side_px * MIN_ACROSS_PX / found.median_across_px / 256)
            larger = (
                f"train with `--set data.long_side_px={wanted}` or more, which takes "
                "longer, or cut the images into parts"
            )
        yield Issue(
            "lesions-too-small",
            "warning",
            f"Most lesions of the class {found.name} are under {MIN_ACROSS_PX:.0f} pixels "
            f"across at the training scale: {100 * found.too_small:.0f} % of "
            f"{found.lesions}; the median is {found.median_across_px:.1f} pixels. Few of "
            "them will be found.",
            larger,
        )


def severity_of(all_stats: Sequence[ImageStats]) -> str:
    """Return whether severity can be learned, and from how many images."""
    labeled = [(stats.row.split, stats.mask) for stats in all_stats if stats.mask]
    marked = [split for split, mask in labeled if mask.leaf_is_marked]
    text = f"Leaf marked in {len(marked)} of {len(labeled)} labeled images: severity "
    if any(split in ("train", None) for split in marked):
        return f"{text}possible."
    if marked:
        return f"{text}not possible (no training image marks the leaf)."
    if not labeled:
        return f"{text}not possible (no image has a mask)."
    return (
        f"{text}not possible (severity is lesion area over leaf area). Lesions are "
        "measured as a fraction of the image instead."
    )


def unused_files(manifest: Manifest) -> Iterator[Issue]:
    """Yield the files that were seen and not used: one issue for each reason."""
    harmful: dict[str, list[str]] = defaultdict(list)
    harmless: dict[str, list[str]] = defaultdict(list)
    for origin in manifest.origins.values():
        for unused in origin.unused:
            reasons = harmless if unused.harmless else harmful
            reasons[unused.reason] += unused.files
    for reason, files in harmful.items():
        yield Issue(
            "unused-files",
            "warning",
            f"Files that are not used, {reason}: {len(files)}. Images or labels in them "
            "are lost to training.",
            "convert or export them in a form that is read (docs/guide/data.md lists these "
            "forms), or move them out of the folder if they are not needed",
            tuple(map(Path, files)),
        )
    if harmless:
        kinds = "; ".join(f"{reason}: {len(files)}" for reason, files in harmless.items())
        yield Issue(
            "unused-files",
            "note",
            f"Other files that are not used; no image or label is lost. {kinds}.",
            files=tuple(Path(name) for files in harmless.values() for name in files),
        )
