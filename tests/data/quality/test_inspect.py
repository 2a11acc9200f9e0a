import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plantseg_next.data import image_io
from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import Manifest, MaskCoding, Row, digest
from plantseg_next.data.quality.inspect import (
    SPARSE,
    ImageStats,
    inspect,
    with_digests,
)
from plantseg_next.structures import IGNORE, ClassMap

MEANINGS = ("background", "leaf", "rust", "phoma", "ignore")
COLORS = ("#000000", "#00ff00", "#ff0000", "#0000ff", "#fffffe")


def plain(stats: ImageStats) -> tuple[object, ...]:
    """Return statistics in a form that can be compared."""
    file = stats.file and stats.file.to_bytes()
    return stats.row, file, stats.mask, [str(f.error) for f in stats.failures]


def one_row(folder: Path, mask: np.ndarray, coding: MaskCoding) -> Manifest:
    Image.new("RGB", mask.shape[1::-1], "green").save(folder / "a.jpg")
    Image.fromarray(mask).save(folder / "a.png")
    row = Row("a", folder / "a.jpg", "s", folder / "a.png")
    return Manifest((row,), ClassMap(("phoma", "rust"), has_leaf=True), {"s": coding})


@pytest.mark.parametrize("kind", ["uint8", "uint16", "colors"])
def test_inspect_counts_masks_as_decoding_every_pixel_does(tmp_path, kind):
    ids = np.random.default_rng(0).choice(5, (40, 50), p=(0.3, 0.4, 0.2, 0.05, 0.05))
    if kind == "colors":
        values = COLORS
        palette = np.array([list(bytes.fromhex(color[1:])) for color in COLORS], np.uint8)
        mask = palette[ids]
    else:
        values = (0, 1, 7, 200 if kind == "uint8" else 40_000, 255)
        mask = np.array(values)[ids].astype(kind)
    coding = MaskCoding(dict(zip(values, MEANINGS, strict=True)), True, "here")
    manifest = one_row(tmp_path, mask, coding)
    sample = load_sample(manifest.rows[0], manifest)
    for _ in range(2):  # the second time from the index
        (stats,) = inspect(manifest)
        assert stats.mask.lesion_px == {
            "phoma": (sample.lesion == 1).sum(),
            "rust": (sample.lesion == 2).sum(),
        }
        assert stats.mask.annotated_px == (sample.lesion != IGNORE).sum()
        assert stats.mask.leaf_px == ((sample.lesion == 0) & (sample.leaf == 1)).sum()
        assert not stats.mask.is_sparse


@pytest.mark.parametrize("labeled", [SPARSE - 0.01, SPARSE])
def test_inspect_mask_below_the_limit_is_sparse(tmp_path, labeled):
    mask = np.full((50, 100), 4, np.uint8)
    mask.ravel()[: round(labeled * mask.size)] = 2
    coding = MaskCoding(dict(enumerate(MEANINGS)), True, "here")
    (stats,) = inspect(one_row(tmp_path, mask, coding))
    assert stats.mask.is_sparse == (labeled < SPARSE)


def test_inspect_from_the_index_equals_a_fresh_pass(drawn_folder, own_cache):
    manifest = read_folder(drawn_folder)
    fresh = inspect(manifest)
    assert (own_cache / "plantseg-next").is_dir()
    assert list(map(plain, inspect(manifest))) == list(map(plain, fresh))


def test_digests_of_indexed_images_are_not_computed_again(drawn_folder, monkeypatch):
    manifest = read_folder(drawn_folder)
    inspect(manifest)
    read = []
    monkeypatch.setattr(
        "plantseg_next.data.manifest.digest", lambda path: read.append(path) or digest(path)
    )
    known = with_digests(manifest)
    assert [row.sha256 for row in known.rows] == [digest(r.image) for r in manifest.rows]
    assert set(read) <= {row.mask for row in manifest.rows}


def test_inspect_known_files_are_not_decoded(drawn_folder, monkeypatch):
    manifest = read_folder(drawn_folder)
    inspect(manifest)
    for decoder in ("_upright_rgb", "_mask_values"):
        monkeypatch.setattr(image_io, decoder, None)
    assert not any(stats.failures for stats in inspect(manifest))


def test_inspect_changed_image_and_mask_are_read_again(tmp_path):
    coding = MaskCoding(dict(enumerate(MEANINGS)), True, "here")
    manifest = one_row(tmp_path, np.full((40, 50), 1, np.uint8), coding)
    (before,) = inspect(manifest)
    assert before.mask.lesion_px == {}
    one_row(tmp_path, np.full((30, 60), 2, np.uint8), coding)
    for path in tmp_path.iterdir():
        os.utime(path, ns=(0, 10**18))
    (after,) = inspect(manifest)
    assert after.file.size_hw == (30, 60)
    assert after.file.sha256 == digest(tmp_path / "a.jpg") != before.file.sha256
    assert after.mask.lesion_px == {"rust": 1800}


def test_inspect_other_meaning_of_a_known_mask_is_used(tmp_path):
    mask = np.full((40, 50), 2, np.uint8)
    for meaning, lesion_px in (("rust", {"rust": 2000}), ("leaf", {})):
        coding = MaskCoding({2: meaning, 3: "phoma"}, True, "here")
        (stats,) = inspect(one_row(tmp_path, mask, coding))
        assert stats.mask.lesion_px == lesion_px


def test_inspect_failures_are_the_same_every_time(tmp_path):
    coding = MaskCoding({0: "background", 1: "rust"}, False, "here")
    mask = np.resize(np.array([0, 0, 0, 9], np.uint8), (40, 50))
    manifest = one_row(tmp_path, mask, coding)
    for _ in range(2):
        (stats,) = inspect(manifest)
        (failure,) = stats.failures
        assert failure.code == "unknown-mask-value"
        assert "holds the value 9 on 25 % of its pixels" in str(failure.error)
    (tmp_path / "a.jpg").write_bytes(b"")
    codes = [[f.code for f in inspect(manifest)[0].failures] for _ in range(2)]
    assert codes == [["unreadable-image", "unknown-mask-value"]] * 2
