"""Which tool wrote an annotation file: those that are read, and those that are only named.

A file of a tool that is not read must be named: its images would otherwise look as if
nobody had annotated them.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

COCO, LABELME, CVAT = "COCO", "LabelMe", "CVAT for images"
LABEL_STUDIO = "Label Studio"
READ = frozenset({COCO, LABELME, CVAT})
"""Tools whose files have a reader of their own."""

_SETTINGS_KEYS = frozenset({"categories", "info"})


def tool_of_json(tree: object) -> str | None:
    """Return the tool that wrote the content of a JSON file; ``None`` if unknown."""
    if isinstance(tree, list):
        return _tool_of_list(tree)
    if not isinstance(tree, dict):
        return None
    keys = set(tree)
    if _are_lists(tree, "images", "annotations"):
        return COCO
    if _are_lists(tree, "shapes"):
        return LABELME
    if keys & {"_via_img_metadata", "_via_settings"} or _is_via(tree):
        return "VIA, the VGG Image Annotator"
    if "item" in keys and _are_lists(tree, "annotations"):
        return "V7 Darwin"
    if _are_lists(tree, "instances") and "metadata" in keys:
        return "SuperAnnotate"
    if _are_lists(tree, "items") and keys & {"categories", "dm_format_version"}:
        return "Datumaro"
    if _are_lists(tree, "objects"):
        return "ISAT" if "info" in keys else "Supervisely"
    if keys & {"classTitle", "data_row"}:
        return "Labelbox"
    if tree.get("type") == "FeatureCollection":
        return "GeoJSON, as QuPath writes it"
    if _are_lists(tree, "images") and "project_name" in keys:
        return "Hasty"
    if (
        "dataset" in keys
        and isinstance(tree["dataset"], dict)
        and "samples" in str(tree["dataset"].keys())
    ):
        return "Segments.ai"
    if keys <= _SETTINGS_KEYS and "categories" in keys:
        return "Label Studio's list of classes"
    if "labels" in keys and keys & {"numTraining", "channel_names", "modality"}:
        return "nnU-Net's description of a data set"
    return None


def _tool_of_list(entries: list[Any]) -> str | None:
    first = entries[0] if entries else None
    if not isinstance(first, dict):
        return None
    keys = set(first)
    if "data" in keys and keys & {"annotations", "completions"}:
        return LABEL_STUDIO
    if keys & {"data_row", "Labeled Data"}:
        return "Labelbox"
    if keys & {"data_units", "label_hash"}:
        return "Encord"
    if "image" in keys and _are_lists(first, "annotations"):
        return "CreateML"
    if "task_id" in keys or "brushlabels" in str(keys):
        return LABEL_STUDIO
    return None


def _are_lists(tree: dict[Any, Any], *names: str) -> bool:
    return all(isinstance(tree.get(name), list) for name in names)


def _is_via(tree: dict[Any, Any]) -> bool:
    first = next(iter(tree.values()), None)
    return isinstance(first, dict) and {"filename", "regions"} <= first.keys()


def tool_of_xml(path: Path) -> str | None:
    """Return the tool that wrote an XML file, by its first elements; ``None`` if unknown."""
    root = None
    try:
        for event, element in ET.iterparse(path, ("start", "end")):  # noqa: S314
            if root is None:
                root = element.tag
                continue
            if event == "end":
                continue
            if root == "annotations":
                if element.tag == "image":
                    return CVAT
                if element.tag == "track":
                    return "CVAT for video"
            elif root == "annotation":
                if element.tag == "bndbox":
                    return "Pascal VOC, with boxes"
                if element.tag == "polygon":
                    return "the LabelMe website"
            elif root in {"Annotations", "ASAP_Annotations"}:
                return "a pathology viewer (ASAP or ImageScope)"
            else:
                return None
    except (ET.ParseError, OSError, ValueError):
        return None
    return CVAT if root == "annotations" else None
