"""A model on disk: all that is needed to use and to evaluate it, wherever it is copied.

A bundle is a folder of three files. ``model-<digest>.safetensors`` holds the weights and
cannot run code. ``images-<digest>.json`` lists the images of its run by their digests, with
their splits. ``model.json`` is the card: class names, the shape of the network, how images
are prepared for it, where it comes from, and the SHA-256 of the other files and of itself,
which detect damage and changes by hand.

The other files are named by their digests, so that a newer model replaces an older one
atomically, with its card: a reader of the folder, during a run or after it was killed,
gets one or the other.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field, with_config

from plantseg_next.errors import DataError, missing_path
from plantseg_next.files import write_atomically
from plantseg_next.json_files import ClassMapInFile, JsonFormat
from plantseg_next.settings import MAX_SIDE_PX, ModelSettings
from plantseg_next.structures import ClassMap

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plantseg_next.models.segmenter import Segmenter

FORMAT = 5
CARD = "model.json"
RESERVED = ("background", "leaf", "no lesion", "ignore")
"""Meanings of mask values that no lesion class can have as its name."""


def _of_a_model(classes: ClassMap) -> ClassMap:
    if not classes.lesions:
        raise ValueError("no lesion class is stated")
    if reserved := [name for name in classes.lesions if name in RESERVED]:
        raise ValueError(f"`{reserved[0]}` cannot be the name of a lesion class")
    return classes


ClassesOfModel = Annotated[ClassMapInFile, AfterValidator(_of_a_model)]
Mean = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
Std = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
OLD_NAMES = {
    "summary": "global_stats",
    "context": "class_bias_from_global",
    "detail": "stem_stride2",
    "narrow": "reduce",
    "join": "fuse",
    "mix": "proj",
    "think": "mlp",
    "norm_think": "norm_mlp",
    "norm_attend": "norm_attn",
}
"""Old to new names of parts of the network. Models written before 2026-11-27 have the old
names and are converted when they are read."""


@dataclass(frozen=True)
class Normalization:
    """How the network normalizes an image: ``(image / 255 - mean) / std``, per channel.

    Args:
        mean: Of red, green and blue, in [0, 1].
        std: Likewise; above 0.
    """

    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class ModelCard:
    """The information needed to use a model, readable without torch.

    Args:
        classes: Names of the class ids.
        model: Shape of the network.
        tile_px: Side of the tiles it was trained on.
        long_side_px: Larger images are shrunk to this first; ``None``: never.
        weights_origin: Source of the encoder's first weights, see ``PretrainedSource``.
        weights_license: License of those weights; it also applies to the trained model.
        weights_sha256: Digest of their file; empty without one.
        sources: Data sets it was trained on, those of the model it started from included.
        metrics: Its validation metrics when it was written.
        n_val_images: Number of images of those metrics; 0 if unknown.
        threshold: Smallest probability of any lesion that is marked as lesion.
        calibration: Temperature of each head; ``None`` if not calibrated.
        normalization: What the network does to an image first; ``None`` if not recorded.
        versions: Versions of this package, torch and timm.
        code: Commit of this package; "" outside a git checkout.
        written: When it was written, in ISO 8601; filled in by ``write_bundle``.
        sha256: Digest of the weights file; filled in by ``write_bundle``.
        images_sha256: Digest of the file of its run's images; likewise, "" without one.
        card_sha256: Digest of the other fields; likewise, "" in older cards and in one
            that was changed on purpose.
    """

    format: ClassVar[int] = FORMAT
    """Version of the folder's layout."""

    classes: ClassesOfModel
    model: ModelSettings
    tile_px: Annotated[int, Field(ge=32, le=8192, multiple_of=32)]
    long_side_px: Annotated[int, Field(ge=32, le=MAX_SIDE_PX)] | None
    weights_origin: str = "random"
    weights_license: str = "none"
    weights_sha256: str = ""
    sources: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    n_val_images: Annotated[int, Field(ge=0, le=10**9)] = 0
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    calibration: Mapping[Literal["lesion", "leaf", "disease"], Temperature] | None = None
    normalization: Normalization | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    written: str = field(default="", compare=False)
    sha256: Digest = ""
    images_sha256: Digest = ""
    card_sha256: Digest = field(default="", compare=False)

    @property
    def weights(self) -> str:
        """Name of the weights file."""
        return f"model-{self.sha256[:16]}.safetensors"

    @property
    def images(self) -> str:
        """Name of the file of its run's images."""
        return f"images-{self.images_sha256[:16]}.json"

    @property
    def model_id(self) -> str:
        """What tables call the model: the start of its digest."""
        return self.sha256[:12]


class RunImage(NamedTuple):
    """An image of a run.

    Args:
        digest: The first 64 bits of the SHA-256 of its file, as hexadecimal digits.
        split: Its split in the run.
        source: Its data set.
        group: Its group in the data set; "" without one.
        has_mask: Whether it had a mask.
    """

    digest: str
    split: Literal["train", "val", "test", "unlabeled"] | None
    source: str
    group: str
    has_mask: bool


RunImages = tuple[RunImage, ...]


@dataclass(frozen=True)
class _ImageList:
    images: RunImages


def _present_names(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card of format 3 with the present names; see OLD_NAMES."""
    if "figures" in card:
        card["metrics"] = card.pop("figures")
        card["model"].pop("drop_path", None)
    return card


_CARD = JsonFormat(
    ModelCard,
    "a model card",
    version=FORMAT,
    fix="take another copy of the model, or train it again",
    oldest=3,
    fix_older="train the model again",
    migrate=_present_names,
)
_IMAGES = JsonFormat(_ImageList, "a list of images", version=1, fix=_CARD.fix)


def write_bundle(
    folder: Path,
    network: "nn.Module",
    card: ModelCard,
    images: RunImages | None = None,
) -> ModelCard:
    """Write a model; an older one in the same folder is replaced atomically.

    Args:
        folder: Created if needed.
        network: Its weights are written.
        card: What else is known of it.
        images: The images of its run; without them, ``evaluate`` cannot recognize the
            images that it learned from.

    Returns:
        The card with the date and the digests.
    """
    from plantseg_next.models.tensor_files import tensors_digest, write_tensors

    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    listed = b""
    if images is not None:
        listed = _IMAGES.to_bytes(_ImageList(images), folder, indent=None)
    card = replace(
        card,
        sha256=tensors_digest(state),
        images_sha256=hashlib.sha256(listed).hexdigest() if listed else "",
        written=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
    text = _CARD.to_bytes(replace(card, card_sha256=""), folder)
    card = replace(card, card_sha256=_card_digest(text))
    write_atomically(folder / card.weights, lambda file: write_tensors(file.write, state))
    if listed:
        write_atomically(folder / card.images, listed)
    _CARD.write(folder / CARD, card)
    for path in (*folder.glob("model*.safetensors"), *folder.glob("images-*.json")):
        if path.name not in (card.weights, card.images):
            path.unlink(missing_ok=True)
    return card


def find_bundle(path: Path) -> Path | None:
    """Return the folder of a model: the path itself, or ``best`` in a run."""
    return next((f for f in (path, path / "best") if _has_card(f)), None)


def _has_card(folder: Path) -> bool:
    try:
        return (folder / CARD).is_file()
    except PermissionError:
        return True  # reading it says why it cannot be read


def read_card(folder: Path) -> ModelCard:
    """Return the card of a bundle.

    Raises:
        UsageError: If the folder does not exist.
        DataError: If it holds no card, or one that cannot be read.
    """
    if not folder.exists():
        raise missing_path(folder, "the folder of a trained model")
    if not _has_card(folder):
        raise DataError(
            f"`{folder}` holds no `{CARD}`.",
            needed="the folder of a trained model, for example RUN/best",
            fix="train one: plantseg-next train DATA --out RUN",
        )
    path = folder / CARD
    text = _CARD.read_bytes(path)
    card = _CARD.parse(text, path)
    if card.card_sha256 and card.card_sha256 != _card_digest(text):
        raise DataError(
            f"`{path}` was changed: its `card_sha256` is that of another text.",
            needed="the card as the run wrote it",
            fix="take another copy of the model; if the change is on purpose, remove "
            "`card_sha256` from the card",
        )
    return card


def _card_digest(text: bytes) -> str:
    """Return the SHA-256 of a card without its own digest, however its text is set."""
    tree = json.loads(text)
    del tree["card_sha256"]
    plain = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def read_images(folder: Path) -> RunImages | None:
    """Return the images of a model's run; ``None`` if the model does not list them.

    Raises:
        DataError: If the list is missing, damaged or not stated in the card.
    """
    if read_card(folder).images_sha256:
        listed, card = _verified(folder, "images")
        return _IMAGES.parse(listed, folder / card.images).images
    if unstated := sorted(folder.glob("images-*.json")):
        raise DataError(
            f"`{unstated[0]}` is not stated in `{CARD}`: its `images_sha256` is empty.",
            needed="the card as it was written, with the digest of the list of images",
            fix="take another copy of the model",
        )
    return None


def read_weights(folder: Path) -> "tuple[dict[str, Tensor], ModelCard]":
    """Return the tensors of a model, verified by their digest, and its card.

    Raises:
        DataError: If the weights are missing, damaged or not finite, or the shape of the
            network in the card is another.
    """
    import safetensors.torch
    import torch

    weights, card = _verified(folder, "weights")
    path = folder / card.weights
    try:
        state = safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise _damaged(path, f"is damaged: {error}") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise _damaged(path, f"holds numbers that are not finite, in {name}")
    return {present_name(name): tensor for name, tensor in state.items()}, card


def _refuse_other_shape(path: Path, card: ModelCard) -> None:
    """Refuse a network of another shape before it is made: it may not fit into memory.

    Raises:
        DataError: If the shapes in the file of its weights are not those of the card.
        UsageError: If there is no such encoder.
    """
    from plantseg_next.models.encoders import n_parameters
    from plantseg_next.models.tensor_files import read_header, shapes

    stored = {
        present_name(name): shape for name, shape in shapes(read_header(path)).items()
    }
    settings = card.model
    layers = {
        name.split(".")[2] for name in stored if name.startswith("decoder.attention.")
    }
    for what, stated, held in (
        ("channels", settings.width, stored.get("decoder.level", (2, 0))[-1]),
        ("layers", settings.layers, len(layers)),
        ("lesions", len(card.classes.lesions), stored.get("lesion_head.bias", (0,))[0] - 1),
        ("diseases", len(card.classes.diseases), stored.get("disease_head.bias", (0,))[0]),
    ):
        if stated != held:
            raise misfit(path, f"the card states {stated} {what}, the weights have {held}")
    n_held = sum(math.prod(s) for name, s in stored.items() if name.startswith("encoder."))
    if (n := n_parameters(settings.encoder)) > 2 * n_held + 10**6:
        why = f"`{settings.encoder}` has {n:,} parameters, and the weights have {n_held:,}"
        raise misfit(path, why)


def present_name(parameter: str) -> str:
    """Return the current name of a parameter, given its name now or before 2026-11-27.

    Example:
        >>> present_name("decoder.attention.0.think.0.weight")
        'decoder.attention.0.mlp.0.weight'
        >>> present_name("summary.mix.0.bias")
        'global_stats.proj.0.bias'
    """
    if parameter.startswith("encoder."):
        return parameter
    return ".".join(OLD_NAMES.get(part, part) for part in parameter.split("."))


def read_bundle(folder: Path) -> "tuple[Segmenter, ModelCard]":
    """Return the network, in eval mode on the CPU, and its card.

    Raises:
        DataError: If the weights are missing, damaged or of another network.
    """
    import torch

    from plantseg_next.models.segmenter import build_segmenter

    state, card = read_weights(folder)
    # The initial weights are replaced at once. The caller's default device may be another.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        network = build_segmenter(card.model, card.classes, fetch=False)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise misfit(folder / card.weights, str(error)) from error
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() != state[name].is_floating_point():
            raise misfit(folder / card.weights, f"{name} has the type {state[name].dtype}")
    return network.float().eval(), card  # the caller's default dtype may be another


def misfit(weights: Path, why: str) -> DataError:
    """Return the error for weights that do not match the network of their card."""
    lines = why.removeprefix("Error(s) in loading state_dict for Segmenter:").split("\n")
    why = " ".join(lines[:2]).strip().rstrip(".")
    return DataError(
        f"`{weights}` does not fit its `{CARD}`: {why}.",
        needed="weights and card of the same model",
        fix="take another copy of both",
    )


def _verified(folder: Path, kind: Literal["weights", "images"]) -> tuple[bytes, ModelCard]:
    """Return the bytes of a file that the card states by its digest, and the card.

    Raises:
        DataError: If it is missing, cannot be read or is damaged.
    """
    stated = None
    while True:
        card, before = read_card(folder), stated
        path = folder / (card.weights if kind == "weights" else card.images)
        stated = card.sha256 if kind == "weights" else card.images_sha256
        try:
            if path.exists() and not path.is_file():  # a pipe would be read for ever
                raise _damaged(path, "is not a file")
            if kind == "weights":
                _refuse_other_shape(path, card)
            content = path.read_bytes()
        except FileNotFoundError:
            trouble = "is missing"
        except OSError as error:
            trouble = f"cannot be read: {error.strerror}"
        except ValueError as error:
            trouble = f"is damaged: {error}"
        else:
            if hashlib.sha256(content).hexdigest() == stated:
                return content, card
            trouble = f"is damaged: its SHA-256 is not the one in `{CARD}`"
        if stated == before:  # otherwise a run may have replaced the model meanwhile
            raise _damaged(path, trouble)


def _damaged(path: Path, trouble: str) -> DataError:
    return DataError(
        f"`{path}` {trouble}.",
        needed="every file of the model as it was written",
        fix="take another copy, or the run's `last` in place of its `best`",
    )
