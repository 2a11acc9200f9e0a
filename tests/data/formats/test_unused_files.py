"""Every file of a folder that is not used is named."""

import pytest

from annotation_files import (
    assert_all_show,
    coco,
    corners,
    labelme,
    patch,
    read,
    save_images,
    save_mask,
    write_json,
    write_text,
)
from plantseg_next.data.formats import read_folder
from plantseg_next.errors import UsageError

# rule 3: every file that is not used is named


FOREIGN = {
    "VIA, the VGG Image Annotator": ("via_region_data.json", {"a.png7": {
        "filename": "a.png", "size": 7, "regions": []}}),
    "Supervisely": ("ann/a.png.json", {"size": {}, "objects": [], "tags": []}),
    "SuperAnnotate": ("a.png___objects.json", {"metadata": {}, "instances": []}),
    "V7 Darwin": ("a.json", {"version": "2.0", "item": {}, "annotations": []}),
    "Datumaro": ("annotations/default.json", {"info": {}, "categories": {}, "items": []}),
    "ISAT": ("a.json", {"info": {"description": "ISAT"}, "objects": []}),
    "Labelbox": ("export.json", [{"data_row": {"id": "x"}}]),
    "CreateML": ("_annotations.createml.json", [{"image": "a.png", "annotations": []}]),
    "Label Studio": ("project.json", [{"id": 1, "data": {}, "annotations": []}]),
    "Encord": ("labels.json", [{"label_hash": "x", "data_units": {}}]),
}  # fmt: skip


@pytest.mark.parametrize("tool", FOREIGN)
def test_annotations_of_a_tool_that_is_not_read_are_named(tmp_path, tool):
    folder = save_images(tmp_path / "d", "a.png", "b.png")
    name, tree = FOREIGN[tool]
    file = write_json(folder / name, tree)
    _, origin = read(folder)
    assert [(u.reason, u.files, u.harmless) for u in origin.unused] == [
        (f"annotations of {tool}", (str(file),), False)
    ]


def test_annotations_that_are_not_read_beside_masks_are_named(tmp_path):
    """After cvat-ai/cvat#8411: a video export is another format of the same name."""
    folder = save_images(tmp_path / "d", "images/a.png", "images/b.png")
    save_mask(folder / "masks/a.png", patch())
    save_mask(folder / "masks/b.png", patch())
    write_text(folder / "annotations.xml", "<annotations><track id='0'/></annotations>")
    boxes = "<annotation><object><bndbox/></object></annotation>"
    write_text(folder / "Annotations/a.xml", boxes)
    write_text(folder / "README.md", "leaves")
    write_text(folder / "photo.CR2", "raw")
    write_text(folder / "more.zip", "PK")
    _, origin = read(folder)
    reasons = {u.reason.split(":")[0]: (len(u.files), u.harmless) for u in origin.unused}
    assert reasons == {
        "annotations of CVAT for video": (1, False),
        "annotations of Pascal VOC, with boxes": (1, False),
        "photographs in the raw format of a camera": (1, False),
        "archives": (1, False),
        "descriptions, programs and settings": (1, True),
    }


def test_pictures_of_annotations_are_no_images(tmp_path):
    folder = save_images(tmp_path / "d", "a.jpg", "a.jpg___fuse.png")
    manifest, origin = read(folder)
    assert [row.image.name for row in manifest.rows] == ["a.jpg"]
    (unused,) = origin.unused
    assert unused.reason == "renderings of annotations by SuperAnnotate"


@pytest.mark.parametrize("name", ["photo.DNG", "photo.NEF", "photo.cr3"])
def test_photographs_in_a_raw_format_are_named(tmp_path, name):
    """After qarmin/czkawka#2007: a program skipped DNG files without a word."""
    folder = save_images(tmp_path / "d", "a.jpg")
    write_text(folder / name, "raw")
    _, origin = read(folder)
    (unused,) = origin.unused
    assert unused.reason == (
        "photographs in the raw format of a camera: export them as JPEG or TIFF"
    )


def test_project_of_via_is_named(tmp_path):
    """After matterport/Mask_RCNN#2609: the project of VIA instead of its annotations."""
    folder = save_images(tmp_path / "d", "a.jpg")
    write_json(folder / "via_project.json", {"_via_settings": {}, "_via_img_metadata": {}})
    _, origin = read(folder)
    assert [u.reason for u in origin.unused] == [
        "annotations of VIA, the VGG Image Annotator"
    ]


def test_coco_file_of_no_images_beside_labelme_is_named(tmp_path):
    """After pieterblok/maskal#9: a conversion left empty COCO files beside LabelMe's."""
    folder = save_images(tmp_path / "d", "a.png")
    labelme(folder / "a.json", ("rust", corners(), "polygon"))
    coco(folder / "train.json", [], [])
    manifest, origin = read(folder)
    assert_all_show(manifest, 1)
    assert [u.reason for u in origin.unused] == ["annotations of COCO"]


def test_results_of_this_program_are_left_out(tmp_path):
    folder = save_images(tmp_path / "d", "a.png", "out/overlays/a.png")
    write_text(folder / "out/severity.csv", "image")
    write_text(folder / "out/records.jsonl", "{}")
    manifest, origin = read(folder)
    assert [row.key for row in manifest.rows] == ["a"]
    (unused,) = origin.unused
    assert unused.reason == "folders with results of plantseg-next"
    with pytest.raises(UsageError, match="holds results of plantseg-next, no data set"):
        read_folder(folder / "out")


def test_pipes_and_dangling_links_are_named_and_not_opened(tmp_path):
    import os

    folder = save_images(tmp_path / "d", "a.png")
    os.mkfifo(folder / "annotations.xml")
    (folder / "gone.json").symlink_to(folder / "nowhere.json")
    (folder / "loop.json").symlink_to(folder / "loop.json")
    (folder / "moved.jpg").symlink_to(folder / "nowhere.jpg")
    manifest, origin = read(folder)
    assert [row.image.name for row in manifest.rows] == ["a.png", "moved.jpg"]
    assert {u.reason: len(u.files) for u in origin.unused} == {
        "pipes, devices and sockets": 1,
        "links that lead nowhere": 2,
    }
