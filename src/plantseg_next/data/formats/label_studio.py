"""Masks of Label Studio's "Brush labels to PNG": one file per annotation and label.

They are named by the numbers of task and annotation; only the export as JSON, which must be
beside them, says which image a task is of.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from plantseg_next.data.formats.folders import FolderFiles, is_image
from plantseg_next.data.formats.json_trees import read_tree
from plantseg_next.data.formats.mask_names import Tag, brush_name
from plantseg_next.data.formats.mask_pairs import TaggedMask
from plantseg_next.data.formats.names import ImageNames
from plantseg_next.data.formats.tools import LABEL_STUDIO, tool_of_json
from plantseg_next.errors import DataError, UsageError, shorten


@dataclass
class BrushMasks:
    """Masks of the tasks of an export.

    Args:
        of: Masks of each image that has some.
        empty: Images that were annotated, without a mask.
        tables: The JSON files that were used.
        replaced: Masks of earlier annotations of a task.
        unknown: Masks of tasks that are not in the files, or whose image is missing.
        missing: Names of images in the files that are not there.
    """

    of: dict[Path, list[TaggedMask]] = field(default_factory=dict)
    empty: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    replaced: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_brush_masks(
    files: FolderFiles, masks: Sequence[Path], images: Iterable[Path]
) -> BrushMasks:
    """Return the masks of each image.

    Of several annotations of one task, the last one counts.

    Args:
        files: All files of the data set, with the export as JSON.
        masks: Files for which ``brush_name`` is known.
        images: The images.

    Raises:
        UsageError: If there is no such export.
        DataError: If two exports state different images for a task.
    """
    result = BrushMasks()
    tasks = _tasks(files, result.tables)
    if not tasks:
        raise UsageError(
            f"The masks of `{files.root}` are named by Label Studio's numbers, as in "
            f"`{masks[0].name}`, which do not say whose masks they are.",
            needed="the export of the same project as JSON, which states the image of "
            "each task",
            fix="export the project again as JSON, and put the file beside the masks",
        )
    names = ImageNames(images, files.root)
    image_of = {number: _image_of(task, names) for number, task in tasks.items()}
    result.missing = names.missing
    by_task: dict[int, dict[int, list[Path]]] = {}
    for mask in masks:
        if name := brush_name(mask):
            by_task.setdefault(name.task, {}).setdefault(name.annotation, []).append(mask)
    for number, by_annotation in by_task.items():
        image = image_of.get(number)
        if image is None:
            result.unknown += [mask for own in by_annotation.values() for mask in own]
            continue
        annotations = _annotations(tasks[number])
        *earlier, last = sorted(
            by_annotation,
            key=lambda n: (list(annotations).index(n) if n in annotations else -1, n),
        )
        result.replaced += [mask for n in earlier for mask in by_annotation[n]]
        labels = _labels(annotations.get(last, {}))
        result.of.setdefault(image, []).extend(
            TaggedMask(mask, _tag(mask, labels)) for mask in by_annotation[last]
        )
    for number, task in tasks.items():
        image = image_of[number]
        if image is not None and image not in result.of and _is_empty(task):
            result.empty.append(image)
    return result


def _tasks(files: FolderFiles, tables: list[Path]) -> dict[int, Mapping[str, Any]]:
    tasks: dict[int, Mapping[str, Any]] = {}
    for path in files.ending(".json"):
        tree = read_tree(path)
        if tool_of_json(tree) != LABEL_STUDIO and not _is_short_export(tree):
            continue
        tables.append(path)
        for task in tree:
            number = task.get("id") if isinstance(task, dict) else None
            if not isinstance(number, int):
                continue
            known = tasks.get(number)
            if known is not None and _images(known) != _images(task):
                raise DataError(
                    f"`{path}` and another export state different images for task "
                    f"{number}: {shorten(_images(task))}, and {shorten(_images(known))}.",
                    needed="exports of one project",
                    fix="keep each project in a folder of its own",
                )
            tasks[number] = task
    return tasks


def _is_short_export(tree: object) -> bool:
    """Return whether this is Label Studio's JSON-MIN."""
    first = tree[0] if isinstance(tree, list) and tree else None
    return isinstance(first, dict) and {"id", "annotation_id"} <= first.keys()


def _images(task: Mapping[str, Any]) -> list[str]:
    """Return the values of a task that have the name of an image."""
    data = task.get("data")
    values = list(data.values()) if isinstance(data, dict) else list(task.values())
    return [
        value
        for value in values
        if isinstance(value, str)
        and ("?d=" in value or is_image(PurePosixPath(value.partition("?")[0])))
    ]


def _image_of(task: Mapping[str, Any], names: ImageNames) -> Path | None:
    for name in _images(task):
        image = names.find(name)
        if image is not None:
            return image
    upload = task.get("file_upload")
    return names.find(upload) if isinstance(upload, str) else None


def _annotations(task: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    stated = task.get("annotations", task.get("completions"))
    if not isinstance(stated, list):
        number = task.get("annotation_id")
        return {number: task} if isinstance(number, int) else {}
    entries = [entry for entry in stated if isinstance(entry, dict)]
    return {e["id"]: e for e in entries if isinstance(e.get("id"), int)}


def _is_empty(task: Mapping[str, Any]) -> bool:
    """Return whether somebody looked at the image of a task and marked nothing."""
    annotations = list(_annotations(task).values())
    return bool(annotations) and all(
        annotation.get("result") == [] and not annotation.get("was_cancelled")
        for annotation in annotations
    )


def _labels(annotation: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of an annotation by the ends of the names of their masks."""
    labels = {}
    results = annotation.get("result")
    for entry in results if isinstance(results, list) else ():
        value = entry.get("value") if isinstance(entry, dict) else None
        for kind in ("brushlabels", "labels"):
            stated = value.get(kind) if isinstance(value, dict) else None
            if isinstance(stated, list) and all(isinstance(n, str) for n in stated):
                text = "-".join(stated)
                labels[f"-{entry.get('from_name')}-{text}"] = text
    return labels


def _tag(mask: Path, labels: Mapping[str, str]) -> Tag:
    name = brush_name(mask)
    rest = f"-{name.rest}" if name else ""
    for end, label in labels.items():
        if rest.endswith(end):
            return Tag(label, "", True)
    _, mark, label = rest.rpartition("-tag-")
    return Tag(label if mark else rest.rpartition("-")[2], "", True)
