import json

import numpy as np
import pytest
from PIL import Image

from plantseg_next.data.formats import read_folder
from plantseg_next.data.quality.check import check
from plantseg_next.data.quality.inspect import MaskFile
from plantseg_next.data.quality.lesion_sizes import (
    KEPT_AREAS,
    Components,
    components_of,
    lesion_class,
    merged,
)


def test_components_are_those_of_a_flood_fill():
    rng = np.random.default_rng(3)
    mask = rng.choice([0, 0, 0, 1, 2], (24, 30)).astype(np.uint8)
    values, counts = np.unique(mask, return_counts=True)
    found = components_of(mask, values.tolist(), counts)
    for value, components in zip(values.tolist(), found, strict=True):
        left = {tuple(at) for at in np.argwhere(mask == value).tolist()}
        areas = []
        while left and value:
            queue, area = [left.pop()], 1
            while queue:
                y, x = queue.pop()
                near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
                left -= near
                area += len(near)
                queue += near
            areas.append(area)
        if value:
            assert components.n == len(areas)
            expected = np.sort(areas)
            kept = np.linspace(0, len(areas) - 1, min(len(areas), KEPT_AREAS)).round()
            assert components.areas == tuple(expected[kept.astype(int)])


def test_components_of_the_most_frequent_value_count_as_one():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4] = 7
    assert components_of(mask, [0, 7], np.array([56, 8])) == (
        Components(1, (56,)),
        Components(1, (8,)),
    )


def test_many_components_keep_their_number_and_their_quantiles():
    mask = np.zeros((200, 200), np.uint8)
    mask[::2, ::2] = 1
    (_, dots) = components_of(mask, [0, 1], np.array([30_000, 10_000]))
    assert dots == Components(10_000, (1,) * KEPT_AREAS)
    assert merged([dots, Components(1, (9,))]).n == 10_001


def test_components_survive_the_index(tmp_path):
    mask = np.zeros((9, 9), np.uint8)
    mask[1, 1] = mask[5:7, 5:7] = 3
    Image.fromarray(mask).save(tmp_path / "a.png")
    file = MaskFile.inspect(tmp_path / "a.png", as_colors=False, channel="stored")
    again = MaskFile.from_bytes(file.to_bytes())
    assert again.components == file.components
    assert again.components[1] == Components(2, (1, 4))


def test_median_is_of_all_lesions_at_the_training_scale():
    disc = lambda across: round(np.pi / 4 * across**2)  # noqa: E731
    found = lesion_class(
        "rust",
        [
            (3 * disc(40), Components(3, (disc(40),) * 3), 0.25),
            (disc(8), Components(1, (disc(8),)), 0.25),
        ],
    )
    assert (found.images, found.lesions) == (2, 4)
    assert found.median_across_px == pytest.approx(10, rel=0.02)
    assert found.too_small == 0.25
    assert found.shrunk


def folder_of(tmp_path, side: int, dot: int, n: int = 3):
    """Return a data set of large images with square lesions."""
    for i in range(n):
        image = np.random.default_rng(i).integers(0, 256, (side // 8, side // 8, 3), "u1")
        mask = np.zeros((side, side), np.uint8)
        for at in range(100, side - 100, 200):
            mask[at : at + dot, 100 : 100 + dot] = 1
        for kind, pixels in (("images", image), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            picture = Image.fromarray(pixels).resize((side, side), 0)
            picture.save(tmp_path / kind / f"{i}.png")
    (tmp_path / "classes.yaml").write_text("0: background\n1: rust\n")
    return read_folder(tmp_path)


def test_lesions_that_vanish_when_images_are_reduced_are_a_warning(tmp_path):
    """After ultralytics/ultralytics#7106: a pixel of a large mask is lost when resized."""
    report = check(folder_of(tmp_path, 2048, 4))
    (issue,) = [i for i in report.issues if i.code == "lesions-too-small"]
    assert issue.severity == "warning"
    assert "of the class rust are under 3 pixels across" in issue.text
    assert "100 % of 30; the median is 2.3 pixels" in issue.text
    assert "--set data.long_side_px=1536" in issue.fix
    assert "rust       3     480       30  2.3 px       100 %" in report.to_text()
    (found,) = json.loads(report.to_json())["classes"]
    assert found["lesions"] == 30


def test_small_lesions_of_small_images_need_larger_images(tmp_path):
    """After AlexeyAB/darknet#718: an object below a pixel cannot be trained on."""
    report = check(folder_of(tmp_path, 512, 2))
    (issue,) = [i for i in report.issues if i.code == "lesions-too-small"]
    assert "photograph leaves from nearer" in issue.fix
    assert "--set" not in issue.fix


def test_lesions_of_ten_pixels_are_no_warning(tmp_path):
    codes = {issue.code for issue in check(folder_of(tmp_path, 1024, 10)).issues}
    assert "lesions-too-small" not in codes


def test_scale_of_training_is_that_of_the_setting(tmp_path):
    manifest = folder_of(tmp_path, 2048, 4)
    whole = check(manifest, long_side_px=None)
    assert whole.classes[0].median_across_px == pytest.approx(4.51, abs=0.01)
    assert not [i for i in whole.issues if i.code == "lesions-too-small"]
