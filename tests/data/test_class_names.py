import shutil
from pathlib import Path

import pytest

from plantseg_next.data.class_names import (
    alike,
    propose,
    read_names,
    renamed,
    write_names,
)
from plantseg_next.data.formats import read_folders
from plantseg_next.data.manifest import Manifest, MaskCoding, Row, common_classes
from plantseg_next.data.quality.check import check
from plantseg_next.errors import DataError, UsageError
from plantseg_next.synthetic.folders import write_drawn_folder


def manifest_of(**sources) -> Manifest:
    """Return a manifest; each source has lesion classes (tuple) or labels (list)."""
    rows, codings = [], {}
    for source, names in sources.items():
        if isinstance(names, tuple):
            meaning = dict(enumerate(("background", *names)))
            codings[source] = MaskCoding(meaning, False, "here")
            rows.append(Row(f"{source}/0", Path("0.png"), source, mask=Path("m.png")))
        else:
            rows += [
                Row(f"{source}/{i}", Path(f"{i}.png"), source, disease=name, plant="Tomato")
                for i, name in enumerate(names)
            ]
    return Manifest(tuple(rows), common_classes(rows, codings), codings)


def test_propose_merges_spelling_variants():
    manifest = manifest_of(
        field=("early blight", "leaf spot"),
        village=["Early_Blight", "tomato early blight", "Leaf-Spot", "leaf mold"],
    )
    assert propose(manifest) == {
        "field": {"early blight": "early blight", "leaf spot": "leaf spot"},
        "village": {
            "Early_Blight": "early blight",
            "tomato early blight": "early blight",
            "Leaf-Spot": "leaf spot",
            "leaf mold": "leaf mold",
        },
    }


@pytest.mark.parametrize(
    ("one", "other", "are_alike"),
    [
        ("late blight", "late blightt", True),
        ("healthy", "heallthy", True),
        ("leaf spot", "leafspot", True),
        ("target spots", "target spot", True),
        ("early blight", "late blight", False),
        ("black rot", "black spot", False),
        ("class 1", "class 2", False),
        ("rust", "leaf rust", False),
    ],
)
def test_alike_finds_misspellings(one, other, are_alike):
    manifest = manifest_of(a=(one,), b=[other])
    assert list(alike(manifest)) == ([(one, other)] if are_alike else [])
    codes = [f.code for f in check(manifest).issues]
    assert ("names-alike" in codes) == are_alike


def test_renamed_merges_classes_and_labels():
    manifest = manifest_of(a=("EB", "soil"), b=("early blight",), c=["eb", "odd"])
    names = {
        "a": {"EB": "early blight", "soil": "background"},
        "c": {"eb": "early blight", "odd": "ignore"},
    }
    merged = renamed(manifest, names)
    assert merged.classes.lesions == ("early blight",)
    assert merged.classes.diseases == ("early blight",)
    assert merged.codings["a"].meaning == {
        0: "background",
        1: "early blight",
        2: "background",
    }
    assert [row.disease for row in merged.rows] == [None, None, "early blight", None]


def test_equal_ids_of_two_diseases_stay_two_classes():
    manifest = manifest_of(a=("rust",), b=("mildew",))
    assert manifest.classes.lesions == ("rust", "mildew")
    assert manifest.codings["a"].meaning[1] != manifest.codings["b"].meaning[1]


def test_renamed_class_to_leaf():
    merged = renamed(manifest_of(a=("green", "rust")), {"a": {"green": "leaf"}})
    assert merged.classes.has_leaf
    assert merged.classes.lesions == ("rust",)


def test_renamed_unknown_name_is_refused_with_suggestion():
    manifest = manifest_of(a=("early blight",), b=["rust"])
    with pytest.raises(UsageError, match="has `earl blight`; there is no such name in a"):
        renamed(manifest, {"a": {"earl blight": "x"}})
    with pytest.raises(UsageError, match="`aa`; there is no such data set") as caught:
        renamed(manifest, {"aa": {}})
    assert "the nearest is `a`" in str(caught.value)


def test_class_names_file_round_trip(tmp_path):
    names = {"a": {"Bl\u00e4tter #1": "leaf", "x: y": "rust"}}
    write_names(names, tmp_path / "names.yaml")
    assert read_names(tmp_path / "names.yaml") == names
    (tmp_path / "bad.yaml").write_text("- early blight")
    with pytest.raises(DataError, match="is not a file of class names"):
        read_names(tmp_path / "bad.yaml")


def test_read_folders_equal_names_get_parent_folder(tmp_path):
    for place in ("x", "y"):
        write_drawn_folder(tmp_path / place / "leaves", 3, seed=1, size_hw=(64, 64))
    manifest = read_folders([tmp_path / "x/leaves", tmp_path / "y/leaves"])
    assert {row.source for row in manifest.rows} == {"x-leaves", "y-leaves"}
    with pytest.raises(UsageError, match="--classes names one file, for 2 data sets"):
        read_folders([tmp_path, tmp_path], classes=tmp_path / "c.yaml")


def test_check_duplicates_with_different_labels_are_reported(tmp_path):
    for source, folder in (("a", "Tomato___Rust"), ("b", "Tomato___Mildew")):
        write_drawn_folder(tmp_path / "d", 1, seed=1, size_hw=(64, 64))
        (tmp_path / source / folder).mkdir(parents=True)
        image = next((tmp_path / "d/images").iterdir())
        image.rename(tmp_path / source / folder / image.name)
        shutil.rmtree(tmp_path / "d")
    report = check(read_folders([tmp_path / "a", tmp_path / "b"]))
    (issue,) = [f for f in report.issues if f.code == "labels-disagree"]
    assert "same scene with different labels: 1." in issue.text
    assert "is rust, " in issue.text
