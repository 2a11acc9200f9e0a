"""Validation and evaluation of a predictor: metrics, intervals, unreadable images."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from plantseg_next import api, cli
from plantseg_next.data.formats import read_folder
from plantseg_next.errors import DataError
from plantseg_next.evaluation.report import evaluate
from plantseg_next.structures import ClassMap, Prediction, SkippedImage
from plantseg_next.training.callbacks.callback import describe
from plantseg_next.workflows.evaluate import eval_items, severity_pct
from plantseg_next.workflows.validate import validate

pytestmark = pytest.mark.integration


def write_leaves(folder, n=6, *, lesions=True, classes="0: background\n1: rust\n"):
    """Write images whose red half is the lesion, and masks of it, if any."""
    for i in range(n):
        image = np.full((40, 40, 3), 40 + i, np.uint8)
        mask = np.zeros((40, 40), np.uint8)
        image[:, :20, 0] = 200
        mask[:, : 12 + i] = lesions
        for kind, pixels in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    (folder / "classes.yaml").write_text(classes)
    return folder


def red_is_a_lesion(image):
    red = (image[..., 0] > 128).astype(np.uint8)
    return Prediction(red, red.astype(np.float16), None)


def nothing(image):
    return red_is_a_lesion(np.zeros_like(image))


def kinds(validation):
    return [event.kind for event in validation.events]


def test_validate_gives_the_dice_of_evaluate_with_its_images_and_interval(tmp_path):
    manifest = read_folder(write_leaves(tmp_path))
    validation = validate(red_is_a_lesion, manifest)
    items = eval_items(red_is_a_lesion, manifest.classes, manifest, manifest.classes)
    report = evaluate(items, manifest.classes, severity=severity_pct)
    assert validation.metrics == {"lesion_dice": report.lesion_dice.value}
    assert validation.monitored_metric == report.lesion_dice.value
    assert validation.n_images == 6
    low, high = validation.lesion_dice_low, validation.lesion_dice_high
    assert low < report.lesion_dice.value < high
    assert low == pytest.approx(report.lesion_dice.low, abs=0.02)
    assert str(validation) == (
        f"lesion Dice {report.lesion_dice.value:.3f} ({low:.2f} to {high:.2f}, 6 images)"
    )
    assert kinds(validation) == []


def test_validate_of_one_group_has_no_interval(tmp_path):
    manifest = read_folder(write_leaves(tmp_path, 1))
    validation = validate(red_is_a_lesion, manifest)
    assert math.isnan(validation.lesion_dice_low)
    assert "lesion Dice 0.750 (1 image)" in str(validation)
    assert describe({"lesion_dice": 0.75}) == "lesion Dice 0.750"


@pytest.mark.parametrize("predictor", [red_is_a_lesion, nothing])
def test_validate_without_a_true_lesion_gives_no_dice(tmp_path, predictor):
    manifest = read_folder(write_leaves(tmp_path, lesions=False))
    validation = validate(predictor, manifest)
    assert validation.metrics == {}
    assert validation.monitored_metric == 0.0
    assert math.isnan(validation.lesion_dice_low)
    (event,) = validation.events
    assert event.kind == "no-dice"
    assert event.text == (
        "No lesion is marked in the 6 validation images, so validations have no lesion "
        "Dice, and `best` is the model of the last one. Put images with lesions into the "
        "validation split."
    )
    assert str(validation) == "no lesion Dice (no lesion in 6 images)"


def test_validate_without_a_true_lesion_monitors_the_leaf(tmp_path):
    folder = write_leaves(tmp_path, classes="0: background\n1: leaf\n2: rust\n")
    manifest = read_folder(folder)

    def leaf_of_all(image):
        lesion = nothing(image).lesion
        ones = np.ones(lesion.shape, np.float16)
        return Prediction(lesion, 0 * ones, ones)

    validation = validate(leaf_of_all, manifest)
    assert list(validation.metrics) == ["leaf_iou"]
    assert validation.monitored_metric == validation.metrics["leaf_iou"] > 0
    assert kinds(validation) == ["no-dice"]
    assert "`best` is chosen by leaf IoU alone" in validation.events[0].text


def test_validate_skips_an_unreadable_image_with_an_event(tmp_path):
    manifest = read_folder(write_leaves(tmp_path))
    (tmp_path / "images" / "2.png").write_bytes(b"rot")
    validation = validate(red_is_a_lesion, manifest)
    assert validation.n_images == 5
    (event,) = validation.events
    assert event.kind == "unreadable-image"
    assert "2.png" in event.text
    assert "It is not validated on." in event.text


def test_validate_and_evaluate_without_a_readable_image_are_refused(tmp_path):
    manifest = read_folder(write_leaves(tmp_path, 2))
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"rot")
    for call in (
        lambda: validate(red_is_a_lesion, manifest),
        lambda: list(
            eval_items(red_is_a_lesion, manifest.classes, manifest, manifest.classes)
        ),
    ):
        with pytest.raises(DataError, match="None of the 2 images can be read") as caught:
            call()
        assert "at least one image that can be read" in caught.value.needed
        assert "`plantseg-next check` reports what is wrong" in caught.value.fix


def test_eval_items_yield_unreadable_images_at_the_end(tmp_path):
    manifest = read_folder(write_leaves(tmp_path, 3))
    (tmp_path / "images" / "0.png").write_bytes(b"rot")
    seen = []
    any_lesion = ClassMap(("any lesion",))
    *items, skipped = eval_items(
        red_is_a_lesion,
        manifest.classes,
        manifest,
        any_lesion,
        lambda done, total: seen.append((done, total)),
    )
    assert [item.sample.key for item in items] == [row.key for row in manifest.rows[1:]]
    assert isinstance(skipped, SkippedImage)
    assert skipped.key == manifest.rows[0].key
    assert "0.png" in skipped.reason
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_evaluate_prints_skipped_images_and_exits_with_1(
    finished_run, tmp_path, monkeypatch, capsys
):
    data = write_leaves(tmp_path / "data", 3)
    words = ["evaluate", finished_run, data, "--split", "all", "--out"]

    def code_of(out):
        call = ["plantseg-next", *map(str, [*words, tmp_path / out])]
        monkeypatch.setattr("sys.argv", call)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0

    assert code_of("whole") == 0
    (data / "images" / "1.png").write_bytes(b"rot")
    capsys.readouterr()
    assert code_of("part") == 1
    out, err = capsys.readouterr()
    assert "2 images in 2 groups" in out
    assert "In no score, because unreadable (1): 1" in out
    assert "skipped 1: " in err
    tree = json.loads((tmp_path / "part" / "report.json").read_text("utf-8"))
    assert [image["key"] for image in tree["skipped"]] == ["1"]
    assert api.evaluate(finished_run, data, split="all").skipped[0].key == "1"
