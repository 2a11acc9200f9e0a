"""Transfer learning: training starts from another model's weights.

The whole model is used: encoder, decoder and heads. Only the class rows of the heads are
adapted: a class that the earlier model has by name keeps its row, and new classes share
the rows of the remaining lesion classes, so that the new network predicts, before its
first step, the same lesions as the earlier one.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plantseg_next.errors import UsageError, did_you_mean
from plantseg_next.files import AnyPath
from plantseg_next.models.bundle import CARD, find_bundle, misfit, read_card, read_weights
from plantseg_next.settings import ModelSettings
from plantseg_next.structures import ClassMap

if TYPE_CHECKING:
    from torch import Tensor

    from plantseg_next.models.pretrained import PretrainedSource
    from plantseg_next.models.segmenter import Segmenter

STARTS = ("imagenet", "random")
STARTER_FOLDER = Path(__file__).parent / "starter"
STARTERS = {
    "starter": STARTER_FOLDER,
    "starter-field": STARTER_FOLDER.with_name("starter_field"),
}
"""Models in the package, by name. The second was also trained on photographs of plants on
soil that are CC BY-SA 4.0."""
SOURCE = "start.json"
"""File of a run with the source of its first weights."""
SHAPE = ("encoder", "weights", "width", "layers")
"""Settings of a model that determine the shapes of its weights."""


def start_folder(start: str) -> Path | None:
    """Return the folder of the model that ``model.start`` names; ``None`` if it names none.

    Raises:
        UsageError: If there is no model.
    """
    if start in STARTS:
        return None
    if (folder := named_model(Path(start))) is not None:
        return folder
    names = (*STARTERS, *STARTS)
    raise UsageError(
        f"model.start is {start!r}, and there is no such model.",
        needed=f"{', '.join(names)}, or the path of a run or a model",
        fix=did_you_mean(start, names, "check the path, or leave it out"),
    )


def named_model(path: Path) -> Path | None:
    """Return the folder of a model by its path or by the name of a packaged one.

    Raises:
        UsageError: If it is both.
    """
    packaged, own = STARTERS.get(str(path)), find_bundle(path)
    if packaged is not None and own is not None:
        raise UsageError(
            f"`{path}` is a model in the package, and there is also a model in the folder "
            f"`{path.resolve()}`.",
            needed="an unambiguous name",
            fix=f"give the folder's absolute path, {path.resolve()}, or rename it",
        )
    return packaged or own


def find_model(path: AnyPath) -> Path:
    """Return the folder of a model: a path, ``best`` of a run, or a model of the package.

    Raises:
        UsageError: If there is none.
    """
    path = Path(path)
    folder = named_model(path)
    if folder is not None:
        return folder
    fix = "train one: plantseg-next train DATA --out RUN"
    raise UsageError(
        f"`{path}` holds no trained model.",
        needed=f"a run, a folder with `{CARD}`, or one of {', '.join(STARTERS)}",
        fix=fix if path.exists() else did_you_mean(str(path), STARTERS, fix),
    )


def holds_model(path: AnyPath) -> bool:
    """Return whether a path is a model, a run with a model, or the name of one."""
    path = Path(path)
    if path.exists():
        return find_bundle(path) is not None
    return str(path) in STARTERS


def with_start(settings: ModelSettings) -> ModelSettings:
    """Return the settings with the shape of the model that training starts from.

    Raises:
        UsageError: If there is no such model, or the settings have another shape.
        DataError: If its card cannot be read.
    """
    folder = start_folder(settings.start)
    if folder is None:
        return settings
    return same_shape(settings, read_card(folder).model)


def same_shape(settings: ModelSettings, known: ModelSettings) -> ModelSettings:
    """Return the settings with the shape of ``known``.

    Raises:
        UsageError: If the settings have a shape that is neither that one nor the default.
    """
    defaults = ModelSettings()
    for name in SHAPE:
        requested = getattr(settings, name)
        actual = known.encoder_weights if name == "weights" else getattr(known, name)
        if requested in (actual, getattr(defaults, name)):
            continue
        if name == "encoder":  # a misspelled name is not another shape
            from plantseg_next.models.encoders import refuse_unknown_encoder

            refuse_unknown_encoder(requested)
        raise UsageError(
            f"model.{name} is {requested!r}, and training starts from a model "
            f"({settings.start}) with {actual!r}.",
            needed="the shape of the model that training starts from",
            fix=f"leave model.{name} out, or --set model.start=imagenet "
            "(or random) to start without that model",
        )
    shape = {name: getattr(known, name) for name in SHAPE}
    # The kind of normalization depends on the first weights of the known model.
    return settings.model_copy(update=shape | {"weights": known.encoder_weights})


def absolute_start(settings: ModelSettings) -> ModelSettings:
    """Return the settings with the path of a model to start from made absolute."""
    if settings.start in (*STARTERS, *STARTS):
        return settings
    # Unlike ``Path.resolve``, it accepts links in a circle; reading them raises the error.
    return settings.model_copy(update={"start": os.path.realpath(settings.start)})


def moved_start(settings: ModelSettings, old: Path, new: Path) -> ModelSettings:
    """Return the settings after the folder with the model to start from was moved."""
    start = Path(settings.start)
    if not start.is_relative_to(old.resolve()):
        return settings
    moved = new.resolve() / start.relative_to(old.resolve())
    return settings.model_copy(update={"start": str(moved)})


def starting_network(
    settings: ModelSettings, classes: ClassMap
) -> "tuple[Segmenter, PretrainedSource]":
    """Return the network of a run before its first step, and the source of its weights.

    Args:
        settings: Of the model, with the shape of the model that it starts from.
        classes: Of the network.

    Raises:
        UsageError: If there is no such encoder or model, or no such weights.
        DataError: If weights are damaged or of another network.
    """
    from plantseg_next.models.pretrained import PretrainedSource
    from plantseg_next.models.segmenter import build_segmenter

    folder = start_folder(settings.start)
    if folder is None:
        network = build_segmenter(settings, classes)
        return network, network.encoder.source
    state, card = read_weights(folder)
    network = build_segmenter(settings, classes, fetch=False)
    try:
        network.load_state_dict(_with_classes(state, network, card.classes, classes))
    except (RuntimeError, KeyError) as error:
        raise misfit(folder / card.weights, str(error)) from error
    # The license of the encoder's first weights also applies to the new model.
    name = f"model {card.model_id}, from {card.weights_origin}"
    return network, PretrainedSource(
        name, card.weights_license, card.sha256, data_sets=card.sources
    )


def network_of_run(
    settings: ModelSettings, classes: ClassMap, folder: Path, *, resumed: bool
) -> "tuple[Segmenter, PretrainedSource]":
    """Return ``starting_network``, or a network whose weights a checkpoint will set.

    Args:
        settings: Of the model.
        classes: Of the network.
        folder: Of the run; its ``start.json`` holds the source of its first weights.
        resumed: Whether a checkpoint will be loaded. The model that the run started from
            is then not needed.
    """
    from plantseg_next.models.pretrained import SOURCE_FORMAT
    from plantseg_next.models.segmenter import build_segmenter

    path = folder / SOURCE
    if resumed and path.is_file():
        return build_segmenter(settings, classes, fetch=False), SOURCE_FORMAT.read(path)
    network, source = starting_network(settings, classes)
    SOURCE_FORMAT.write(path, source)
    return network, source


def _with_classes(
    state: "Mapping[str, Tensor]", network: "Segmenter", old: ClassMap, new: ClassMap
) -> "dict[str, Tensor]":
    """Return the state with the rows of the heads in the order of the new classes."""
    own = network.state_dict()
    adapted = {name: tensor for name, tensor in state.items() if name in own}
    for name in ("lesion_head", "class_bias_from_global"):
        for part in ("weight", "bias"):
            key = f"{name}.{part}"
            is_bias = key == "lesion_head.bias"
            adapted[key] = _lesion_rows(state[key].float(), old, new, is_bias=is_bias)
    for part in ("weight", "bias"):
        key = f"disease_head.{part}"
        if key not in own:
            continue
        rows = own[key].clone()
        for i, disease in enumerate(new.diseases):
            if disease in old.diseases:
                rows[i] = state[key][old.diseases.index(disease)]
        adapted[key] = rows
    return adapted


def _lesion_rows(
    rows: "Tensor", old: ClassMap, new: ClassMap, *, is_bias: bool
) -> "Tensor":
    """Return one row per lesion class, "no lesion" first.

    The probability of any lesion is a sum over classes. If ``n`` new classes replace one
    old class, each gets its logit minus ``log n``. If one new class replaces ``n`` old
    ones, it gets their mean plus ``log n``, which is exact where their logits are equal.
    """
    import torch

    sources = _replaced(old, new)
    n_new = Counter(i for indices in sources for i in indices)
    new_rows = [rows[0]]
    for indices in sources:
        row = torch.stack([rows[1 + i] for i in indices]).mean(0)
        if is_bias:
            row = row + math.log(sum(1 / n_new[i] for i in indices))
        new_rows.append(row)
    return torch.stack(new_rows)


def _replaced(old: ClassMap, new: ClassMap) -> list[list[int]]:
    """Return the indices of the old lesion classes that each new class replaces.

    A class with the name of an old one replaces that one. The others share the old classes
    that have no namesake, or all old classes if every one has.
    """
    free = [i for i, name in enumerate(old.lesions) if name not in new.lesions]
    free = free or list(range(len(old.lesions)))
    unknown = [name for name in new.lesions if name not in old.lesions]
    replaced = []
    for name in new.lesions:
        if name in old.lesions:
            replaced.append([old.lesions.index(name)])
            continue
        k = unknown.index(name)
        replaced.append(free[k :: len(unknown)] or [free[k % len(free)]])
    return replaced
