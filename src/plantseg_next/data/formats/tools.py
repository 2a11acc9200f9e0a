"""Which tool wrote an annotation file: those that are read, and those that are only named.

A file of a tool that is not read must be named: its images would otherwise look as if
nobody had annotated them.
"""

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

COCO, LABELME, CVAT = "COCO", "LabelMe", "CVAT for images"
LABEL_STUDIO = "Label Studio"
VIA = "VIA, the VGG Image Annotator"
_XML_TOOLS = {
    ("annotations", "image"): CVAT,
    ("annotations", "track"): "CVAT for video",
    ("annotation", "bndbox"): "Pascal VOC, with boxes",
    ("annotation", "polygon"): "the LabelMe website",
    ("ASAP_Annotations", "Annotation"): "ASAP",
    ("Annotations", "Annotation"): "Aperio ImageScope",
}
"""By the root of the file and an element in it."""

_OBJECTS: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
    ("COCO, captions", lambda tree: "caption" in _first_of(tree, "annotations")),
    ("COCO, panoptic", lambda tree: "segments_info" in _first_of(tree, "annotations")),
    ("COCO, key points", lambda tree: _are_key_points(_first_of(tree, "annotations"))),
    (COCO, lambda tree: _has_lists(tree, "images", "annotations")),
    (LABELME, lambda tree: _has_lists(tree, "shapes")),
    (VIA, lambda tree: "_via_img_metadata" in tree or "_via_settings" in tree),
    (VIA, lambda tree: {"filename", "regions"} <= _keys_of_first(tree)),
    ("V7 Darwin", lambda tree: "item" in tree and _has_lists(tree, "annotations")),
    ("SuperAnnotate", lambda tree: "metadata" in tree and _has_lists(tree, "instances")),
    (
        "Datumaro",
        lambda tree: (
            _has_lists(tree, "items")
            and bool({"categories", "dm_format_version"} & {*tree})
        ),
    ),
    ("ISAT", lambda tree: "info" in tree and _has_lists(tree, "objects")),
    ("Supervisely", lambda tree: _has_lists(tree, "objects")),
    ("Labelbox", lambda tree: bool({"data_row", "Labeled Data"} & {*tree})),
    ("QuPath (GeoJSON)", lambda tree: tree.get("type") == "FeatureCollection"),
    ("Hasty", lambda tree: "project_name" in tree and _has_lists(tree, "images")),
    ("Segments.ai", lambda tree: "samples" in _keys_of(tree.get("dataset"))),
    ("nnU-Net (its description)", lambda tree: "labels" in tree and "numTraining" in tree),
    (f"{LABEL_STUDIO} (its classes)", lambda tree: {*tree} == {"categories", "info"}),
)
_LISTS: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
    (LABEL_STUDIO, lambda entry: "data" in entry and _has_lists(entry, "annotations")),
    (LABEL_STUDIO, lambda entry: "data" in entry and _has_lists(entry, "completions")),
    (LABEL_STUDIO, lambda entry: "annotation_id" in entry and "image" in entry),
    ("Labelbox", lambda entry: bool({"data_row", "Labeled Data"} & {*entry})),
    ("Encord", lambda entry: bool({"data_units", "label_hash"} & {*entry})),
    ("CreateML", lambda entry: "image" in entry and _has_lists(entry, "annotations")),
    ("Ground Truth of SageMaker", lambda entry: "source-ref" in entry),
)


def tool_of_json(tree: object) -> str | None:
    """Return the tool that wrote the content of a JSON file; ``None`` if unknown."""
    if isinstance(tree, list):
        first, tools = (tree[0] if tree else None), _LISTS
    else:
        first, tools = tree, _OBJECTS
    if not isinstance(first, dict):
        return None
    return next((tool for tool, is_of in tools if is_of(first)), None)


def _has_lists(tree: dict[str, Any], *names: str) -> bool:
    return all(isinstance(tree.get(name), list) for name in names)


def _first_of(tree: dict[str, Any], name: str) -> set[str]:
    """Return the keys of the first entry of a list."""
    entries = tree.get(name)
    return _keys_of(entries[0]) if isinstance(entries, list) and entries else set()


def _are_key_points(keys: set[str]) -> bool:
    return "keypoints" in keys and "segmentation" not in keys


def _keys_of(tree: object) -> set[str]:
    return set(tree) if isinstance(tree, dict) else set()


def _keys_of_first(tree: dict[str, Any]) -> set[str]:
    return _keys_of(next(iter(tree.values()), None))


def tool_of_xml(root: ET.Element) -> str | None:
    """Return the tool that wrote an XML file, by its elements; ``None`` if unknown."""
    for element in root.iter():
        if tool := _XML_TOOLS.get((root.tag, element.tag)):
            return tool
    return CVAT if root.tag == "annotations" else None
