"""Which mask belongs to which image, by their places and names.

Exact names count first. An image has one mask, or several that say a class or a number
beside its name. Two images never share a mask.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from plantseg_next.data.formats.mask_folders import Places
from plantseg_next.data.formats.mask_names import (
    NO_TAG,
    Tag,
    bare,
    name_forms,
    split_name,
    tag_of,
    tag_of_folders,
    without_words,
)
from plantseg_next.errors import UsageError, shorten


class TaggedMask(NamedTuple):
    """A mask, and what it says beside the name of its image."""

    path: Path
    tag: Tag = NO_TAG


@dataclass
class Pairs:
    """Images with their masks.

    Args:
        of: Masks of each image that has some.
        left: Masks without an image.
    """

    of: dict[Path, list[TaggedMask]] = field(default_factory=dict)
    left: list[Path] = field(default_factory=list)


def pair(
    images: Iterable[Path],
    masks: Iterable[Path],
    places: Places,
    *,
    channels: bool = False,
    only_in_place: bool = False,
) -> Pairs:
    """Return the masks of images.

    Names are compared without ending and without words such as ``_mask``, within the same
    place first. A mask in another place counts if its folders add a class, or if its name
    and that of the image occur once.

    Args:
        images: The images.
        masks: The masks.
        places: Where they are.
        channels: Whether images have nnU-Net's number of a channel.
        only_in_place: Whether to leave masks in other places, and those with tags.

    Raises:
        UsageError: If two images would share a mask, or an image has two masks that are
            not distinguished by a class or a number.
    """
    pairing = _Pairing(list(images), list(masks), places, channels)
    pairing.pair_in_place()
    if not only_in_place:
        pairing.pair_by_folders()
        pairing.pair_by_names()
        pairing.pair_anywhere()
    return Pairs(pairing.of, pairing.masks)


class _Pairing:
    """The images and masks that are not paired yet."""

    def __init__(
        self, images: list[Path], masks: list[Path], places: Places, channels: bool
    ) -> None:
        self.images = images
        self.masks = masks
        self.of: dict[Path, list[TaggedMask]] = {}
        self._places = places
        self._forms = name_forms(channels=channels)
        self._image_places = {places.of(image) for image in images}

    def pair_in_place(self) -> None:
        """Pair equal names in the same place, exact names first."""
        place = self._places.of
        for of_image, of_mask in self._forms:
            named: dict[tuple[object, str], list[Path]] = defaultdict(list)
            for image in self.images:
                named[place(image), of_image(image)].append(image)
            found: dict[tuple[object, str], list[Path]] = defaultdict(list)
            for mask in self.masks:
                key = (place(mask), of_mask(mask))
                if key in named:
                    found[key].append(mask)
            for shared, masks in found.items():
                self._refuse_shared(named[shared], masks)
                self._take(named[shared][0], masks[0], NO_TAG)
            self._remove_paired()

    def pair_by_folders(self) -> None:
        """Pair masks whose folders add something to the place of an image."""
        for of_image, of_mask in self._forms:
            named: dict[str, list[Path]] = defaultdict(list)
            for image in self.images:
                named[of_image(image)].append(image)
            for mask in self.masks:
                place = self._places.of(mask)
                extra = {
                    image: rest
                    for image in named.get(of_mask(mask), ())
                    if (rest := _added(place, self._places.of(image))) is not None
                }
                if not extra:
                    continue
                fewest = min(map(len, extra.values()))
                nearest = [image for image, rest in extra.items() if len(rest) == fewest]
                if fewest and len(nearest) == 1 and not self._is_elsewhere(mask):
                    rest = extra[nearest[0]]
                    self._take(nearest[0], mask, tag_of_folders(rest))
            self._remove_paired_masks()
        self._remove_paired()

    def pair_by_names(self) -> None:
        """Pair masks whose names add something to that of an image."""
        in_place: dict[tuple[str, ...], dict[str, list[Path]]] = defaultdict(dict)
        anywhere: dict[str, list[Path]] = {}
        for image in self.images:
            for name in dict.fromkeys((bare(image), without_words(image))):
                in_place[self._places.of(image)].setdefault(name, []).append(image)
                anywhere.setdefault(name, []).append(image)
        found: list[tuple[Path, Path, Tag]] = []
        for mask in self.masks:
            for named in (in_place.get(self._places.of(mask), {}), anywhere):
                divided = split_name(bare(mask), named)
                images = named[divided[0]] if divided else []
                if divided and len(images) == 1 and self._may_be(images[0], mask):
                    found.append((images[0], mask, tag_of(divided[1])))
                    break
        counts: dict[str, int] = defaultdict(int)
        for _, _, tag in found:
            counts[tag.name] += 1
        n_images = len({image for image, _, _ in found})
        is_all = len(found) == len(self.masks) and not self.of
        names_repeat = (
            len(counts) * 2 <= len(found)
            or n_images < len(found)
            or (is_all and len(counts) == 1)
        )
        for image, mask, tag in found:
            if tag.by_word or (names_repeat if tag.name else is_all):
                self._take(image, mask, tag)
        self._remove_paired()

    def pair_anywhere(self) -> None:
        """Pair names that occur once, in places that do not say otherwise."""
        for of_image, of_mask in self._forms:
            named: dict[str, list[Path]] = defaultdict(list)
            for image in self.images:
                named[of_image(image)].append(image)
            found: dict[str, list[Path]] = defaultdict(list)
            for mask in self.masks:
                found[of_mask(mask)].append(mask)
            for name, masks in found.items():
                images = named.get(name, [])
                if len(images) == len(masks) == 1 and self._may_be(images[0], masks[0]):
                    self._take(images[0], masks[0], NO_TAG)
            self._remove_paired()

    def _may_be(self, image: Path, mask: Path) -> bool:
        if self._places.of(image) == self._places.of(mask):
            return True
        splits = {self._places.split(image), self._places.split(mask)} - {None}
        return len(splits) < 2 and not self._is_elsewhere(mask)

    def _is_elsewhere(self, mask: Path) -> bool:
        """Return whether the images of the folder of a mask are known: it lacks its own."""
        place = self._places.of(mask)
        return bool(place) and place in self._image_places

    def _take(self, image: Path, mask: Path, tag: Tag) -> None:
        self.of.setdefault(image, []).append(TaggedMask(mask, tag))

    def _remove_paired(self) -> None:
        self.images = [image for image in self.images if image not in self.of]
        self._remove_paired_masks()

    def _remove_paired_masks(self) -> None:
        used = {mask.path for masks in self.of.values() for mask in masks}
        self.masks = [mask for mask in self.masks if mask not in used]

    def _refuse_shared(self, images: Sequence[Path], masks: Sequence[Path]) -> None:
        """Refuse two images of one mask, or two masks of one image."""
        if len(images) == len(masks) == 1:
            return
        shown_images = shorten([self._places.shown(image) for image in images])
        shown_masks = shorten([self._places.shown(mask) for mask in masks])
        if len(images) > 1:
            raise UsageError(
                f"`{shown_masks}` would be the mask of {len(images)} images of "
                f"`{self._places.root}`: {shown_images}.",
                needed="a mask for one image alone, so that none gets a mask that is not "
                "its own",
                fix="remove the copy if the images are the same; or else give a mask the "
                f"whole name of its image, as in `{images[0].name}.png`",
            )
        raise UsageError(
            f"The image `{shown_images}` of `{self._places.root}` has {len(masks)} masks: "
            f"{shown_masks}.",
            needed="one mask for each image, or masks whose names or folders say the class "
            "of each",
            fix="move the masks that are not meant out of the data set; or put those of "
            "each class into a folder with its name, as in masks/rust and masks/leaf",
        )


def _added(place: tuple[str, ...], base: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the parts of a place that another one lacks; ``None`` if it is elsewhere."""
    rest = list(place)
    for part in base:
        if part not in rest:
            return None
        rest.remove(part)
    return tuple(rest)
