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
from plantseg_next.synthetic.leaves import write_drawn_folder


def manifest_of(**sources) -> Manifest:
    """Return a table of sources: lesion classes as a tuple, labels as a list."""
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


def test_one_name_for_what_differs_in_spelling():
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
def test_what_may_be_misspelt(one, other, are_alike):
    manifest = manifest_of(a=(one,), b=[other])
    assert list(alike(manifest)) == ([(one, other)] if are_alike else [])
    codes = [f.code for f in check(manifest).issues]
    assert ("names-alike" in codes) == are_alike


def test_names_become_one_class():
    manifest = manifest_of(a=("EB", "soil"), b=("early blight",), c=["eb", "odd"])
    names = {
        "a": {"EB": "early blight", "soil": "background"},
        "c": {"eb": "early blight", "odd": "ignore"},
    }
    found = renamed(manifest, names)
    assert found.classes.lesions == ("early blight",)
    assert found.classes.diseases == ("early blight",)
    assert found.codings["a"].meaning == {
        0: "background",
        1: "early blight",
        2: "background",
    }
    assert [row.disease for row in found.rows] == [None, None, "early blight", None]


def test_one_id_for_two_diseases_stays_two_classes():
    manifest = manifest_of(a=("rust",), b=("mildew",))
    assert manifest.classes.lesions == ("rust", "mildew")
    assert manifest.codings["a"].meaning[1] != manifest.codings["b"].meaning[1]


def test_a_class_may_become_the_leaf():
    found = renamed(manifest_of(a=("green", "rust")), {"a": {"green": "leaf"}})
    assert found.classes.has_leaf
    assert found.classes.lesions == ("rust",)


def test_a_mistyped_name_is_refused_with_the_nearest():
    manifest = manifest_of(a=("early blight",), b=["rust"])
    with pytest.raises(UsageError, match="has `earl blight`; there is no such name in a"):
        renamed(manifest, {"a": {"earl blight": "x"}})
    with pytest.raises(UsageError, match="`aa`; there is no such data set") as caught:
        renamed(manifest, {"aa": {}})
    assert "the nearest is `a`" in str(caught.value)


def test_a_file_of_names_comes_back(tmp_path):
    names = {"a": {"Bl\u00e4tter #1": "leaf", "x: y": "rust"}}
    write_names(names, tmp_path / "names.yaml")
    assert read_names(tmp_path / "names.yaml") == names
    (tmp_path / "bad.yaml").write_text("- early blight")
    with pytest.raises(DataError, match="is no file of names"):
        read_names(tmp_path / "bad.yaml")


def test_data_sets_of_one_name_are_told_apart(tmp_path):
    for place in ("x", "y"):
        write_drawn_folder(tmp_path / place / "leaves", 3, seed=1, size_hw=(64, 64))
    manifest = read_folders([tmp_path / "x/leaves", tmp_path / "y/leaves"])
    assert {row.source for row in manifest.rows} == {"x-leaves", "y-leaves"}
    with pytest.raises(UsageError, match="--classes names one file, for 2 data sets"):
        read_folders([tmp_path, tmp_path], classes=tmp_path / "c.yaml")


def test_images_that_two_rows_call_differently_are_listed(tmp_path):
    for source, folder in (("a", "Tomato___Rust"), ("b", "Tomato___Mildew")):
        write_drawn_folder(tmp_path / "d", 1, seed=1, size_hw=(64, 64))
        (tmp_path / source / folder).mkdir(parents=True)
        image = next((tmp_path / "d/images").iterdir())
        image.rename(tmp_path / source / folder / image.name)
        shutil.rmtree(tmp_path / "d")
    report = check(read_folders([tmp_path / "a", tmp_path / "b"]))
    (found,) = [f for f in report.issues if f.code == "labels-disagree"]
    assert "same scene under other labels: 1." in found.text
    assert "is rust, " in found.text
