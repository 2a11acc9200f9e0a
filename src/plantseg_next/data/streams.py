"""The one loader: rows of a manifest become batches of tiles, endlessly and repeatably.

Draw number ``i`` depends on the seed and on ``i`` alone: which picture, which tiles, which
light. So a run can go on at any draw, on any number of workers, and see what it would
have seen.
"""

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float32
from torch.utils.data import DataLoader, Dataset

from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.data.tiling import (
    CELL,
    choose_centres,
    class_weights,
    draw_tile,
    lesion_information,
    saliency,
    shrink_sample,
    signed_distance,
)
from plantseg_next.data.views import Geometry, Photometry
from plantseg_next.errors import PlantSegError
from plantseg_next.experiment import DataSettings
from plantseg_next.structures import IGNORE, Batch, Sample


class Held(NamedTuple):
    """A decoded picture, and where in it the information is."""

    sample: Sample
    information: Float32[np.ndarray, "gh gw"]

    @property
    def nbytes(self) -> int:
        """Room it takes."""
        sample = self.sample
        return int(sample.image.nbytes + sample.lesion.nbytes + sample.leaf.nbytes)


class SampleCache:
    """Decoded pictures, the least recently used dropped first.

    Args:
        read: Decodes a row.
        budget_mib: Room for pictures, a process; 0 keeps none.
    """

    def __init__(self, read: Callable[[Row], Held], budget_mib: float) -> None:
        self._read = read
        self._budget = budget_mib * 2**20
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._bytes = 0

    def get(self, row: Row) -> Held:
        """Return the row's picture, decoded now or earlier."""
        if row.key in self._held:
            self._held.move_to_end(row.key)
            return self._held[row.key]
        held = self._read(row)
        self._held[row.key] = held
        self._bytes += held.nbytes
        while self._bytes > self._budget and self._held:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return held


class TileDataset(Dataset[Batch]):
    """Tiles by draw number; see the head of the module.

    Args:
        manifest: Rows to draw from; at least one.
        settings: How to cut them.
        seed: Fixes every draw.
        pixels: Labelled pixels of each lesion class, "no lesion" first; rare classes
            are drawn more often.
        photometry: Light and camera.
    """

    def __init__(
        self,
        manifest: Manifest,
        settings: DataSettings,
        *,
        seed: int,
        pixels: Sequence[int],
        photometry: Photometry = Photometry(),  # noqa: B008 - frozen
    ) -> None:
        self.rows = manifest.rows
        self.settings = settings
        self.seed = seed
        self.geometry = Geometry(settings.scale)
        self.photometry = photometry
        self._weights = class_weights(np.asarray(pixels, np.int64))
        self._manifest = manifest
        self._cache = SampleCache(self._read, settings.cache_mib)
        strata = [(row.source, row.disease) for row in manifest.rows]
        size = Counter(strata)
        chance = np.array([size[s] ** -settings.balance for s in strata])
        self._cumulative = np.cumsum(chance / chance.sum())

    def __getitem__(self, draw: int) -> Batch:
        """Return the tiles of one visit to one picture."""
        rng = np.random.default_rng((self.seed, draw))
        index = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        row = self.rows[min(index, len(self.rows) - 1)]
        return collate([self._to_batch(t, rng) for t in self.tiles(row, rng)])

    def tiles(self, row: Row, rng: np.random.Generator) -> Iterator[Sample]:
        """Yield ``max_tiles`` informative tiles of one picture."""
        settings = self.settings
        sample, information = self._cache.get(row)
        scale = self.geometry.draw_scale(rng)
        centres = choose_centres(
            information,
            settings.max_tiles,
            reach_cells=settings.tile_px / scale / CELL / 2,
            background_share=settings.background_share,
            rng=rng,
        )
        for centre in centres:
            placement = self.geometry.draw(centre, scale, rng)
            yield draw_tile(sample, placement, settings.tile_px)

    def _read(self, row: Row) -> Held:
        sample = load_sample(row, self._manifest)
        sample = shrink_sample(sample, self.settings.long_side_px)
        if (sample.lesion == IGNORE).all():
            return Held(sample, saliency(sample.image))
        return Held(sample, lesion_information(sample.lesion, self._weights))

    def _to_batch(self, tile: Sample, rng: np.random.Generator) -> Batch:
        return Batch(
            image=self.photometry.apply(tile.image, rng)[None],
            lesion=torch.from_numpy(tile.lesion)[None],
            leaf=torch.from_numpy(tile.leaf)[None],
            disease=torch.tensor([tile.disease], dtype=torch.uint8),
            distance=torch.from_numpy(signed_distance(tile.lesion))[None],
            keys=(tile.key,),
        )


def collate(batches: Sequence[Batch]) -> Batch:
    """Return one batch of many, in order; values stay bytes until they are used."""
    return Batch(
        image=torch.cat([batch.image for batch in batches]),
        lesion=torch.cat([batch.lesion for batch in batches]),
        leaf=torch.cat([batch.leaf for batch in batches]),
        disease=torch.cat([batch.disease for batch in batches]),
        distance=torch.cat([batch.distance for batch in batches]),
        keys=tuple(key for batch in batches for key in batch.keys),
    )


def loader(
    dataset: TileDataset, *, tiles: int, start: int, stop: int, workers: int | None
) -> Iterator[Batch]:
    """Yield batches of ``tiles`` tiles, from batch ``start`` up to ``stop``.

    Args:
        dataset: Where tiles come from.
        tiles: Tiles a batch; a multiple of ``max_tiles``.
        start: First batch.
        stop: Batch after the last.
        workers: Processes beside the main one; 0 reads in the main process. ``None``:
            as many as there are cores beyond two, at most 4: on two cores a worker takes
            from the network more than it gives.

    Raises:
        DataError: If a picture cannot be read, from whichever process.
    """
    if workers is None:
        workers = min(4, max(0, (os.cpu_count() or 1) - 2))
    visits = tiles // dataset.settings.max_tiles
    batches = DataLoader(
        _Draws(dataset),
        batch_size=visits,
        sampler=range(start * visits, stop * visits),
        num_workers=workers,
        collate_fn=_collate_or_error,
        worker_init_fn=_quiet_worker if workers else None,
        prefetch_factor=4 if workers else None,
        # OpenCV's threads do not survive a plain fork.
        multiprocessing_context="forkserver" if workers else None,
    )
    for batch in batches:
        if isinstance(batch, PlantSegError):
            raise batch
        yield batch


class _Draws(Dataset[Batch | PlantSegError]):
    """Hand a user's error over as a value: PyTorch would bury it in a traceback."""

    def __init__(self, tiles: TileDataset) -> None:
        self._tiles = tiles

    def __getitem__(self, draw: int) -> Batch | PlantSegError:
        try:
            return self._tiles[draw]
        except PlantSegError as error:
            return error


def _collate_or_error(
    drawn: Sequence[Batch | PlantSegError],
) -> Batch | PlantSegError:
    for one in drawn:
        if isinstance(one, PlantSegError):
            return one
    return collate([one for one in drawn if isinstance(one, Batch)])


def _quiet_worker(_: int) -> None:
    """Keep a worker to one thread; there is a worker a core."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def count_pixels(
    manifest: Manifest, *, on_progress: Callable[[int, int], None] | None = None
) -> tuple[int, ...]:
    """Return the labelled pixels of each lesion class, "no lesion" first.

    Reads every picture and mask once, so that a broken one is found before training.
    """
    n_ids = manifest.classes.n_lesion_logits
    total = np.zeros(256, np.int64)
    for i, row in enumerate(manifest.rows):
        lesion = load_sample(row, manifest).lesion
        # OpenCV's histogram reads bytes; NumPy's widens them eightfold first.
        found = cv2.calcHist([lesion], [0], None, [256], [0, 256])
        total += found.ravel().astype(np.int64)
        if on_progress is not None:
            on_progress(i + 1, len(manifest))
    return tuple(int(n) for n in total[:n_ids])
