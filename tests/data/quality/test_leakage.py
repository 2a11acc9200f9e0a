import shutil

from PIL import Image

from plantseg_next.data import splits
from plantseg_next.data.formats import read_folder, read_folders
from plantseg_next.data.quality.leakage import add_datasets, describe_excluded, drop_leaks
from plantseg_next.synthetic.leaves import write_drawn_folder


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
    joined, excluded = add_datasets(manifest, [read_folder(folder)], masks=False)
    assert len(joined) == len(manifest) + 4
    reasons = {image.row.image.name: image.reason for image in excluded}
    assert reasons == {
        "m.jpg": "also evaluated",
        "again.jpg": "also labeled",
        "broken.jpg": "unreadable",
    }
    lines = list(describe_excluded(excluded))
    assert lines[0].startswith(
        "images excluded, because they cannot be read: 1; the first is "
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
