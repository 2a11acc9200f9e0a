"""Files of a data set that no reader has used, with the reason.

A folder may hold annotations of a tool that is not read, camera files, archives. None of
them may vanish unnoticed: half of a data set can be in them.
"""

from pathlib import Path

from plantseg_next.data.formats.folders import (
    RENDERED_ANNOTATIONS,
    RESULTS,
    FolderFiles,
    is_image,
)
from plantseg_next.data.formats.tools import tool_of_json, tool_of_xml
from plantseg_next.data.manifest import Manifest, UnusedFiles
from plantseg_next.errors import PlantSegError
from plantseg_next.files import read_head, read_text
from plantseg_next.json_files import load_json
from plantseg_next.xml_files import read_xml

_BY_ENDING = {
    "renderings of annotations by SuperAnnotate": RENDERED_ANNOTATIONS,
    "photographs in the raw format of a camera: export them as JPEG or TIFF": (
        *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".orf"),
        *(".rw2", ".raf", ".pef", ".srw", ".3fr", ".iiq", ".x3f", ".raw", ".gpr"),
    ),
    "archives: unpack them": (
        *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"),
    ),
    "videos: export their frames as images": (
        *(".mp4", ".mov", ".avi", ".mkv", ".m4v", ".wmv", ".webm", ".mts"),
    ),
    "arrays of numbers: save them as PNG": (
        *(".npy", ".npz", ".mat", ".h5", ".hdf5", ".pt", ".pkl", ".tfrecord", ".tfrecords"),
    ),
    "medical or microscopy images: export them as PNG or TIFF": (
        *(".nii", ".dcm", ".nrrd", ".mha", ".mhd", ".svs", ".ndpi", ".czi", ".lif"),
    ),
    "files of drawing programs: export them as PNG": (
        *(".psd", ".xcf", ".ai", ".svg", ".eps", ".kra", ".pdn", ".clip"),
    ),
    "spreadsheets: save what they say about the images as index.csv": (
        *(".xlsx", ".xls", ".ods", ".numbers"),
    ),
    "downloads that did not finish": (".part", ".crdownload", ".partial", ".download"),
}
_HARMLESS = {
    "descriptions, programs and settings": (
        *(".md", ".rst", ".pdf", ".doc", ".docx", ".html", ".htm", ".css", ".log", ".bib"),
        *(".py", ".ipynb", ".r", ".m", ".sh", ".bat", ".js", ".ini", ".toml", ".cfg"),
        *(".yaml", ".yml", ".license", ".url", ".lnk"),
    ),
    "files of the operating system": ("thumbs.db", "desktop.ini", ".ds_store"),
}
"""Files that hold neither images nor labels."""
_IMAGE_HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"RIFF", b"BM")
_MAX_TREE_BYTES = 1 << 26
"""Size up to which a file is read only to name its tool."""
_DOCUMENTS = (
    "readme",
    "license",
    "licence",
    "~$",
    "citation",
    "notice",
    "changelog",
    "requirements",
)


_TREES = {".json", ".ndjson", ".jsonl", ".geojson", ".xml"}
_TEXTS = {".txt", ".csv", ".tsv"}


def unused_files(manifest: Manifest, files: FolderFiles) -> tuple[UnusedFiles, ...]:
    """Return the files of a folder that are in no row and that no reader has used.

    Args:
        manifest: What was read.
        files: All files; ``used`` states what readers used beside images and masks.
    """
    used = set(files.used)
    for row in manifest.rows:
        used.add(row.image)
        if row.mask is not None:
            used.add(row.mask)
    for origin in manifest.origins.values():
        used |= {Path(name) for name in origin.masks_without_image}
    layout = next(iter(manifest.origins.values())).layout if manifest.origins else ""
    reasons: dict[tuple[str, bool], list[str]] = {}
    for path in files.files:
        if path not in used:
            reasons.setdefault(_reason(path, layout), []).append(str(path))
    for reason, paths in files.left_out.items():
        is_harmless = reason == RESULTS
        reasons.setdefault((reason, is_harmless), []).extend(map(str, paths))
    return tuple(
        UnusedFiles(reason, tuple(paths), harmless)
        for (reason, harmless), paths in sorted(reasons.items(), key=lambda r: r[0][1])
    )


def _reason(path: Path, layout: str) -> tuple[str, bool]:
    """Return why a file was not used, and whether nothing is lost with it."""
    name = path.name.lower()
    if name.startswith(_DOCUMENTS) and path.suffix.lower() not in _TREES:
        return "descriptions, programs and settings", True
    for table in (_HARMLESS, _BY_ENDING):
        for reason, endings in table.items():
            if name.endswith(endings):
                return reason, table is _HARMLESS
    if is_image(path):
        return f"images outside the folders of the layout ({layout})", False
    return _reason_by_content(path), False


def _reason_by_content(path: Path) -> str:
    ending = path.suffix.lower()
    if ending in _TREES:
        tool = _tool_of(path)
        return (
            f"annotations of {tool}"
            if tool
            else f"{ending[1:].upper()} files of no known tool"
        )
    if ending in _TEXTS:
        return f"{ending} files that are part of no known layout"
    if _is_image_by_content(path):
        return "images whose names do not end like those of images: rename them"
    return f"files of an unknown kind ({ending or 'no ending'})"


def _tool_of(path: Path) -> str | None:
    try:
        if path.suffix.lower() == ".xml":
            return tool_of_xml(read_xml(path))
        text = read_text(path, _MAX_TREE_BYTES)
        if path.suffix.lower() in {".ndjson", ".jsonl"}:
            first = next((line for line in text.splitlines() if line.strip()), "null")
            return tool_of_json([load_json(first)])
        return tool_of_json(load_json(text))
    except (ValueError, PlantSegError):
        return None


def _is_image_by_content(path: Path) -> bool:
    try:
        return read_head(path, 8).startswith(_IMAGE_HEADS)
    except PlantSegError:
        return False
