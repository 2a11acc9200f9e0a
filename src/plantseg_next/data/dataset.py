"""Data sets of training tiles, sampled from the rows of a manifest; endless, repeatable.

Sample ``i`` (image, tile and augmentation) depends only on the seed and on ``i``. So a
run can resume at any sample, with any number of workers, and get the same samples.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch.utils.data import Dataset

from plantseg_next.data.augment import UNCHANGED, Geometry, Photometry
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.data.quality.inspect import ImageStats, inspect
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

TRIES = 20
"""Unreadable images in a row after which sampling raises the error."""


class CachedSample(NamedTuple):
    """A decoded image and its information map."""

    sample: Sample
    information: Float32[np.ndarray, "gh gw"]

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        sample = self.sample
        return int(sample.image.nbytes + sample.lesion.nbytes + sample.leaf.nbytes)


class SampleCache:
    """LRU cache of decoded images.

    Args:
        read: Decodes a row.
        budget_mib: Memory for images per process; 0 caches none.
    """

    def __init__(self, read: Callable[[Row], CachedSample], budget_mib: float) -> None:
        self._read = read
        self._budget = budget_mib * 2**20
        self._cached: OrderedDict[str, CachedSample] = OrderedDict()
        self._bytes = 0

    def get(self, row: Row) -> CachedSample:
        """Return the image of a row, from the cache or decoded now."""
        if row.key in self._cached:
            self._cached.move_to_end(row.key)
            return self._cached[row.key]
        try:
            cached = self._read(row)
        except MemoryError:  # clear the cache and try again
            self._cached.clear()
            self._bytes = 0
            cached = self._read(row)
        self._cached[row.key] = cached
        self._bytes += cached.nbytes
        while self._bytes > self._budget and self._cached:
            self._bytes -= self._cached.popitem(last=False)[1].nbytes
        return cached


class SampledImage(NamedTuple):
    """One sampled image and the placement of its tile.

    Args:
        sample: The image.
        placement: Placement of its tile.
        rng: Random generator of this sample.
        skipped: Images that were sampled first and could not be read.
    """

    sample: Sample
    placement: Placement
    rng: np.random.Generator
    skipped: tuple[SkippedImage, ...]


class TileDataset(Dataset[Batch]):
    """Tiles by sample index; see the module docstring.

    Args:
        manifest: Rows to sample from; at least one.
        settings: How to cut tiles.
        seed: Seed of all samples.
        pixels: Labeled pixels of each lesion class, "no lesion" first; tiles on rare
            classes are sampled more often.
        photometry: Photometric augmentation.
        named_fraction: As in ``MixtureSampler``.
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
        """Return one tile of one sampled image."""
        sampled = self.sample(index)
        tile = draw_tile(sampled.sample, sampled.placement, self.settings.tile_px)
        return replace(self._to_batch(tile, sampled.rng), skipped=sampled.skipped)

    def sample(self, draw: int) -> SampledImage:
        """Return the image of a sample index; an unreadable one is replaced by another.

        Raises:
            DataError: If ``TRIES`` images in a row cannot be read.
        """
        rng = np.random.default_rng((self.seed, draw))
        skipped: list[SkippedImage] = []
        while True:
            row = self.rows[self._mixture.index(draw, rng.random())]
            try:
                sample, information = self._cache.get(row)
            except PlantSegError as error:
                skipped.append(SkippedImage(row.key, error.came))
                if len(skipped) == TRIES:
                    raise
            else:
                placement = self._place_tile(information, rng)
                return SampledImage(sample, placement, rng, tuple(skipped))

    def _place_tile(
        self, information: Float32[np.ndarray, "gh gw"], rng: np.random.Generator
    ) -> Placement:
        """Return a placement drawn from the information map of an image."""
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


@dataclass(frozen=True)
class ViewDataset(Dataset[UnlabeledBatch]):
    """Weak and strong views of tiles without masks, by sample index.

    Args:
        tiles: Source of the tiles; its rows have no masks, some have image-level labels.
        n_strong: Strong views per tile.
        strong: Photometric augmentation of the strong views.
    """

    tiles: TileDataset
    n_strong: int
    strong: Photometry

    def __getitem__(self, index: int) -> UnlabeledBatch:
        """Return the views of one tile of one sampled image."""
        sample, placement, rng, skipped = self.tiles.sample(index)
        size = self.tiles.settings.tile_px
        image = draw_tile(sample, placement, size).image
        strong = [self.strong.apply(image, rng) for _ in range(self.n_strong)]
        valid = covered(sample.image.shape[:2], placement, size)
        return UnlabeledBatch(
            UNCHANGED.apply(image, rng)[None],
            torch.stack(strong)[:, None],
            torch.from_numpy(valid)[None],
            torch.tensor([sample.disease], dtype=torch.uint8),
            (sample.key,),
            skipped,
        )


class TrainBatch(NamedTuple):
    """Tiles of a whole step, or of one of its micro-batches.

    Args:
        labeled: Tiles with the labels of their rows.
        unlabeled: Views of tiles without masks; ``None`` in a supervised run.
    """

    labeled: Batch
    unlabeled: UnlabeledBatch | None = None

    @property
    def skipped(self) -> tuple[SkippedImage, ...]:
        """Images that could not be read when this was sampled."""
        views = self.unlabeled
        return self.labeled.skipped + (views.skipped if views is not None else ())


@dataclass(frozen=True)
class MixedDataset(Dataset[TrainBatch]):
    """One labeled tile and ``ratio`` unlabeled tiles per index.

    Args:
        labeled: Tiles with labels.
        unlabeled: Views of tiles without masks.
        ratio: Unlabeled tiles per labeled tile.
    """

    labeled: TileDataset
    unlabeled: ViewDataset | None = None
    ratio: int = 1

    def __getitem__(self, index: int) -> TrainBatch:
        """Return the labeled tile and the unlabeled views of an index."""
        views = None
        if self.unlabeled is not None:
            first = index * self.ratio
            views = collate_views(
                [self.unlabeled[i] for i in range(first, first + self.ratio)]
            )
        return TrainBatch(self.labeled[index], views)


def collate(batches: Sequence[Batch]) -> Batch:
    """Return the concatenated batches, in order; tensors stay uint8."""
    points = [batch.sparse_target for batch in batches if batch.sparse_target is not None]
    return Batch(
        image=torch.cat([batch.image for batch in batches]),
        lesion=torch.cat([batch.lesion for batch in batches]),
        leaf=torch.cat([batch.leaf for batch in batches]),
        disease=torch.cat([batch.disease for batch in batches]),
        keys=tuple(key for batch in batches for key in batch.keys),
        sparse_target=torch.cat(points) if points else None,
        skipped=tuple(image for batch in batches for image in batch.skipped),
    )


def collate_views(views: Sequence[UnlabeledBatch]) -> UnlabeledBatch:
    """Return the concatenated views, in order."""
    return UnlabeledBatch(
        weak=torch.cat([v.weak for v in views]),
        strong=torch.cat([v.strong for v in views], dim=1),
        valid=torch.cat([v.valid for v in views]),
        disease=torch.cat([v.disease for v in views]),
        keys=tuple(key for v in views for key in v.keys),
        skipped=tuple(image for v in views for image in v.skipped),
    )


def to_micro_batches(drawn: TrainBatch, size: int) -> list[TrainBatch]:
    """Return the micro-batches of a step, each of at most ``size`` labeled tiles.

    Views stay with the labeled tiles they were sampled with.
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
    """Statistics of the masks.

    Args:
        pixels: Labeled pixels of each lesion class, "no lesion" first.
        sparse: Keys of the rows whose mask labels only few pixels.
    """

    pixels: tuple[int, ...]
    sparse: frozenset[str]


def count_pixels(
    manifest: Manifest, *, on_progress: Callable[[int, int], None] = lambda *_: None
) -> LabelStats:
    """Return the statistics of the masks.

    Every image and mask is inspected, so broken files are found before training.

    Raises:
        DataError: If an image or a mask cannot be used.
        UsageError: If a file does not exist.
    """
    all_stats = inspect(manifest, on_progress)
    for failure in (failure for stats in all_stats for failure in stats.failures):
        raise failure.error
    return label_stats(manifest, all_stats)


def label_stats(manifest: Manifest, all_stats: Sequence[ImageStats]) -> LabelStats:
    """Return the statistics of masks that were inspected; see ``count_pixels``."""
    pixels = Counter[str]()
    sparse = set()
    for stats in all_stats:
        if stats.mask is not None:
            pixels.update(stats.mask.lesion_px)
            pixels[""] += stats.mask.annotated_px - sum(stats.mask.lesion_px.values())
            sparse |= {stats.row.key} if stats.mask.is_sparse else set()
    names = ("", *manifest.classes.lesions)  # "" is "no lesion"
    return LabelStats(tuple(pixels[name] for name in names), frozenset(sparse))
