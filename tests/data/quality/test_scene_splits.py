import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from plantseg_next.data import image_io, splits
from plantseg_next.data.formats import read_folder, read_folders
from plantseg_next.data.manifest import Manifest
from plantseg_next.data.quality.scene_splits import (
    add_datasets,
    describe_excluded,
    draw_splits,
    drop_leaks,
)
from plantseg_next.synthetic.folders import write_drawn_folder

BARE = {"mask": None, "disease": None, "split": None}


def test_add_datasets_images_without_masks_become_unlabeled(drawn_folder, tmp_path):
    write_drawn_folder(tmp_path / "more", 6, seed=9, size_hw=(96, 96))
    manifest = splits.assign(read_folder(drawn_folder), seed=0)
    joined, excluded = add_datasets(
        manifest, [read_folder(tmp_path / "more" / "images")], masks=False
    )
    added = joined.rows[len(manifest) :]
    assert len(added) == 6
    assert not excluded
    assert {row.split for row in added} == {"unlabeled"}
    assert all(row.mask is None and row.disease is None for row in added)
    assert joined.classes == manifest.classes
    assert len({row.key for row in joined.rows}) == len(joined)


def test_add_datasets_excludes_duplicates_and_unreadable_images(drawn_folder, tmp_path):
    manifest = splits.assign(read_folder(drawn_folder), seed=0)
    write_drawn_folder(tmp_path / "more", 4, seed=9, size_hw=(96, 96))
    folder = tmp_path / "more" / "images"
    test, train = (manifest.split(s).rows[0].image for s in ("test", "train"))
    with Image.open(test) as image:  # mirrored, and compressed again
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "m.jpg", quality=80)
    shutil.copy(train, folder / "again.jpg")
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    joined, excluded = add_datasets(manifest, [read_folder(folder)], masks=False)
    assert len(joined) == len(manifest) + 4
    reasons = {image.row.image.name: image.reason for image in excluded}
    assert reasons == {
        "m.jpg": "also evaluated",
        "again.jpg": "also labeled",
        "broken.jpg": "unreadable",
        "lost.jpg": "unreadable",
    }
    lines = list(describe_excluded(excluded))
    assert lines[0].startswith(
        "images excluded, because they cannot be read: 2; the first is "
    )
    assert "broken.jpg" in lines[0]


def test_add_datasets_equal_names_are_renamed(drawn_folder, tmp_path):
    manifest = splits.assign(read_folder(drawn_folder), seed=0)
    for place in ("a", "b"):
        write_drawn_folder(
            tmp_path / place / "leaves", 3, seed=ord(place), size_hw=(96, 96)
        )
    others = [read_folder(tmp_path / place / "leaves") for place in ("a", "b")]
    joined, _ = add_datasets(manifest, others, masks=True)
    assert len({row.source for row in joined.rows}) == 3
    assert len({row.key for row in joined.rows}) == len(joined)


def test_drop_leaks_excludes_test_images_from_other_data_sets(drawn_folder, tmp_path):
    own = splits.assign(read_folder(drawn_folder), seed=0)
    folder = tmp_path / "named" / "rust"
    folder.mkdir(parents=True)
    shutil.copy(own.split("test").rows[0].image, folder / "test.png")
    shutil.copy(own.split("train").rows[0].image, folder / "train.png")
    write_drawn_folder(tmp_path / "more", 1, seed=9, size_hw=(96, 96))
    (new,) = (tmp_path / "more" / "images").iterdir()
    shutil.copy(new, folder / "new.png")
    (tmp_path / "named" / "healthy").mkdir()
    manifest = read_folders([drawn_folder, tmp_path / "named"])
    rows = [
        row
        if row.source == drawn_folder.name
        else type(row)(**vars(row) | {"split": "train"})
        for row in splits.assign(manifest, seed=0).rows
    ]
    kept, excluded = drop_leaks(manifest.only(rows))
    assert {image.row.image.name: image.reason for image in excluded} == {
        "test.png": "also evaluated",
        "train.png": "also labeled",
    }
    assert len(kept) == len(own) + 1


def test_unreadable_images_of_the_run_are_no_error_beside_other_data_sets(
    drawn_folder, tmp_path
):
    folder = shutil.copytree(drawn_folder, tmp_path / "leaves")
    manifest = splits.assign(read_folder(folder), seed=0)
    broken = manifest.split("val").rows[0]
    broken.image.write_bytes(b"not an image")
    write_drawn_folder(tmp_path / "more", 4, seed=9, size_hw=(96, 96))
    shutil.copy(
        manifest.split("test").rows[0].image, tmp_path / "more" / "images" / "t.jpg"
    )
    others = read_folder(tmp_path / "more" / "images")
    joined, excluded = add_datasets(manifest, [others], masks=False)
    assert [image.row.image.name for image in excluded] == ["t.jpg"]
    assert broken in joined.rows
    both = splits.assign(read_folders([folder, tmp_path / "more"]), seed=0)
    kept, excluded = drop_leaks(both)
    assert [image.row.image.name for image in excluded] == ["t.jpg"]
    assert broken.image in {row.image for row in kept.rows}


CHANGES = {
    "copied": lambda image: image,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "rotated": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "smaller": lambda image: image.resize((80, 80)),
}
"""Each is also compressed again, except for the copy."""


def write_different_leaves(folder: Path, n: int) -> None:
    """Write leaves without an index; of those drawn at two ages, the first."""
    write_drawn_folder(folder, n, seed=1, size_hw=(96, 96))
    (folder / "index.csv").unlink()
    for path in folder.glob("*/*b.*"):
        path.unlink()


@pytest.fixture(scope="module")
def leaves_and_copies(tmp_path_factory):
    """Different leaves without stated splits, and a changed copy of each, with masks."""
    folder = tmp_path_factory.mktemp("copies") / "leaves"
    write_different_leaves(folder, 40)
    for i, path in enumerate(sorted((folder / "images").iterdir())):
        kind = list(CHANGES)[i % len(CHANGES)]
        copy = path.with_stem(f"{kind}_of_{path.stem}")
        if kind == "copied":
            shutil.copy(path, copy)
        else:
            with Image.open(path) as image:
                CHANGES[kind](image).save(copy, quality=60)
        with Image.open(folder / "masks" / f"{path.stem}.png") as mask:
            CHANGES[kind](mask).save(folder / "masks" / f"{copy.stem}.png")
    return folder


def original(key: str) -> str:
    return key.rpartition("_of_")[2]


def splits_of(manifest: Manifest) -> dict[str, str | None]:
    return {row.key: row.split for row in manifest.rows}


def without_masks_of_copies(manifest: Manifest) -> Manifest:
    return manifest.only(
        replace(row, mask=None) if "_of_" in row.key else row for row in manifest.rows
    )


@pytest.mark.parametrize("seed", range(3))
def test_draw_splits_changed_copy_is_in_the_split_of_its_original(leaves_and_copies, seed):
    manifest, lines = read_folder(leaves_and_copies), []
    drawn = splits_of(draw_splits(manifest, seed=seed, log=lines.append))
    assert all(drawn[key] == drawn[original(key)] for key in drawn)
    assert set(drawn.values()) == {"train", "val", "test"}
    assert lines == [
        f"near-duplicates: {len(drawn) // 2} groups merged with another that shows the "
        "same scene, so that each scene is in one split"
    ]
    alone = splits_of(splits.assign(manifest, seed=seed))
    assert any(alone[key] != alone[original(key)] for key in alone)


def test_draw_splits_of_different_leaves_are_those_of_assign(tmp_path):
    write_different_leaves(tmp_path / "leaves", 60)
    manifest, lines = read_folder(tmp_path / "leaves"), []
    drawn = draw_splits(manifest, seed=0, log=lines.append)
    assert drawn == splits.assign(manifest, seed=0)
    assert lines == []


def test_draw_splits_unlabeled_copies_of_evaluated_images_are_not_learned_from(
    leaves_and_copies,
):
    manifest, lines = without_masks_of_copies(read_folder(leaves_and_copies)), []
    drawn = splits_of(draw_splits(manifest, seed=0, log=lines.append))
    for key, split in drawn.items():
        if "_of_" in key:
            of = drawn[original(key)]
            assert split == ("unlabeled" if of == "train" else of)
    n = sum(drawn[original(k)] != "train" for k in drawn if "_of_" in k)
    assert lines == [
        "images without a mask not learned from, because they show the scene of a "
        f"validation or test image: {n}"
    ]


def test_draw_splits_unlabeled_images_of_an_evaluated_group_are_not_learned_from(
    leaves_and_copies,
):
    manifest = read_folder(leaves_and_copies)
    different = [row for row in manifest.rows if "_of_" not in row.key]
    rows = [
        replace(row, group=f"{i // 2}", **(BARE if i % 2 else {}))
        for i, row in enumerate(different)
    ]
    drawn = draw_splits(manifest.only(rows), seed=0).rows
    of_group = {row.group: row.split for row in drawn if row.mask}
    assert {row.split for row in drawn if row.mask} == {"train", "val", "test"}
    for row in drawn:
        if row.mask is None:
            split = of_group[row.group]
            assert row.split == ("unlabeled" if split == "train" else split)


def test_draw_splits_keeps_stated_splits(leaves_and_copies):
    manifest = read_folder(leaves_and_copies)
    stated = [
        row if "_of_" in row.key else replace(row, split=("train", "val", "test")[i % 3])
        for i, row in enumerate(manifest.rows)
    ]
    drawn = splits_of(draw_splits(manifest.only(stated), seed=0))
    for row in stated:
        assert drawn[row.key] == (row.split or drawn[original(row.key)])


def test_draw_splits_takes_val_from_train_by_scenes(leaves_and_copies):
    manifest = read_folder(leaves_and_copies)
    rows = [replace(row, split="train") for row in manifest.rows]
    drawn = splits_of(draw_splits(manifest.only(rows), seed=0))
    assert all(drawn[key] == drawn[original(key)] for key in drawn)
    assert set(drawn.values()) == {"train", "val"}


def test_draw_splits_without_anything_to_draw_reads_no_image(
    leaves_and_copies, monkeypatch
):
    manifest = read_folder(leaves_and_copies)
    stated = splits.assign(manifest, seed=0)
    bare = manifest.only(replace(row, **BARE) for row in manifest.rows)
    named = manifest.only(replace(row, mask=None, disease="rust") for row in manifest.rows)
    monkeypatch.setattr(image_io, "_upright_rgb", None)
    assert draw_splits(stated, seed=1) == stated
    assert set(splits_of(draw_splits(bare, seed=0)).values()) == {"unlabeled"}
    assert set(splits_of(draw_splits(named, seed=0)).values()) == {"train"}


def test_draw_splits_unreadable_images_are_no_error(leaves_and_copies, tmp_path):
    folder = shutil.copytree(leaves_and_copies, tmp_path / "leaves")
    paths = sorted((folder / "images").iterdir())
    for path in paths[:3]:
        path.write_bytes(b"not an image")
    manifest = read_folder(folder)
    bare = {row.key for row in manifest.rows if row.image == paths[2]}
    rows = [replace(r, **BARE) if r.key in bare else r for r in manifest.rows]
    drawn = draw_splits(manifest.only(rows), seed=0)
    assert {row.split for row in drawn.rows if row.mask} == {"train", "val", "test"}
    assert [row.split for row in drawn.rows if not row.mask] == ["unlabeled"]
