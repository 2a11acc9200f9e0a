"""The sheet of `check`: spoiled masks come first, and it is one page without scripts."""

import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plantseg_next import api
from plantseg_next.errors import OutputError, UsageError
from plantseg_next.synthetic.folders import write_drawn_folder
from plantseg_next.workflows import sheet as sheets
from plantseg_next.workflows.sheet import MAX_BYTES, MOST_SUSPECTS, SHOWN

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "leaves"
    write_drawn_folder(folder, 70, seed=5, size_hw=(160, 160))
    return folder


class Page(HTMLParser):
    """What is on a sheet.

    Args:
        text: The HTML.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[np.ndarray] = []
        self.titles: list[str] = []
        self.reasons: dict[str, str] = {}
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self._in = "why" if attributes.get("class") == "why" else tag
        assert "href" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            start, content = attributes["src"].split(",")
            assert start == "data:image/jpeg;base64"
            self.images.append(np.array(Image.open(BytesIO(b64decode(content)))))

    def handle_endtag(self, _tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "h3":
            self.titles.append(data)
        elif self._in == "why":
            self.reasons[self.titles[-1]] = data


def sheet_of(folder: Path, out: Path) -> Page:
    api.check(folder, sheet=out / "sheet.html")
    return Page((out / "sheet.html").read_text("utf-8"))


def shifted(mask: np.ndarray, i: int, _: np.ndarray) -> np.ndarray:
    distance, axis = mask.shape[0] // 10, i % 2
    moved = np.roll(mask, distance, axis)
    moved[(slice(None),) * axis + (slice(distance),)] = 0
    return moved


def swapped(_: np.ndarray, __: int, other: np.ndarray) -> np.ndarray:
    return other


def inverted(mask: np.ndarray, _: int, __: np.ndarray) -> np.ndarray:
    """Exchange leaf and lesion."""
    lesion = mask[mask >= 2].min()
    return np.where(mask == 1, lesion, np.where(mask >= 2, 1, 0)).astype(np.uint8)


@pytest.mark.parametrize("spoil", [shifted, swapped, inverted])
def test_most_spoiled_masks_are_on_the_sheet_and_first(leaves, tmp_path, spoil):
    """After wkentaro/labelme#499 and cilinyan/VISA#9: masks turned, or of another image."""
    folder = shutil.copytree(leaves, tmp_path / "leaves")
    masks = {
        path: values
        for path in sorted((folder / "masks").iterdir())
        if ((values := np.array(Image.open(path))) >= 2).any()
    }
    chosen = list(masks)[4::10]
    assert len(chosen) >= 5
    for i, path in enumerate(chosen):
        other = masks[chosen[(i + 1) % len(chosen)]]
        Image.fromarray(spoil(masks[path], i, other)).save(path)
    names = {f"images/{path.stem}.jpg" for path in chosen}
    page = sheet_of(folder, tmp_path)
    first = page.titles[: len(chosen) + 3]
    assert len(names & set(first)) >= 0.8 * len(chosen)
    assert len(page.titles) == SHOWN
    assert sum(name in page.reasons for name in names) >= 0.8 * len(chosen)


def test_good_masks_are_hardly_suspected(leaves, tmp_path):
    page = sheet_of(leaves, tmp_path)
    assert len(page.reasons) <= 5
    assert len(page.titles) == SHOWN
    assert len(page.images) == 2 * SHOWN
    text = (tmp_path / "sheet.html").read_text("utf-8")
    assert len(text.encode()) < MAX_BYTES
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "http:" not in text
    assert "https:" not in text


def test_sheet_is_the_same_every_time_and_replaces_a_sheet_only(leaves, tmp_path):
    path = tmp_path / "sheet.html"
    api.check(leaves, sheet=path)
    first = path.read_bytes()
    api.check(leaves, sheet=path)
    assert path.read_bytes() == first
    path.write_text("<p>my notes</p>")
    with pytest.raises(OutputError, match="is no sheet of `check`"):
        api.check(leaves, sheet=path)
    with pytest.raises(UsageError, match=r"needed: a file that ends in \.html"):
        api.check(leaves, sheet=tmp_path / "sheet.png")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputError):
        api.check(leaves, sheet=tmp_path / "folder.html")


def test_masks_are_drawn_in_the_color_of_the_legend(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    image = np.full((80, 120, 3), (60, 140, 50), np.uint8)
    mask = np.zeros((80, 120), np.uint8)
    mask[20:60, 20:60] = 1
    for i in range(2):
        Image.fromarray(image + 4 * i).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    page = sheet_of(tmp_path, tmp_path)
    left, right = (picture.astype(int) for picture in page.images[:2])
    assert left.shape == right.shape == (320, 480, 3)
    inside, outside = (slice(120, 200), slice(120, 200)), (slice(0, 60), slice(280, 470))
    assert (right[inside] - left[inside])[..., 0].mean() > 40  # vermilion
    assert abs(right[outside] - left[outside]).mean() < 4
    text = (tmp_path / "sheet.html").read_text("utf-8")
    assert re.search(r"rgb\(213, 94, 0\)\"></i>lesion 17 %</span>", text)
    assert "120 x 80 px, train" in text


def test_mask_of_another_size_is_shown_stretched_and_first(leaves, tmp_path):
    folder = shutil.copytree(leaves, tmp_path / "leaves")
    path = sorted((folder / "masks").iterdir())[7]
    with Image.open(path) as mask:
        small = mask.resize((80, 90))
    small.save(path)
    page = sheet_of(folder, tmp_path)
    assert page.titles[0] == f"images/{path.stem}.jpg"
    assert "Masks" not in page.reasons[page.titles[0]]
    assert "has 80 x 90 pixels" in page.reasons[page.titles[0]]
    assert page.images[0].shape == page.images[1].shape


def test_healthy_label_with_a_lesion_is_shown_with_its_reason(leaves, tmp_path):
    folder = shutil.copytree(leaves, tmp_path / "leaves")
    lines = (folder / "index.csv").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if i and "healthy" not in line)
    name, split, _, group = lines[at].split(",")
    lines[at] = f"{name},{split},healthy,{group}"
    (folder / "index.csv").write_text("\n".join(lines))
    page = sheet_of(folder, tmp_path)
    reason = page.reasons[f"images/{name}.jpg"]
    assert "Labeled healthy, and a lesion is marked." in reason


def test_suspects_leave_room_for_a_sample(leaves, tmp_path, monkeypatch):
    def suspect_all(_manifest, all_stats, *_):
        return [sheets.Suspect(stats, 1.0, ("Why.",)) for stats in all_stats]

    monkeypatch.setattr(sheets, "find_suspects", suspect_all)
    page = sheet_of(leaves, tmp_path)
    assert len(page.reasons) == MOST_SUSPECTS
    text = (tmp_path / "sheet.html").read_text("utf-8")
    assert f"Look at these first: {MOST_SUSPECTS} (of 70)" in text


def test_sheet_of_unlabeled_images_shows_the_images(leaves, tmp_path):
    shutil.copytree(leaves / "images", tmp_path / "bare")
    page = sheet_of(tmp_path / "bare", tmp_path)
    assert len(page.titles) == len(page.images) == SHOWN


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no")
    page = sheet_of(tmp_path, tmp_path)
    assert not page.titles
    assert "No image can be shown." in (tmp_path / "sheet.html").read_text("utf-8")


@pytest.mark.parametrize(
    "name",
    ["<svg onload=alert(1)>", '"><img src=x>', "a\x1b[31m", "\u202egpj", "&lt;", "锈病"],
)
def test_names_are_escaped(tmp_path, name):
    """After TheWaWaR/simple-http-server#22: an image called as markup."""
    for kind in ("images", "masks"):
        folder = tmp_path / "data" / kind
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 2, (64, 64), np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{i}.png")
    (tmp_path / "data" / "classes.yaml").write_text('0: background\n1: "<b>rust</b>"\n')
    page = sheet_of(tmp_path / "data", tmp_path)
    assert len(page.titles) == 3
    shown = name.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert all(shown in title for title in page.titles)
    assert "svg" not in page.tags
    assert "b" not in page.tags
    assert len(page.images) == 6


def test_page_stays_below_its_size(leaves, tmp_path, monkeypatch):
    sheet_of(leaves, tmp_path)
    size = (tmp_path / "sheet.html").stat().st_size
    monkeypatch.setattr(sheets, "MAX_BYTES", round(0.8 * size))
    sheet_of(leaves, tmp_path)
    assert (tmp_path / "sheet.html").stat().st_size <= 0.8 * size
