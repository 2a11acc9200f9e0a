import shutil

import numpy as np
import pytest
import torch

from plantseg_next.data import splits
from plantseg_next.data.layouts import read_folder
from plantseg_next.data.streams import (
    MixedDataset,
    SampleCache,
    TileDataset,
    ViewDataset,
    collate,
    count_pixels,
    loader,
)
from plantseg_next.data.views import strong_light
from plantseg_next.errors import DataError
from plantseg_next.experiment import DataSettings
from plantseg_next.structures import IGNORE

SETTINGS = DataSettings(tile_px=64, max_tiles=2, cache_mib=4)


def dataset(folder, **changes):
    manifest = splits.assign(read_folder(folder), seed=0).split("train").labelled
    settings = SETTINGS.model_copy(update=changes)
    return TileDataset(manifest, settings, seed=0, pixels=(9, 1, 1, 1, 1, 1))


def same(a, b):
    names = ("image", "lesion", "leaf", "disease", "distance")
    return a.keys == b.keys and all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in names
    )


def mixed(folder, *, ratio=2, n_strong=2):
    """Labelled tiles, and views of the same pictures as if they had no masks."""
    tiles = dataset(folder)
    return MixedDataset(
        tiles,
        ViewDataset(dataset(folder), n_strong=n_strong, strong=strong_light(2.0)),
        ratio,
    )


def same_drawn(a, b):
    views = (a.unlabelled, b.unlabelled)
    return same(a.labelled, b.labelled) and all(
        torch.equal(*(getattr(v, n) for v in views)) for n in ("weak", "strong", "inside")
    )


def test_unlabelled_views_come_in_their_ratio(drawn_folder):
    ((batch, views),) = loader(mixed(drawn_folder), tiles=4, start=0, stop=1, workers=0)
    assert len(batch) == 4
    assert len(views) == 8
    assert views.strong.shape == (2, 8, 3, 64, 64)
    assert views.inside.dtype == torch.bool


def test_views_show_one_place_under_other_lights(drawn_folder):
    """A strong view has its edges where the weak one has them."""
    tiles = dataset(drawn_folder, max_tiles=1)
    for draw in range(6):
        views = ViewDataset(tiles, n_strong=1, strong=strong_light(2.0))[draw]
        weak, strong = (
            v.float().mean(0).flatten() for v in (views.weak[0], views.strong[0, 0])
        )
        assert not torch.equal(weak, strong)
        assert torch.corrcoef(torch.stack([weak, strong]))[0, 1] > 0.7


def test_what_lies_outside_the_picture_is_known(drawn_folder):
    """Where a labelled tile of the same draw is ignored, a view is outside."""
    tiles = dataset(drawn_folder, max_tiles=1)
    for draw in range(6):
        inside = ViewDataset(tiles, n_strong=1, strong=strong_light(2.0))[draw].inside
        assert torch.equal(inside, tiles[draw].leaf != IGNORE)


def test_a_draw_depends_on_its_number_alone(drawn_folder):
    one, two = dataset(drawn_folder), dataset(drawn_folder)
    for i in range(5):
        two[i + 7]  # other draws, another cache
    assert same(one[3], two[3])
    assert not same(one[3], one[4])


def test_batches_go_on_where_they_stopped(drawn_folder):
    data = mixed(drawn_folder)
    whole = list(loader(data, tiles=4, start=0, stop=4, workers=0))
    rest = list(loader(data, tiles=4, start=2, stop=4, workers=0))
    assert all(same_drawn(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_workers_change_nothing(drawn_folder):
    data = mixed(drawn_folder)
    alone = list(loader(data, tiles=4, start=0, stop=2, workers=0))
    helped = list(loader(data, tiles=4, start=0, stop=2, workers=1))
    assert all(same_drawn(a, b) for a, b in zip(alone, helped, strict=True))


def test_a_batch_holds_what_the_network_wants(drawn_folder):
    data = MixedDataset(dataset(drawn_folder))
    ((batch, views),) = loader(data, tiles=6, start=0, stop=1, workers=0)
    assert views is None
    assert len(batch) == 6
    assert batch.image.shape == (6, 3, 64, 64)
    assert batch.image.dtype == torch.uint8
    assert batch.lesion.shape == batch.leaf.shape == batch.distance.shape == (6, 64, 64)
    assert set(batch.lesion.unique().tolist()) <= {0, 1, 2, 3, 4, 5, IGNORE}


def test_tiles_seek_lesions_and_balance_diseases(drawn_folder):
    data = dataset(drawn_folder, background_share=0.0, balance=1.0, max_tiles=1)
    tiles = collate([data[i] for i in range(60)])
    lesion = (tiles.lesion > 0) & (tiles.lesion != IGNORE)
    ill = {row.key for row in data.rows if row.disease != "healthy"}
    of_ill = torch.tensor([key in ill for key in tiles.keys])
    assert lesion.flatten(1).any(1)[of_ill].float().mean() > 0.8
    diseases = {row.key: row.disease for row in data.rows}
    drawn = [diseases[key] for key in tiles.keys]
    assert min(drawn.count(d) for d in set(diseases.values())) >= 3


def test_the_cache_forgets_the_oldest(drawn_folder):
    manifest = read_folder(drawn_folder)
    one = 96 * 96 * 5 / 2**20
    read = dataset(drawn_folder)._read
    cache = SampleCache(read, budget_mib=2.5 * one)
    for row in manifest.rows[:4]:
        cache.get(row)
    assert list(cache._held) == [row.key for row in manifest.rows[2:4]]
    assert cache._bytes == sum(held.nbytes for held in cache._held.values())
    nothing = SampleCache(read, budget_mib=0.0)
    assert nothing.get(manifest.rows[0]).sample.key == manifest.rows[0].key
    assert not nothing._held


def test_pixels_are_counted_by_class(drawn_folder):
    manifest = read_folder(drawn_folder)
    seen = []
    pixels = count_pixels(manifest, on_progress=lambda i, n: seen.append((i, n)))
    assert sum(pixels) == len(manifest) * 96 * 96
    assert len(pixels) == 6
    assert np.argmax(pixels) == 0
    assert seen[-1] == (40, 40)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_breaks_later_is_named(drawn_folder, tmp_path, workers):
    """From a worker too, as the error itself and not as a traceback."""
    shutil.copytree(drawn_folder, tmp_path / "leaves")
    data = MixedDataset(dataset(tmp_path / "leaves"))
    for path in (tmp_path / "leaves" / "images").iterdir():
        path.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"\.jpg"):
        next(loader(data, tiles=2, start=0, stop=1, workers=workers))
