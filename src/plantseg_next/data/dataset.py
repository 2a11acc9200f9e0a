"""What the one loader draws: rows of a manifest become tiles, endlessly and repeatably.

Draw number ``i`` depends on the seed and on ``i`` alone: which image, which tiles, which
light. So a run can go on at any draw, on any number of workers, and see what it would
have seen.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float32
from torch.utils.data import Dataset

from plantseg_next.data.augment import UNCHANGED, Geometry, Photometry
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.data.sampler import MixtureSampler
from plantseg_next.data.tiling import (
    CELL,
    Placement,
    choose_center,
    class_weights,
    covered,
    draw_tile,
    lesion_information,
    saliency,
    shrink_sample,
)
from plantseg_next.errors import PlantSegError
from plantseg_next.settings import DataSettings
from plantseg_next.structures import IGNORE, Batch, Sample, SkippedImage, UnlabeledBatch

SPARSE = 0.05
"""Labeled part of an image below which its mask is points or scribbles."""
TRIES = 20
"""Images in a row that may be unreadable before a draw gives up."""


class CachedSample(NamedTuple):
    """A decoded image, and where in it the information is."""

    sample: Sample
    information: Float32[np.ndarray, "gh gw"]

    @property
    def nbytes(self) -> int:
        """Room it takes."""
        sample = self.sample
        return int(sample.image.nbytes + sample.lesion.nbytes + sample.leaf.nbytes)


class SampleCache:
    """Decoded images, the least recently used dropped first.

    Args:
        read: Decodes a row.
        budget_mib: Room for images, a process; 0 keeps none.
    """

    def __init__(self, read: Callable[[Row], CachedSample], budget_mib: float) -> None:
        self._read = read
        self._budget = budget_mib * 2**20
        self._held: OrderedDict[str, CachedSample] = OrderedDict()
        self._bytes = 0

    def get(self, row: Row) -> CachedSample:
        """Return the row's image, decoded now or earlier."""
        if row.key in self._held:
            self._held.move_to_end(row.key)
            return self._held[row.key]
        try:
            held = self._read(row)
        except MemoryError:  # what is kept for later makes room for what is needed now
            self._held.clear()
            self._bytes = 0
            held = self._read(row)
        self._held[row.key] = held
        self._bytes += held.nbytes
        while self._bytes > self._budget and self._held:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return held


class SampledImage(NamedTuple):
    """One draw's look at one image.

    Args:
        sample: The image.
        placement: Where its tile lies.
        rng: The draw's chance.
        skipped: Images that were drawn first and could not be read.
    """

    sample: Sample
    placement: Placement
    rng: np.random.Generator
    skipped: tuple[SkippedImage, ...]


class TileDataset(Dataset[Batch]):
    """Tiles by draw number; see the head of the module.

    Args:
        manifest: Rows to draw from; at least one.
        settings: How to cut them.
        seed: Fixes every draw.
        pixels: Labeled pixels of each lesion class, "no lesion" first; rare classes
            are drawn more often.
        photometry: Light and camera.
        named_fraction: As in ``Mixture``.
    """

    def __init__(
        self,
        manifest: Manifest,
        settings: DataSettings,
        *,
        seed: int,
        pixels: Sequence[int],
        photometry: Photometry = Photometry(),  # noqa: B008 - frozen
        named_fraction: float | None = None,
    ) -> None:
        self.rows = manifest.rows
        self.settings = settings
        self.seed = seed
        self.geometry = Geometry(settings.scale)
        self.photometry = photometry
        self._weights = class_weights(np.asarray(pixels, np.int64))
        self._manifest = manifest
        self._sparse = {row.key for row in manifest.rows if row.sparse}
        self._cache = SampleCache(self._read, settings.cache_mib)
        self._mixture = MixtureSampler(
            manifest.rows, settings, named_fraction=named_fraction
        )

    def __getitem__(self, index: int) -> Batch:
        """Return the tile of one visit to one image."""
        visit = self.sample(index)
        tile = draw_tile(visit.sample, visit.placement, self.settings.tile_px)
        return replace(self._to_batch(tile, visit.rng), skipped=visit.skipped)

    def sample(self, draw: int) -> SampledImage:
        """Return the image of a draw; one that cannot be read is replaced by another.

        Raises:
            DataError: If one after the other cannot be read.
        """
        rng = np.random.default_rng((self.seed, draw))
        lost: list[SkippedImage] = []
        while True:
            row = self.rows[self._mixture.index(draw, rng.random())]
            try:
                sample, information = self._cache.get(row)
            except PlantSegError as error:
                lost.append(SkippedImage(row.key, error.came))
                if len(lost) == TRIES:
                    raise
            else:
                placement = self._place_tile(information, rng)
                return SampledImage(sample, placement, rng, tuple(lost))

    def _place_tile(
        self, information: Float32[np.ndarray, "gh gw"], rng: np.random.Generator
    ) -> Placement:
        """Return an informative place of one image."""
        scale = self.geometry.draw_scale(rng)
        reach = self.settings.tile_px / scale / CELL / 2
        center = choose_center(information, reach_cells=reach, rng=rng)
        return self.geometry.draw(center, scale, rng)

    def _read(self, row: Row) -> CachedSample:
        sample = load_sample(row, self._manifest)
        sample = shrink_sample(sample, self.settings.long_side_px)
        if (sample.lesion == IGNORE).all():
            return CachedSample(sample, saliency(sample.image))
        return CachedSample(sample, lesion_information(sample.lesion, self._weights))

    def _to_batch(self, tile: Sample, rng: np.random.Generator) -> Batch:
        lesion, points = tile.lesion, None
        if self._sparse:
            points = np.full_like(lesion, IGNORE)
            if tile.key in self._sparse:
                lesion, points = points, lesion
        return Batch(
            image=self.photometry.apply(tile.image, rng)[None],
            lesion=torch.from_numpy(lesion)[None],
            leaf=torch.from_numpy(tile.leaf)[None],
            disease=torch.tensor([tile.disease], dtype=torch.uint8),
            keys=(tile.key,),
            sparse_target=None if points is None else torch.from_numpy(points)[None],
        )


class ViewDataset(Dataset[UnlabeledBatch]):
    """Weak and strong views of tiles without masks, by draw number.

    Args:
        tiles: Where tiles come from; its rows have no masks, and some have names.
        n_strong: Strong views a tile.
        strong: Light and camera of those.
    """

    def __init__(self, tiles: TileDataset, *, n_strong: int, strong: Photometry) -> None:
        self._tiles = tiles
        self._n_strong = n_strong
        self._strong = strong

    def __getitem__(self, index: int) -> UnlabeledBatch:
        """Return the views of one visit to one image."""
        sample, placement, rng, lost = self._tiles.sample(index)
        size = self._tiles.settings.tile_px
        image = draw_tile(sample, placement, size).image
        strong = [self._strong.apply(image, rng) for _ in range(self._n_strong)]
        inside = covered(sample.image.shape[:2], placement, size)
        return UnlabeledBatch(
            UNCHANGED.apply(image, rng)[None],
            torch.stack(strong)[:, None],
            torch.from_numpy(inside)[None],
            torch.tensor([sample.disease], dtype=torch.uint8),
            (sample.key,),
            lost,
        )


class TrainBatch(NamedTuple):
    """What one forward pass learns from.

    Args:
        labeled: Tiles with whatever labels their rows have.
        unlabeled: Views of tiles without; ``None`` in a supervised run.
    """

    labeled: Batch
    unlabeled: UnlabeledBatch | None = None

    @property
    def skipped(self) -> tuple[SkippedImage, ...]:
        """Images that could not be read when this was drawn."""
        views = self.unlabeled
        return self.labeled.skipped + (views.skipped if views is not None else ())


class MixedDataset(Dataset[TrainBatch]):
    """One visit to a labeled image, and ``ratio`` visits to unlabeled ones.

    Args:
        labeled: Tiles with labels.
        unlabeled: Views of tiles without.
        ratio: Visits to unlabeled images a visit to a labeled one.
    """

    def __init__(
        self, labeled: TileDataset, unlabeled: ViewDataset | None = None, ratio: int = 1
    ) -> None:
        self._labeled = labeled
        self._unlabeled = unlabeled
        self._ratio = ratio

    def __getitem__(self, index: int) -> TrainBatch:
        """Return what a draw number stands for."""
        views = None
        if self._unlabeled is not None:
            first = index * self._ratio
            views = collate_views(
                [self._unlabeled[i] for i in range(first, first + self._ratio)]
            )
        return TrainBatch(self._labeled[index], views)


def collate(batches: Sequence[Batch]) -> Batch:
    """Return one batch of many, in order; values stay bytes until they are used."""
    points = [batch.sparse_target for batch in batches if batch.sparse_target is not None]
    return Batch(
        image=torch.cat([batch.image for batch in batches]),
        lesion=torch.cat([batch.lesion for batch in batches]),
        leaf=torch.cat([batch.leaf for batch in batches]),
        disease=torch.cat([batch.disease for batch in batches]),
        keys=tuple(key for batch in batches for key in batch.keys),
        sparse_target=torch.cat(points) if points else None,
        skipped=tuple(lost for batch in batches for lost in batch.skipped),
    )


def collate_views(views: Sequence[UnlabeledBatch]) -> UnlabeledBatch:
    """Return the views of many tiles as one, in order."""
    return UnlabeledBatch(
        weak=torch.cat([v.weak for v in views]),
        strong=torch.cat([v.strong for v in views], dim=1),
        valid=torch.cat([v.valid for v in views]),
        disease=torch.cat([v.disease for v in views]),
        keys=tuple(key for v in views for key in v.keys),
        skipped=tuple(lost for v in views for lost in v.skipped),
    )


def to_micro_batches(drawn: TrainBatch, size: int) -> list[TrainBatch]:
    """Return a step's tiles in parts of at most ``size`` labeled ones, in order.

    Views go with the labeled tiles they were drawn with.
    """
    n = len(drawn.labeled)
    ratio = len(drawn.unlabeled) // n if drawn.unlabeled is not None else 0
    return [
        TrainBatch(
            drawn.labeled.select(slice(i, i + size)),
            drawn.unlabeled
            and drawn.unlabeled.select(slice(i * ratio, (i + size) * ratio)),
        )
        for i in range(0, n, size)
    ]


class LabelStats(NamedTuple):
    """What masks hold.

    Args:
        pixels: Labeled pixels of each lesion class, "no lesion" first.
        sparse: Keys of the rows whose mask says something of few pixels only.
    """

    pixels: tuple[int, ...]
    sparse: frozenset[str]


def count_pixels(
    manifest: Manifest, *, on_progress: Callable[[int, int], None] | None = None
) -> LabelStats:
    """Return what the masks hold.

    Reads every image and mask once, so that a broken one is found before training.
    """
    n_ids = manifest.classes.n_lesion_logits
    total = np.zeros(256, np.int64)
    sparse = set()
    for i, row in enumerate(manifest.rows):
        sample = load_sample(row, manifest)
        lesion, leaf = sample.lesion, sample.leaf
        # OpenCV's histogram reads bytes; NumPy's widens them eightfold first.
        found = cv2.calcHist([lesion], [0], None, [256], [0, 256])
        total += found.ravel().astype(np.int64)
        few = SPARSE * lesion.size
        # A mask that marks the leaf alone says much, though nothing of lesions.
        if found[:IGNORE].sum() < few and cv2.countNonZero(leaf ^ IGNORE) < few:
            sparse.add(row.key)
        if on_progress is not None:
            on_progress(i + 1, len(manifest))
    return LabelStats(tuple(int(n) for n in total[:n_ids]), frozenset(sparse))
