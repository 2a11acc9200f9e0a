from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plantseg_next.data.formats.coding import (
    find_coding,
    infer_coding,
    read_coding,
    read_label_map,
    read_meanings,
)
from plantseg_next.errors import DataError, UsageError

FLAT = {0: "background", 1: "leaf", 2: "Rust"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def masks_of(folder: Path, *value_sets: list[int]) -> list[Path]:
    paths = []
    for i, values in enumerate(value_sets):
        paths.append(folder / f"{i}.png")
        Image.fromarray(np.array([values], np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.yaml", "0: background\n1: Leaf\n2: Rust\n"),
        ("classes.json", '{"0": "background", "1": "leaf", "2": "Rust"}'),
        ("classes.csv", "value,meaning\n0,background\n1,leaf\n2,Rust\n"),
        ("classes.csv", "0,background\n1,leaf\n2,Rust\n"),
    ],
)
def test_read_coding_all_file_formats(tmp_path, name, text):
    coding = read_coding(write(tmp_path / name, text))
    assert coding.meaning == FLAT
    assert coding.marks_leaf
    assert coding.lesions == ("Rust",)
    assert coding.origin == f"stated in {name}"


def test_read_coding_quoted_colors(tmp_path):
    text = '"#000000": background\n"#FF0000": rust\n"#ffffff": ignore\n'
    coding = read_coding(write(tmp_path / "classes.yml", text))
    assert coding.by_color
    assert coding.meaning["#ff0000"] == "rust"
    assert not coding.marks_leaf


@pytest.mark.parametrize(
    "text",
    [
        "", "- rust\n", "0: background\n1: {name: rust}\n", "leaf: 1\n", "-1: rust\n", "{",
        "0: background\n010: rust\n", "1: leaf\n2: rust\n2: blight\n",
    ],
)  # fmt: skip
def test_read_coding_invalid_file_is_refused(tmp_path, text):
    path = write(tmp_path / "classes.yaml", text)
    with pytest.raises(DataError, match="is not a list of mask values"):
        read_coding(path)


@pytest.mark.parametrize(
    ("make", "came"),
    [
        (Path.mkdir, "is a folder, not a file"),
        (lambda path: path.symlink_to("nowhere"), "is a link that leads nowhere"),
    ],
)
def test_class_file_that_is_no_file_is_refused(tmp_path, make, came):
    make(tmp_path / "classes.yaml")
    with pytest.raises(DataError, match=rf"classes\.yaml` {came}") as refused:
        find_coding(tmp_path, [])
    assert refused.value.needed == "a class file: mask values and their meanings"


def test_read_coding_without_classes_is_refused(tmp_path):
    path = write(tmp_path / "classes.yaml", "0: background\n1: ignore\n")
    with pytest.raises(DataError, match="name 0 lesion classes"):
        read_coding(path)


@pytest.mark.parametrize(
    ("values", "meaning"),
    [
        ([0, 1], {0: "background", 1: "lesion"}),
        ([0, 255], {0: "background", 255: "lesion"}),
        ([0, 1, 255], {0: "background", 1: "lesion", 255: "ignore"}),
        ([0, 2], {0: "background", 2: "lesion"}),
        ([0, 3, 7], {0: "background", 3: "class 3", 7: "class 7"}),
        ([0], {0: "background", 1: "lesion"}),
    ],
)
def test_infer_coding_common_value_sets(tmp_path, values, meaning):
    coding = infer_coding(tmp_path, masks_of(tmp_path, values[:1], values))
    assert coding.meaning == meaning
    assert not coding.marks_leaf


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 128, 255], [0, 127, 255]])
def test_infer_coding_leaf_without_evidence_is_asked_for(tmp_path, values):
    with pytest.raises(UsageError, match="nothing says what they mean") as caught:
        infer_coding(tmp_path, masks_of(tmp_path, values))
    lines = [f"{values[0]}: background", f"{values[1]}: ?", f"{values[2]}: ?"]
    assert all(line in caught.value.fix for line in lines)


def test_infer_coding_values_without_zero_are_asked_for(tmp_path):
    with pytest.raises(UsageError, match=r"No mask in .* holds the value 0, only 1, 2"):
        infer_coding(tmp_path, masks_of(tmp_path, [1, 2]))


def test_infer_coding_origin_states_inference(tmp_path):
    coding = infer_coding(tmp_path, masks_of(tmp_path, [0, 1]))
    assert coding.origin == (
        "inferred: mask values 0, 1 read as background, lesion; "
        "to change it, write a classes.yaml"
    )


def test_read_coding_lesions_not_annotated(tmp_path):
    text = "0: background\n1: leaf\nlesion: not annotated\n"
    coding = read_coding(write(tmp_path / "classes.yaml", text))
    assert coding.meaning == {0: "background", 1: "leaf"}
    assert coding.lesions == ()
    meanings = read_meanings(
        write(tmp_path / "m.yaml", "plant: leaf\nlesion: Not annotated")
    )
    assert meanings == {"plant": "leaf"}


@pytest.mark.parametrize("read", [read_coding, read_meanings])
def test_lesions_not_annotated_beside_a_class_is_refused(tmp_path, read):
    text = "0: background\n1: leaf\n2: rust\nlesion: not annotated\n"
    path = write(tmp_path / "classes.yaml", text)
    with pytest.raises(
        DataError, match="states that lesions are not annotated, and `2: rust`"
    ):
        read(path)


def test_find_coding_prefers_stated_over_inferred(tmp_path):
    masks = masks_of(tmp_path, [0, 1])
    write(tmp_path / "classes.yaml", "0: background\n1: rust\n")
    explicit = write(tmp_path / "mine.yaml", "0: background\n1: phoma\n")
    assert find_coding(tmp_path, masks).lesions == ("rust",)
    assert find_coding(tmp_path, masks, explicit).lesions == ("phoma",)


def test_infer_coding_colored_masks_error_drafts_class_file(tmp_path):
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[0, 0] = [255, 128, 0]
    Image.fromarray(pixels).save(tmp_path / "m.png")
    with pytest.raises(UsageError, match="are colored") as caught:
        infer_coding(tmp_path, [tmp_path / "m.png"])
    text = str(caught.value)
    assert '"#000000": background    # 95.0 % of the pixels' in text
    assert '"#ff8000": ?    # 5.0 % of the pixels' in text


def test_infer_coding_photograph_is_refused(tmp_path):
    masks = masks_of(tmp_path, list(range(100)))
    with pytest.raises(UsageError, match="holds 100 different values"):
        infer_coding(tmp_path, masks)


def test_infer_coding_skips_unreadable_masks(tmp_path):
    masks = masks_of(tmp_path, [0, 255])
    (tmp_path / "broken.png").write_bytes(b"")
    coding = infer_coding(tmp_path, [tmp_path / "broken.png", *masks])
    assert coding.meaning[255] == "lesion"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("classes.yaml", "0: background\n1: rust\n1: blight", "`1` is stated twice"),
        ("classes.yaml", "0: background\n1: rust\n0x1: blight", "`0x1` is stated twice"),
        ("classes.yaml", "0: background\n1: rust\n'1': blight", "`1` is stated twice"),
        ("classes.yaml", "'#ff0000': rust\n'#FF0000': leaf", "`#ff0000` is stated twice"),
        (
            "classes.json",
            '{"0": "leaf", "1": "rust", "1": "scab"}',
            "line 1: `1` is ",
        ),
        ("classes.json", '{"0": "leaf", "1": "rust", "01": "scab"}', "`1` is stated twice"),
        ("classes.csv", "0,leaf\n1,rust\n1,scab\n", "`1` is stated twice"),
        ("classes.csv", "0,leaf\n1,rust\n1,rust\n", "`1` is stated twice"),
        ("classes.csv", '0,leaf\n"1,rust\n', "unexpected end of data"),
        ("classes.yaml", "1: Rust\n2: rust", "`Rust` and `rust` differ only in spelling"),
        (
            "classes.yaml",
            "1: leaf_spot\n2: leaf spot",
            "`leaf_spot` and `leaf spot` d",
        ),
        ("classes.json", "[" * 9_999, "line 1: more than 100 lists"),
        ("classes.json", '{"0": NaN}', "line 1: NaN is not a finite number"),
        ("classes.yaml", "a: &a [x, x]\n0: *a", "'a' is neither a value of 0 to 65535"),
        ("classes.yaml", "0: background\n---\n1: rust", "expected a single document"),
    ],
)
def test_read_coding_that_contradicts_itself_is_refused(tmp_path, name, text, why):
    """After yaml/pyyaml#165 and rbgirshick/yacs#17: of equal keys, the last one counts."""
    path = write(tmp_path / name, text)
    with pytest.raises(DataError, match="is not a list of mask values") as refused:
        read_coding(path)
    assert why in refused.value.came
    assert refused.value.fix.startswith("write one line for each value")


def test_read_coding_may_give_values_one_meaning(tmp_path):
    coding = read_coding(write(tmp_path / "classes.yaml", "1: rust\n2: rust\n3: LEAF"))
    assert coding.meaning == {1: "rust", 2: "rust", 3: "leaf"}


def test_read_coding_with_too_many_classes_or_bytes_is_refused(tmp_path):
    lines = "".join(f"{i}: class {i}\n" for i in range(1, 256))
    with pytest.raises(DataError, match="name 255 lesion classes"):
        read_coding(write(tmp_path / "classes.yaml", lines))
    with pytest.raises(DataError, match=r"classes\.yaml` has 2 MiB"):
        read_coding(write(tmp_path / "classes.yaml", "#" * 2**21))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("blight:255,0,0::", "a second label of the color #ff0000"),
        ("Rust:0,255,0::", "`rust` and `Rust` differ only in spelling"),
        ("blight:256,0,0::", "bytes must be in range"),
        ("blight:0,255::", "not enough values"),
    ],
)
def test_label_map_that_contradicts_itself_is_refused_with_the_line(tmp_path, line, why):
    """After wkentaro/labelme#277: labels of different names were given one color."""
    path = write(tmp_path / "labelmap.txt", f"background:0,0,0::\nrust:255,0,0::\n{line}\n")
    with pytest.raises(DataError, match=r"labelmap\.txt`, line 3: ") as refused:
        read_label_map(path)
    assert why in refused.value.came


def test_read_meanings_with_two_meanings_of_a_name_is_refused(tmp_path):
    path = write(tmp_path / "classes.yaml", "Leaf_Rust: rust\nleaf rust: rust\nx: leaf")
    assert read_meanings(path) == {"leaf rust": "rust", "x": "leaf"}
    for text, why in (
        ("Leaf_Rust: rust\nleaf rust: blight", "`leaf rust` is stated with two meanings"),
        ("a: rust\nb: Rust", "`rust` and `Rust` differ only in spelling"),
    ):
        with pytest.raises(DataError, match=why):
            read_meanings(write(path, text))
