"""A model on disk: weights, a digest of them, and all that using them right takes.

A bundle is a folder with two files. ``model-<digest>.safetensors`` holds the weights and
cannot run code. ``model.json`` is the card: class names, the shape of the network, how
images are to be cut for it, where its first weights came from and under which license,
and the SHA-256 of the weights: a flipped byte is found before it becomes a wrong severity.

The weights are named by their digest so that a newer model can take the place of an older
one at a single stroke, when its card does: whoever reads the folder while a run goes on,
or after it died, finds the one or the other.
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
"""Parts of the network as models written before 2026-11-27 name them, and as they are
named now; such models are converted when they are read."""


@dataclass(frozen=True)
class ModelCard:
    """What one must know to use a model, readable without torch.

    Args:
        classes: Names behind the ids.
        model: Shape of the network.
        tile_px: Side of the tiles it was trained on.
        long_side_px: Larger images are shrunk to this first; ``None``: never.
        weights_origin: Where the encoder started, see ``encoders.PretrainedSource``.
        weights_license: License of those first weights; it binds the trained model.
        weights_sha256: Digest of the file that they came in; empty without one.
        sources: Data sets it learned from, those of the model it started from included.
        metrics: How it was judged when it was written.
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
        """Name of the file that holds the weights."""
        return f"model-{self.sha256[:16]}.safetensors"


def write_bundle(folder: Path, network: "nn.Module", card: ModelCard) -> ModelCard:
    """Write a model; an older one in the same folder is replaced at a single stroke.

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
        if "figures" in tree:  # before the renaming; see OLD_NAMES
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
        # A run replaced the model between the two looks.
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
    """Return what a parameter is called now; models from before the renaming are read.

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
    from plantseg_next.models.segmenter import build_segmenter

    state, card = read_weights(folder)
    network = build_segmenter(card.model, card.classes, fetch=False)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise misfit(folder / card.weights, error) from error
    return network.eval(), card


def misfit(weights: Path, error: Exception) -> DataError:
    """Return the error of weights that are not those of the network on their card."""
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
