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
    pairing = _Pairing(images, masks, places, channels)
    pairing.pair_in_place()
    if not only_in_place:
        pairing.pair_by_folders()
        pairing.pair_by_names()
        pairing.pair_anywhere()
        pairing.pair_alone()
    return Pairs(pairing.of, [mask.path for mask in pairing.masks])


class _File(NamedTuple):
    path: Path
    name: str
    place: tuple[str, ...]


class _Pairing:
    """The images and masks that are not paired yet."""

    def __init__(
        self, images: Iterable[Path], masks: Iterable[Path], places: Places, channels: bool
    ) -> None:
        self.images = [_File(path, path.name, places.of(path)) for path in images]
        self.masks = [_File(path, path.name, places.of(path)) for path in masks]
        self.of: dict[Path, list[TaggedMask]] = {}
        self._places = places
        self._forms = name_forms(channels=channels)
        self._image_places = {image.place for image in self.images}
        self._paired: set[Path] = set()

    def pair_in_place(self) -> None:
        """Pair equal names in the same place, exact names first."""
        for of_image, of_mask in self._forms:
            if not self.masks:
                return
            named: dict[tuple[object, str], list[_File]] = defaultdict(list)
            for image in self.images:
                named[image.place, of_image(image.name)].append(image)
            found: dict[tuple[object, str], list[_File]] = defaultdict(list)
            for mask in self.masks:
                key = (mask.place, of_mask(mask.name))
                if key in named:
                    found[key].append(mask)
            for shared, masks in found.items():
                self._refuse_shared(named[shared], masks)
                self._take(named[shared][0], masks[0], NO_TAG)
            self._remove_paired()

    def pair_by_folders(self) -> None:
        """Pair masks whose folders add something to the place of an image."""
        for of_image, of_mask in self._forms:
            if not self.masks:
                break
            named: dict[str, list[_File]] = defaultdict(list)
            for image in self.images:
                named[of_image(image.name)].append(image)
            for mask in self.masks:
                extra = [
                    (image, rest)
                    for image in named.get(of_mask(mask.name), ())
                    if (rest := _added(mask.place, image.place)) is not None
                ]
                if not extra or self._is_elsewhere(mask):
                    continue
                fewest = min(len(rest) for _, rest in extra)
                nearest = [entry for entry in extra if len(entry[1]) == fewest]
                if fewest and len(nearest) == 1:
                    image, rest = nearest[0]
                    self._take(image, mask, tag_of_folders(rest))
            self._remove_paired(images=False)
        self._remove_paired()

    def pair_by_names(self) -> None:
        """Pair masks whose names add something to that of an image."""
        in_place: dict[tuple[str, ...], dict[str, list[_File]]] = defaultdict(dict)
        anywhere: dict[str, list[_File]] = {}
        for image in self.images if self.masks else ():
            for name in dict.fromkeys((bare(image.name), without_words(image.name))):
                in_place[image.place].setdefault(name, []).append(image)
                anywhere.setdefault(name, []).append(image)
        found: list[tuple[_File, _File, Tag]] = []
        for mask in self.masks:
            for named in (in_place.get(mask.place, {}), anywhere):
                divided = split_name(bare(mask.name), named)
                images = named[divided[0]] if divided else []
                if divided and len(images) == 1 and self._may_be(images[0], mask):
                    found.append((images[0], mask, tag_of(divided[1])))
                    break
        counts: dict[str, int] = defaultdict(int)
        for _, _, tag in found:
            counts[tag.name] += 1
        n_images = len({image.path for image, _, _ in found})
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
            if not self.masks:
                return
            named: dict[str, list[_File]] = defaultdict(list)
            for image in self.images:
                named[of_image(image.name)].append(image)
            found: dict[str, list[_File]] = defaultdict(list)
            for mask in self.masks:
                found[of_mask(mask.name)].append(mask)
            for name, masks in found.items():
                images = named.get(name, [])
                if len(images) == len(masks) == 1 and self._may_be(images[0], masks[0]):
                    self._take(images[0], masks[0], NO_TAG)
            self._remove_paired()

    def pair_alone(self) -> None:
        """Pair masks of any name with the only image of their folder.

        Each image then has a folder of its own, with the masks of its parts.
        """
        by_place: dict[tuple[str, ...], list[_File]] = defaultdict(list)
        for mask in self.masks:
            by_place[mask.place].append(mask)
        images = {image.place: image for image in self.images}
        if not self.of and len(images) == len(self.images) > 1 and () not in images:
            for place, image in images.items():
                for number, mask in enumerate(by_place.get(place, ())):
                    self._take(image, mask, Tag("", str(number), by_word=True))
            self._remove_paired()

    def _may_be(self, image: _File, mask: _File) -> bool:
        if image.place == mask.place:
            return True
        splits = {self._places.split(image.path), self._places.split(mask.path)} - {None}
        return len(splits) < 2 and not self._is_elsewhere(mask)

    def _is_elsewhere(self, mask: _File) -> bool:
        """Return whether the images of the folder of a mask are known: it lacks its own."""
        return bool(mask.place) and mask.place in self._image_places

    def _take(self, image: _File, mask: _File, tag: Tag) -> None:
        self.of.setdefault(image.path, []).append(TaggedMask(mask.path, tag))
        self._paired.add(mask.path)

    def _remove_paired(self, *, images: bool = True) -> None:
        if images:
            self.images = [image for image in self.images if image.path not in self.of]
        self.masks = [mask for mask in self.masks if mask.path not in self._paired]

    def _refuse_shared(self, images: Sequence[_File], masks: Sequence[_File]) -> None:
        """Refuse two images of one mask, or two masks of one image."""
        if len(images) == len(masks) == 1:
            return
        shown_images = shorten([self._places.shown(image.path) for image in images])
        shown_masks = shorten([self._places.shown(mask.path) for mask in masks])
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
