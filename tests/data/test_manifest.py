import json
from dataclasses import replace
from pathlib import Path

import pytest

from plantseg_next.data.manifest import (
    Manifest,
    MaskCoding,
    Origin,
    Row,
    common_classes,
    merge,
)
from plantseg_next.errors import DataError, UsageError
from plantseg_next.structures import ClassMap

CODING = MaskCoding({0: "background", 1: "leaf", "#ff0000": "rust"}, True, "test")


def manifest_of(source: str, folder: Path, coding: MaskCoding = CODING) -> Manifest:
    rows = (
        Row("a", folder / "ä 1.jpg", source, folder / "a.png", "train", "g", "rust"),
        Row("b", folder / "b.jpg", source, stated={"severity": "3"}, sha256="0f"),
    )
    codings = {source: coding}
    origins = {source: Origin("test", ("left.png",), ("lost",))}
    return Manifest(rows, common_classes(rows, codings), codings, origins)


def test_manifest_write_read_round_trip(tmp_path):
    manifest = manifest_of("s", tmp_path.resolve())
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == manifest


def test_manifest_relative_paths_are_relative_to_its_folder(tmp_path):
    manifest_of("s", tmp_path).write(tmp_path / "manifest.json")
    table = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    table["rows"][1]["image"] = "deeper/b.jpg"
    (tmp_path / "manifest.json").write_text(json.dumps(table), "utf-8")
    rows = Manifest.read(tmp_path / "manifest.json").rows
    assert rows[1].image == tmp_path / "deeper" / "b.jpg"


def test_manifest_with_a_class_stated_twice_is_refused(tmp_path):
    manifest_of("s", tmp_path).write(tmp_path / "manifest.json")
    table = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    table["classes"]["lesions"] *= 2
    (tmp_path / "manifest.json").write_text(json.dumps(table), "utf-8")
    with pytest.raises(DataError, match="`classes`: lesions states rust more than once"):
        Manifest.read(tmp_path / "manifest.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "leaf"])
def test_manifest_read_invalid_file_is_refused(tmp_path, text):
    (tmp_path / "m.json").write_text(text, "utf-8")
    with pytest.raises(DataError, match="is not a manifest"):
        Manifest.read(tmp_path / "m.json")


def test_manifest_read_newer_format_is_refused(tmp_path):
    (tmp_path / "m.json").write_text('{"format": 99}', "utf-8")
    with pytest.raises(DataError, match=r"written by a newer version \(format 99\)"):
        Manifest.read(tmp_path / "m.json")


FORMAT_1 = {
    "format": 1,
    "classes": {"lesions": ["rust"], "diseases": [], "has_leaf": True},
    "codings": {
        "s": {
            "meaning": [[0, "background"], [1, "leaf"], ["#ff0000", "rust"]],
            "marks_leaf": True,
            "origin": "test",
        }
    },
    "origins": {"s": {"layout": "x", "masks_without_image": [], "names_without_image": []}},
    "rows": [
        {"key": "a", "image": "ä 1.jpg", "source": "s", "split": "unlabelled"},
        {"key": "b", "image": "/far/b.jpg", "source": "s", "mask": "b.png", "group": "g"},
    ],
}


def test_manifest_of_format_1_is_read_and_its_old_split_renamed(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps(FORMAT_1), "utf-8")
    manifest = Manifest.read(tmp_path / "m.json")
    assert manifest.codings == {"s": CODING}
    assert manifest.classes == ClassMap(("rust",), (), has_leaf=True)
    assert manifest.rows == (
        Row("a", tmp_path / "ä 1.jpg", "s", split="unlabeled"),
        Row("b", Path("/far/b.jpg"), "s", tmp_path / "b.png", group="g"),
    )


def test_manifest_that_contradicts_itself_is_refused(tmp_path):
    path = tmp_path / "m.json"
    table = FORMAT_1 | {"classes": {"lesions": ["rust"], "diseases": ["d"]}}
    first = {"key": "a", "image": "a.jpg", "source": "s", "mask": "a.png"}
    other = {"key": "b", "image": "b.jpg", "source": "s", "mask": "b.png"}
    table["rows"] = [first, other | {"source": "t", "image": "a.jpg", "mask": None}]
    path.write_text(json.dumps(table))
    assert len(Manifest.read(path)) == 2  # two sources may share an image
    for change, why in (
        ({"key": "a"}, r"`.*a\.jpg` and `.*b\.jpg` have one key"),
        ({"image": "a.jpg"}, "have one image"),
        ({"image": "a.jpg", "mask": "a.png", "split": "test"}, "have one image"),
        ({"mask": "a.png"}, "have one mask"),
        ({"key": ""}, r"the row of `.*b\.jpg` has no key"),
        ({"disease": "mold"}, "the row `b` has the unknown label `mold`"),
        ({"source": "t"}, "the masks of the source `t` have no meaning"),
    ):
        table["rows"] = [first, other | change]
        path.write_text(json.dumps(table))
        with pytest.raises(DataError, match=rf"m\.json` contradicts itself: .*{why}") as no:
            Manifest.read(path)
        assert no.value.needed == "a manifest as this program writes it"
        assert no.value.fix.startswith("use the folder of images instead")


@pytest.mark.parametrize(
    ("meaning", "why"),
    [
        ([[0, "background"], [1, "leaf"], [1, "rust"]], "1 is stated twice"),
        ([[0, "background"], [-1, "rust"]], "-1 is neither a mask value nor a color"),
        ([[65_536, "rust"]], "65536 is neither a mask value nor a color"),
        ([["red", "rust"]], "'red' is neither a mask value nor a color"),
        ([["#FF0000", "rust"]], "'#FF0000' is neither a mask value nor a color"),
        ([[True, "rust"]], "True is neither a mask value nor a color"),
        ([[1, 2]], "Input should be a valid string"),
        ([[1]], "is not a manifest"),
        (5, "is not a manifest"),
    ],
)
def test_manifest_with_a_value_that_no_mask_has_is_refused(tmp_path, meaning, why):
    table = json.loads(json.dumps(FORMAT_1))
    table["codings"]["s"]["meaning"] = meaning
    (tmp_path / "m.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=why):
        Manifest.read(tmp_path / "m.json")


def test_manifest_with_more_classes_than_a_mask_can_hold_is_refused(tmp_path):
    names = [f"class {i}" for i in range(255)]
    table = FORMAT_1 | {"classes": {"lesions": ["rust", *names]}}
    (tmp_path / "m.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"lesions states 256 names, and at most 254"):
        Manifest.read(tmp_path / "m.json")
    codings = {
        source: MaskCoding(
            {i: f"{source} {i}" for i in range(1, 200)}, marks_leaf=False, origin=""
        )
        for source in "st"
    }
    rows = [Row(source, Path(source), source) for source in "st"]
    assert len(common_classes(rows[:1], codings).lesions) == 199
    with pytest.raises(DataError, match="The data sets name 398 lesion classes"):
        common_classes(rows, codings)


def test_images_outside_of_the_folders_are_listed(tmp_path):
    a = tmp_path / "a"
    a.mkdir()
    images = [a / "1.jpg", a / ".." / "b" / "2.jpg", Path("/x.jpg")]
    rows = tuple(Row(str(i), image, "s") for i, image in enumerate(images))
    manifest = Manifest(rows, ClassMap(()), {})
    assert manifest.outside([a]) == tuple(images[1:])
    assert manifest.outside([a / "manifest.json"]) == tuple(images[1:])
    assert manifest.outside([tmp_path, Path("/")]) == ()


def test_manifest_with_a_path_that_is_none_is_refused(tmp_path):
    for image in (5, "", "a\0.jpg", None, ["a.jpg"]):
        rows = [FORMAT_1["rows"][0] | {"image": image}]
        (tmp_path / "m.json").write_text(json.dumps(FORMAT_1 | {"rows": rows}))
        with pytest.raises(DataError, match=r"`rows\.0\.image`: .* is not the path of"):
            Manifest.read(tmp_path / "m.json")


def test_manifest_with_an_unknown_field_or_value_names_it(tmp_path):
    for change, named in (
        ({"picture": "a.jpg"}, r"`rows\.0\.picture`: Unexpected"),
        ({"split": "training"}, r"`rows\.0\.split`: Input should be 'train', 'val'"),
        ({"image": None}, "is not a manifest"),
    ):
        rows = [FORMAT_1["rows"][0] | change]
        (tmp_path / "m.json").write_text(json.dumps(FORMAT_1 | {"rows": rows}), "utf-8")
        with pytest.raises(DataError, match=named) as caught:
            Manifest.read(tmp_path / "m.json")
        assert caught.value.needed == "a manifest of format 1 to 2"


def test_merge_unites_classes_in_order(tmp_path):
    other = MaskCoding({0: "background", 1: "phoma", 2: "rust"}, False, "x")
    one, two = manifest_of("s", tmp_path), manifest_of("t", tmp_path, other)
    both = merge([one, two])
    assert both.classes.lesions == ("rust", "phoma")
    assert both.classes.has_leaf
    assert [row.key for row in both.rows] == ["s/a", "s/b", "t/a", "t/b"]
    assert both.origins.keys() == {"s", "t"}
    assert both.rows[0].group_key != both.rows[2].group_key


def test_merge_equal_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"both called \['s'\]"):
        merge([manifest_of("s", tmp_path), manifest_of("s", tmp_path)])


def test_manifest_selections_keep_classes(tmp_path):
    manifest = manifest_of("s", tmp_path)
    assert [row.key for row in manifest.split("train").rows] == ["a"]
    assert [row.key for row in manifest.labeled.rows] == ["a"]
    assert len(manifest.labeled) == 1
    assert manifest.split("test").classes == manifest.classes


def test_digested_fills_sha256(tmp_path):
    (tmp_path / "ä 1.jpg").write_bytes(b"abc")
    (tmp_path / "a.png").write_bytes(b"abc")
    manifest = manifest_of("s", tmp_path).digested()
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [row.sha256 for row in manifest.rows] == [expected, "0f"]
    assert [row.mask_sha256 for row in manifest.rows] == [expected, ""]


def test_changed_finds_modified_and_missing_files(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"abc")
    rows = [Row(n, tmp_path / f"{n}.jpg", "s") for n in "abcd"]
    rows[1] = replace(rows[1], mask=tmp_path / "b.png")
    manifest = Manifest(tuple(rows), ClassMap(("rust",)), {}).digested()
    assert len(manifest.changed()) == 0
    (tmp_path / "b.png").write_bytes(b"xyz")
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "d.jpg").unlink()
    assert [row.key for row in manifest.changed().rows] == ["b", "c", "d"]


def test_digested_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"1\.jpg` cannot be read"):
        manifest_of("s", tmp_path).digested()
