import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

from plantseg_next.data import dataloader, splits
from plantseg_next.data.augment import strong_photometry
from plantseg_next.data.dataloader import loader
from plantseg_next.data.dataset import (
    MixedDataset,
    SampleCache,
    TileDataset,
    TrainBatch,
    ViewDataset,
    collate,
    collate_views,
    count_pixels,
    to_micro_batches,
)
from plantseg_next.data.formats import read_folder
from plantseg_next.errors import DataError
from plantseg_next.settings import DataSettings
from plantseg_next.structures import IGNORE

SETTINGS = DataSettings(tile_px=64, cache_mib=4)


def dataset(folder, **changes):
    manifest = splits.assign(read_folder(folder), seed=0).split("train").labeled
    settings = SETTINGS.model_copy(update=changes)
    return TileDataset(manifest, settings, seed=0, pixels=(9, 1, 1, 1, 1, 1))


def same(a, b):
    names = ("image", "lesion", "leaf", "disease")
    return a.keys == b.keys and all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in names
    )


def mixed(folder, *, ratio=2, n_strong=2):
    """Return labeled tiles with unlabeled views of the same images."""
    tiles = dataset(folder)
    return MixedDataset(
        tiles,
        ViewDataset(dataset(folder), n_strong=n_strong, strong=strong_photometry(2.0)),
        ratio,
    )


def same_drawn(a, b):
    views = (a.unlabeled, b.unlabeled)
    return same(a.labeled, b.labeled) and all(
        torch.equal(*(getattr(v, n) for v in views)) for n in ("weak", "strong", "valid")
    )


def test_loader_unlabeled_views_follow_ratio(drawn_folder):
    ((batch, views),) = loader(
        mixed(drawn_folder), batch_size=4, start=0, stop=1, workers=0
    )
    assert len(batch) == 4
    assert len(views) == 8
    assert views.strong.shape == (2, 8, 3, 64, 64)
    assert views.valid.dtype == torch.bool


def test_views_differ_in_color_but_not_in_geometry(drawn_folder):
    """Weak and strong view are correlated, but not equal."""
    tiles = dataset(drawn_folder)
    for draw in range(6):
        views = ViewDataset(tiles, n_strong=1, strong=strong_photometry(2.0))[draw]
        weak, strong = (
            v.float().mean(0).flatten() for v in (views.weak[0], views.strong[0, 0])
        )
        assert not torch.equal(weak, strong)
        assert torch.corrcoef(torch.stack([weak, strong]))[0, 1] > 0.7


def test_views_valid_is_false_outside_image(drawn_folder):
    """``valid`` is false where the labeled tile of the same index is ignored."""
    tiles = dataset(drawn_folder)
    for draw in range(6):
        valid = ViewDataset(tiles, n_strong=1, strong=strong_photometry(2.0))[draw].valid
        assert torch.equal(valid, tiles[draw].leaf != IGNORE)


def test_sample_depends_only_on_seed_and_index(drawn_folder):
    one, two = dataset(drawn_folder), dataset(drawn_folder)
    for i in range(5):
        two[i + 7]  # other samples, another cache
    assert same(one[3], two[3])
    assert not same(one[3], one[4])


def test_loader_resumes_at_any_batch(drawn_folder):
    data = mixed(drawn_folder)
    whole = list(loader(data, batch_size=4, start=0, stop=4, workers=0))
    rest = list(loader(data, batch_size=4, start=2, stop=4, workers=0))
    assert all(same_drawn(a, b) for a, b in zip(whole[2:], rest, strict=True))


@pytest.mark.integration
def test_loader_workers_do_not_change_batches(drawn_folder):
    data = mixed(drawn_folder)
    alone = list(loader(data, batch_size=4, start=0, stop=2, workers=0))
    helped = list(loader(data, batch_size=4, start=0, stop=2, workers=1))
    assert all(same_drawn(a, b) for a, b in zip(alone, helped, strict=True))


def test_batch_shapes_types_and_values(drawn_folder):
    data = MixedDataset(dataset(drawn_folder))
    ((batch, views),) = loader(data, batch_size=6, start=0, stop=1, workers=0)
    assert views is None
    assert len(batch) == 6
    assert batch.image.shape == (6, 3, 64, 64)
    assert batch.image.dtype == torch.uint8
    assert batch.lesion.shape == batch.leaf.shape == (6, 64, 64)
    assert set(batch.lesion.unique().tolist()) <= {0, 1, 2, 3, 4, 5, IGNORE}


def test_samples_contain_lesions_and_balance_diseases(drawn_folder):
    data = dataset(drawn_folder, balance=1.0)
    tiles = collate([data[i] for i in range(60)])
    lesion = (tiles.lesion > 0) & (tiles.lesion != IGNORE)
    ill = {row.key for row in data.rows if row.disease != "healthy"}
    of_ill = torch.tensor([key in ill for key in tiles.keys])
    assert lesion.flatten(1).any(1)[of_ill].float().mean() > 0.8
    diseases = {row.key: row.disease for row in data.rows}
    drawn = [diseases[key] for key in tiles.keys]
    assert min(drawn.count(d) for d in set(diseases.values())) >= 3


def test_cache_drops_least_recently_used(drawn_folder):
    manifest = read_folder(drawn_folder)
    one = 96 * 96 * 5 / 2**20
    read = dataset(drawn_folder)._read
    cache = SampleCache(read, budget_mib=2.5 * one)
    for row in manifest.rows[:4]:
        cache.get(row)
    assert list(cache._cached) == [row.key for row in manifest.rows[2:4]]
    assert cache._bytes == sum(held.nbytes for held in cache._cached.values())
    nothing = SampleCache(read, budget_mib=0.0)
    assert nothing.get(manifest.rows[0]).sample.key == manifest.rows[0].key
    assert not nothing._cached


def test_cache_is_cleared_on_memory_error(drawn_folder):
    rows = read_folder(drawn_folder).rows
    read, failures = dataset(drawn_folder)._read, iter([False, True])

    def failing(row):
        if next(failures, False):
            raise MemoryError
        return read(row)

    cache = SampleCache(failing, budget_mib=100.0)
    cache.get(rows[0])
    assert cache.get(rows[1]).sample.key == rows[1].key
    assert list(cache._cached) == [rows[1].key]


def test_count_pixels_by_class(drawn_folder):
    manifest = read_folder(drawn_folder)
    seen = []
    pixels, sparse = count_pixels(manifest, on_progress=lambda i, n: seen.append((i, n)))
    assert not sparse
    assert sum(pixels) == len(manifest) * 96 * 96
    assert len(pixels) == 6
    assert np.argmax(pixels) == 0
    assert seen[-1] == (40, 40)


@pytest.mark.parametrize(
    ("value", "meaning", "is_sparse"),
    [(0, "background", False), (9, "ignore", True), (9, "leaf", False)],
)
def test_count_pixels_finds_sparse_masks(tmp_path, value, meaning, is_sparse):
    mask = np.full((40, 50), value, np.uint8)
    mask[3:6, 3:6] = 1
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (50, 40)).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    lines = {0: "background", 1: "rust"} | {value: meaning}
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(lines))
    counted = count_pixels(read_folder(tmp_path))
    assert counted.sparse == ({"a"} if is_sparse else set())


def test_sparse_masks_are_a_separate_target(drawn_folder):
    manifest = splits.assign(read_folder(drawn_folder), seed=0).split("train").labeled
    rows = [replace(row, sparse=i % 2 == 0) for i, row in enumerate(manifest.rows)]
    sparse = {row.key for row in rows if row.sparse}
    marked = TileDataset(manifest.only(rows), SETTINGS, seed=0, pixels=(9, 1, 1, 1, 1, 1))
    assert dataset(drawn_folder)[0].sparse_target is None
    seen = set()
    for draw in range(40):
        tiles = marked[draw]
        is_sparse = tiles.keys[0] in sparse
        seen.add(is_sparse)
        target, ignored = (
            (tiles.sparse_target, tiles.lesion)
            if is_sparse
            else (tiles.lesion, tiles.sparse_target)
        )
        assert (ignored == IGNORE).all()
        assert (target != IGNORE).any()
    assert seen == {True, False}


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_unreadable_images_raise_data_error(drawn_folder, tmp_path, workers):
    """A worker returns the error itself, not a traceback."""
    shutil.copytree(drawn_folder, tmp_path / "leaves")
    data = MixedDataset(dataset(tmp_path / "leaves"))
    for path in (tmp_path / "leaves" / "images").iterdir():
        path.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"\.jpg"):
        next(loader(data, batch_size=2, start=0, stop=1, workers=workers))


@pytest.mark.integration
def test_loader_unreadable_image_is_replaced_and_reported(drawn_folder, tmp_path):
    shutil.copytree(drawn_folder, tmp_path / "leaves")
    whole, data = mixed(drawn_folder), mixed(tmp_path / "leaves")
    broken = dataset(tmp_path / "leaves").rows[3]
    broken.image.write_bytes(b"gone")
    lost = 0
    for expected, found in zip(
        loader(whole, batch_size=4, start=0, stop=12, workers=0),
        loader(data, batch_size=4, start=0, stop=12, workers=0),
        strict=True,
    ):
        assert len(found.labeled) == 4
        assert len(found.unlabeled) == 8
        assert broken.key not in found.labeled.keys + found.unlabeled.keys
        met = expected.labeled.keys + expected.unlabeled.keys
        # Each sample that drew the broken image reports it once.
        assert len(found.skipped) == met.count(broken.key)
        assert all(broken.image.name in reason for _, reason in found.skipped)
        lost += len(found.skipped)
        if not found.skipped:
            assert same_drawn(expected, found)
    assert lost


def test_loader_killed_worker_is_replaced_without_losing_batches(drawn_folder):
    data = MixedDataset(dataset(drawn_folder))
    expected = list(loader(data, batch_size=2, start=0, stop=24, workers=0))
    messages, found = [], []
    for batch in loader(
        data, batch_size=2, start=0, stop=24, workers=1, log=messages.append
    ):
        found.append(batch)
        if len(found) in (2, 8):
            _, worker = psutil.Process().children(recursive=True)[-2:]
            worker.send_signal(signal.SIGKILL if len(found) == 2 else signal.SIGTERM)
            worker.wait()
    assert all(same(a.labeled, b.labeled) for a, b in zip(expected, found, strict=True))
    assert "was killed (SIGKILL), as the system does when memory runs out" in messages[0]
    assert "Continuing with 1 workers; no batch is lost." in messages[0]
    assert "was ended by a signal (SIGTERM)" in messages[1]
    assert "Continuing with no workers" in messages[1]


class SlowInWorkers(MixedDataset):
    """Delays samples in workers, like a slow network drive."""

    seconds = 2.5

    def __getitem__(self, draw):
        if torch.utils.data.get_worker_info() is not None:
            time.sleep(self.seconds)
        return super().__getitem__(draw)


@pytest.mark.integration
def test_loader_waits_for_slow_worker(drawn_folder, monkeypatch):
    monkeypatch.setattr(dataloader, "LOOK_S", 1)
    data, messages = SlowInWorkers(dataset(drawn_folder)), []
    assert list(loader(data, batch_size=2, start=0, stop=1, workers=1, log=messages.append))
    assert messages == []


@pytest.mark.integration
def test_loader_hung_worker_is_replaced(drawn_folder, monkeypatch):
    monkeypatch.setattr(dataloader, "LOOK_S", 1)
    monkeypatch.setattr(dataloader, "HUNG_S", 1)
    data, messages = SlowInWorkers(dataset(drawn_folder)), []
    data.seconds = 100
    assert list(loader(data, batch_size=2, start=0, stop=1, workers=1, log=messages.append))
    assert messages[0].startswith("A data loader worker does not respond")
    assert messages[1].endswith("Continuing with no workers; no batch is lost.")


@pytest.mark.parametrize("size", [1, 3, 4])
def test_micro_batches_concatenate_to_batch(drawn_folder, size):
    (drawn,) = loader(mixed(drawn_folder), batch_size=4, start=0, stop=1, workers=0)
    parts = to_micro_batches(drawn, size)
    assert max(len(part.labeled) for part in parts) == size
    assert all(len(part.unlabeled) == 2 * len(part.labeled) for part in parts)
    again = TrainBatch(
        collate([part.labeled for part in parts]),
        collate_views([part.unlabeled for part in parts]),
    )
    assert same_drawn(again, drawn)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (EOFError(), "their parent was ended, as the system does when memory runs out"),
        (ConnectionResetError(104, "Connection reset by peer"), "their parent was ended"),
        (OSError(28, "No space left on device"), "No space left on device (in /dev/shm,"),
    ],
)
def test_workers_that_cannot_be_started_are_replaced(
    drawn_folder, monkeypatch, error, text
):
    """As where the fork server is killed before the first batch."""

    class Failing(torch.utils.data.DataLoader):
        def __iter__(self):
            if self.num_workers:
                raise error
            return super().__iter__()

    monkeypatch.setattr(dataloader, "DataLoader", Failing)
    data, messages = MixedDataset(dataset(drawn_folder)), []
    batches = list(
        loader(data, batch_size=2, start=0, stop=2, workers=1, log=messages.append)
    )
    assert len(batches) == 2
    assert f"workers cannot be started: {text}" in messages[0]
    assert "data.workers=0 needs none." in messages[0]
    assert messages[-1].endswith("Continuing with no workers; no batch is lost.")
