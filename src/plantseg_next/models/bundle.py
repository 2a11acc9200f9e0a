"""A model on disk: weights, their digest, and the settings needed to use them.

A bundle is a folder with two files. ``model-<digest>.safetensors`` holds the weights and
cannot run code. ``model.json`` is the card: class names, the shape of the network, how
images are tiled for it, the source and license of its first weights, and the SHA-256 of
the weights, which detects damaged files.

The weights are named by their digest, so that a newer model replaces an older one
atomically, with its card: a reader of the folder, during a run or after it was killed,
gets one or the other.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from plantseg_next.errors import DataError, missing_path
from plantseg_next.files import write_atomically
from plantseg_next.settings import ModelSettings
from plantseg_next.structures import ClassMap

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plantseg_next.models.segmenter import Segmenter

FORMAT = 3
CARD = "model.json"
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
        sha256: Digest of the weights file; filled in by ``write_bundle``.
        format: Version of the folder's layout.
    """

    classes: ClassMap
    model: ModelSettings
    tile_px: int
    long_side_px: int | None
    weights_origin: str = "random"
    weights_license: str = "none"
    weights_sha256: str = ""
    sources: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""
    format: int = FORMAT

    @property
    def weights(self) -> str:
        """Name of the weights file."""
        return f"model-{self.sha256[:16]}.safetensors"

    @property
    def model_id(self) -> str:
        """What tables call the model: the start of its digest."""
        return self.sha256[:12]


def write_bundle(folder: Path, network: "nn.Module", card: ModelCard) -> ModelCard:
    """Write a model; an older one in the same folder is replaced atomically.

    Returns:
        The card with the digest of the weights.
    """
    from plantseg_next.models.tensor_files import tensors_digest, write_tensors

    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    card = replace(card, sha256=tensors_digest(state), format=FORMAT)
    tree = asdict(card) | {"model": card.model.model_dump()}
    write_atomically(folder / card.weights, lambda file: write_tensors(file.write, state))
    text = json.dumps(tree, indent=1, ensure_ascii=False)
    write_atomically(folder / CARD, text.encode())
    for path in folder.glob("model*.safetensors"):
        if path.name != card.weights:
            path.unlink(missing_ok=True)
    return card


def find_bundle(path: Path) -> Path | None:
    """Return the folder of a model: the path itself, or ``best`` in a run."""
    return next((f for f in (path, path / "best") if (f / CARD).is_file()), None)


def read_card(folder: Path) -> ModelCard:
    """Return the card of a bundle.

    Raises:
        UsageError: If the folder does not exist.
        DataError: If it holds no card, or one that cannot be read.
    """
    path = folder / CARD
    if not folder.exists():
        raise missing_path(folder, "the folder of a trained model")
    if not path.exists():
        raise DataError(
            f"`{folder}` holds no `{CARD}`.",
            needed="the folder of a trained model, for example RUN/best",
            fix="train one: plantseg-next train DATA --out RUN",
        )
    try:
        tree = json.loads(path.read_text("utf-8"))
        if tree["format"] < FORMAT:
            raise DataError(
                f"`{path}` was written by an older version.",
                needed=f"a model of format {FORMAT}",
                fix="train the model again",
            )
        if tree["format"] > FORMAT:
            raise DataError(
                f"`{path}` was written by a newer version.",
                needed=f"a model of format {FORMAT}",
                fix="update plantseg-next",
            )
        if "figures" in tree:  # written before 2026-11-27; see OLD_NAMES
            tree["metrics"] = tree.pop("figures")
            tree["model"].pop("drop_path", None)
        classes = tree.pop("classes")
        return ModelCard(
            classes=ClassMap(
                tuple(classes["lesions"]),
                tuple(classes["diseases"]),
                classes["has_leaf"],
            ),
            model=ModelSettings.model_validate(tree.pop("model")),
            sources=tuple(tree.pop("sources")),
            **tree,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"`{path}` cannot be read: {error!r}.",
            needed="the card that training wrote",
            fix="take another copy of the model, or train it again",
        ) from error


def read_weights(folder: Path) -> "tuple[dict[str, Tensor], ModelCard]":
    """Return the tensors of a model, verified by their digest, and its card.

    Raises:
        DataError: If the weights are missing or damaged.
    """
    import safetensors.torch

    card = read_card(folder)
    path = folder / card.weights
    weights = _bytes_of(path)
    if not weights and (newer := read_card(folder)) != card:
        # A run replaced the model between the two reads.
        card, path = newer, folder / newer.weights
        weights = _bytes_of(path)
    if hashlib.sha256(weights).hexdigest() != card.sha256:
        raise DataError(
            f"`{path}` is damaged: its SHA-256 is not the one in `{CARD}`.",
            needed="the weights as they were written",
            fix="take another copy, or the run's `last` in place of its `best`",
        )
    state = safetensors.torch.load(weights)
    return {present_name(name): tensor for name, tensor in state.items()}, card


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
    with torch.random.fork_rng(devices=[]):  # initial weights are replaced at once
        network = build_segmenter(card.model, card.classes, fetch=False)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise misfit(folder / card.weights, error) from error
    return network.eval(), card


def misfit(weights: Path, error: Exception) -> DataError:
    """Return the error for weights that do not match the network of their card."""
    return DataError(
        f"`{weights}` does not fit its `{CARD}`: {str(error).splitlines()[0]}",
        needed="weights and card of the same model",
        fix="take another copy of both",
    )


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
