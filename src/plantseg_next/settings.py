"""The settings of a run: one frozen, typed tree, written beside its results.

Every number that changes what a run learns is here, under the name it has in the code.
The string below a setting is its description: ``train --settings`` prints it.
An unknown key is an error that names the nearest setting.
"""

from collections.abc import Iterator
from enum import Enum
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from plantseg_next.errors import DataError, UsageError
from plantseg_next.files import read_text, write_atomically
from plantseg_next.old_settings import unknown_setting
from plantseg_next.yaml_files import MAX_YAML_BYTES, commented_yaml, has_bool, load_yaml

Checkpointable = Literal["stage_1", "stage_2", "stage_3", "stage_4", "decoder", "fine"]
"""Parts of the network whose activations may be recomputed in the backward pass."""
MAX_SIDE_PX = 1_000_000
"""Longest side that an image may be reduced to: longer ones do not exist."""
Magnification = Annotated[float, Field(ge=0.05, le=20)]
Factor = Annotated[float, Field(ge=0, le=1e6)]
"""A weight of a loss."""
Weight = float | tuple[float, float, int]
"""Sampling weight of a data set: a number, or (first, last, samples), which changes
linearly from the first weight to the last over that many samples."""
Weights = tuple[tuple[str, Weight], ...]


class Mark(Enum):
    """A property of a setting, or of a part and all its settings, in the annotation."""

    MAY_CHANGE = (
        "may change when a run resumes; changes what is learned little or not at all"
    )
    PLANNED = "chosen by a memory plan"


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool(cls, value: Any, info: Any) -> Any:  # noqa: ANN401 - as in json_files
        """Refuse true and false as 1 and 0."""
        kind = cls.model_fields[info.field_name].annotation
        is_part = isinstance(kind, type) and issubclass(kind, BaseModel)
        if kind is not bool and not is_part and has_bool(value):
            raise ValueError("a value other than true or false")
        return value


class DataSettings(_Part):
    """Which images are used, and how tiles are cut from them."""

    labeled_fraction: float = Field(1.0, gt=0, le=1)
    """Fraction of the training masks that is used; the other images are treated as
    unlabeled."""
    tile_px: Annotated[int, Mark.PLANNED] = Field(192, ge=64, le=8192, multiple_of=32)
    """Side of a tile in pixels, in training and in prediction; a multiple of 32."""
    long_side_px: int | None = Field(1024, ge=64, le=MAX_SIDE_PX)
    """Larger images are reduced to this long side, in training and in prediction; null
    keeps every pixel."""
    balance: float = Field(0.5, ge=0, le=1)
    """0 samples every image equally often, 1 every disease."""
    weights: Weights = ()
    """How often the images of a data set are sampled, relative to the others: {field: 2.0}.
    {village: [1.0, 0.2, 20000]} goes from 1 to 0.2 over the first 20,000 samples."""
    scale: tuple[Magnification, Magnification] = (0.4, 2.0)
    """Smallest and largest magnification of a training tile."""

    workers: Annotated[int | None, Mark.MAY_CHANGE, Mark.PLANNED] = Field(
        None, ge=0, le=256
    )
    """Processes that read images; 0 reads in the main process. null: as many as there
    are cores beyond two, at most 4."""
    prefetch: Annotated[int, Mark.MAY_CHANGE, Mark.PLANNED] = Field(4, ge=1, le=1000)
    """Batches that each of these processes reads ahead."""
    cache_mib: Annotated[float, Mark.MAY_CHANGE, Mark.PLANNED] = Field(1024.0, ge=0, le=1e8)
    """Memory for decoded images, in MiB per process."""

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError("the smallest magnification must come first")
        return scale

    @field_validator("weights", mode="before")
    @classmethod
    def _pairs(cls, weights: Any) -> Any:  # noqa: ANN401
        return tuple(weights.items()) if isinstance(weights, dict) else weights

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, weights: Weights) -> Weights:
        for name, weight in weights:
            numbers = weight if isinstance(weight, tuple) else (weight, weight, 1)
            if min(numbers[:2]) < 0 or numbers[2] < 1:
                raise ValueError(f"the weight of {name} is below 0, or over 0 samples")
            if max(numbers[:2]) > 1e6 or numbers[2] > 10**12:
                raise ValueError(
                    f"the weight of {name} is above 1e6, or over more than 1e12 samples"
                )
        return weights

    @field_serializer("weights")
    def _table(self, weights: Weights) -> dict[str, Weight]:
        return dict(weights)


class ModelSettings(_Part):
    """The network."""

    encoder: str = Field("tf_efficientnet_lite1", max_length=200)
    """timm name of the encoder: any network that timm builds with features_only."""
    weights: str = "packaged"
    """ImageNet weights of the encoder. packaged: from a Python package, for
    tf_efficientnet_lite0 to lite2 (Apache-2.0). hub: from timm's hub; those of ConvNeXt-V2
    are CC BY-NC 4.0 and forbid commercial use. none: a random start. Or the path of a
    file."""
    start: str = "starter"
    """What training starts from. starter: the model in this package. starter-field: the
    model that also learned from plants on soil (CC BY-SA 4.0). imagenet: ImageNet weights
    in the encoder, random weights elsewhere. random: random weights. Or the path of a run
    or a model: all its weights, with its encoder, width and layers."""
    width: int = Field(96, ge=32, le=4096, multiple_of=32)
    """Channels of the decoder; a multiple of 32."""
    layers: int = Field(2, ge=0, le=64)
    """Attention layers over the coarse scales; 0 is a plain feature pyramid."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout probability in the decoder."""

    @property
    def encoder_weights(self) -> str:
        """Where the encoder's weights come from; this fixes its normalization too."""
        return "none" if self.start == "random" else self.weights


class LossSettings(_Part):
    """Weights of the supervised loss terms; 0 leaves a term out."""

    ohem_ce: Factor = 1.0
    """Cross-entropy of the hardest quarter of the labeled pixels (online hard example
    mining; Wu et al. 2016)."""
    focal_tversky: Factor = 1.0
    """Focal Tversky loss of the lesion classes (Abraham and Khan 2019)."""
    leaf: Factor = 0.5
    """Cross-entropy and Dice of the leaf."""
    disease: Factor = 0.3
    """Cross-entropy of the image-level disease."""
    points: Factor = 0.5
    """Cross-entropy of points and scribbles; those on lesions and those beside lesions
    have equal weight."""

    @model_validator(mode="after")
    def _has_a_term(self) -> "LossSettings":
        parts = ("ohem_ce", "focal_tversky", "leaf", "disease")
        if not any(getattr(self, name) for name in parts):
            raise ValueError(f"at least one of {', '.join(parts)} must be above 0")
        return self


class SemiSettings(_Part):
    """Learning from images without masks; without such images these have no effect."""

    method: Literal["supervised", "mean_teacher", "weak_to_strong"] = "weak_to_strong"
    """weak_to_strong: the teacher's prediction of the image is the label of the same image
    under a stronger augmentation. mean_teacher: the student's probabilities are pulled
    toward the teacher's. supervised: images without masks are not used."""
    ratio: int = Field(1, ge=1, le=1000)
    """Unlabeled tiles per labeled tile."""
    strong_views: int = Field(1, ge=1, le=2)
    """Strongly augmented views of a tile, 1 or 2; two views see complementary halves of
    the features."""
    strong_aug: float = Field(2.0, ge=0, le=100)
    """Strength of the augmentation of these views (brightness, contrast, saturation, gamma,
    blur), relative to that of labeled tiles."""
    consistency_weight: Factor = 1.0
    """Weight of the loss on pseudo-labels after the ramp; 0 uses no pseudo-labels, but
    keeps the teacher as the running mean of a supervised run."""
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    """Fraction of the run before pseudo-labels are used; they are never used before the
    teacher finds a lesion on labeled tiles."""
    rampup_fraction: float = Field(0.2, ge=0, le=1)
    """Fraction of the run over which the weight of pseudo-labels then rises."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Fraction of the old teacher that a step keeps; less in a short run."""
    confidence: tuple[Literal["probability", "energy", "entropy", "dropout"], ...] = Field(
        ("probability",), min_length=1, max_length=4
    )
    """How the confidence of the teacher is measured: probability, energy, entropy, dropout,
    or several, which are combined as the mean of their ranks."""
    threshold: float = Field(0.9, gt=0, lt=1)
    """Smallest probability accepted; other measures accept as many pixels as this one."""
    adaptive_threshold: bool = True
    """Whether classes of which the teacher is seldom confident get a lower threshold."""
    cut_mix: float = Field(0.5, ge=0, le=1)
    """Probability that a tile gets a box from another tile (CutMix, Yun et al. 2019)."""


class ImageLabelSettings(_Part):
    """Learning from image-level labels of images without masks, as in class folders.

    Without such images, or with ``semi.method=supervised``, these have no effect.
    """

    fraction: float = Field(0.0, ge=0, le=1)
    """Fraction of the tiles without masks that show an image with an image-level label,
    where there are images with and without one; 0 does not learn from the labels. Off by
    default, because it lowered the Dice in six of six runs."""
    cam_seeds: Factor = 0.5
    """Initial weight of the CAM seeds of these labels; 0 learns the label only."""


class TrainingSettings(_Part):
    """The optimizer and its schedule."""

    minutes: float | None = Field(12.0, gt=0, le=10**7)
    """Length of the run in minutes; it becomes a number of steps once the first steps are
    timed. null: training.steps decides."""
    steps: int = Field(100_000, ge=1, le=10**9)
    """Largest number of optimizer steps."""
    batch: int = Field(8, ge=1, le=4096)
    """Labeled tiles per optimizer step."""
    micro_batch: Annotated[int | None, Mark.MAY_CHANGE, Mark.PLANNED] = Field(
        None, ge=1, le=4096
    )
    """Labeled tiles per forward pass; gradients are accumulated over the batch. null: all.
    Halved during the run when memory runs out."""
    lr: float = Field(1e-3, gt=0, le=1000)
    """Peak learning rate of the decoder."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor on the learning rate from each layer of the encoder (stem or stage, as timm
    groups them) to the one before. null: 0.75 from pretrained weights, 1 from a random
    start."""
    weight_decay: float = Field(0.05, ge=0, le=1000)
    """Weight decay of the optimizer; biases and scales have none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the device computes in it. On a CPU, encoders other than
    ConvNeXt stay in float32: their depthwise layers are slower in bfloat16."""
    validations: int = Field(4, ge=1, le=10**6)
    """How many times the run is validated, evenly spaced."""
    checkpoint_minutes: Annotated[float, Mark.MAY_CHANGE] = Field(1.0, ge=0, le=10**7)
    """Minutes between checkpoints, besides those at validations; more where writing would
    take over a hundredth of the time. 0: after every step."""
    on_collapse: Annotated[Literal["continue", "rollback"], Mark.MAY_CHANGE] = "continue"
    """What to do when a validation finds no lesion and an earlier one did: continue and
    warn, or rollback to the best checkpoint with half the learning rate."""
    validation_images: int = Field(40, ge=1, le=10**9)
    """Largest number of images in a validation, chosen once by the seed."""

    @property
    def tiles_at_once(self) -> int:
        """Labeled tiles that are computed at once, at the start of a run."""
        return min(self.micro_batch or self.batch, self.batch)


class MemorySettings(_Part):
    """What is traded for less memory.

    The result stays the same, except with ``memory.optimizer=adafactor`` and
    ``memory.freeze_encoder=true``. ``training.micro_batch`` belongs here too: overlap
    losses and hard pixels are those of a micro-batch.
    """

    budget_mb: Annotated[float | None, Mark.MAY_CHANGE] = Field(None, gt=0, le=10**9)
    """Most memory that the run may take, in 10^6 bytes: of the GPU, or on a CPU of the
    whole process. A GPU refuses more; on a CPU the run warns. The command plan finds
    settings that fit."""
    activation_checkpointing: Annotated[tuple[Checkpointable, ...], Mark.MAY_CHANGE] = ()
    """Parts of the network that are computed again in the backward pass instead of kept:
    stage_1 to stage_4, decoder, fine. Slower by their forward pass."""
    loss_chunk_rows: Annotated[int | None, Mark.MAY_CHANGE] = Field(
        None, ge=16, le=8192, multiple_of=16
    )
    """Rows of a tile whose losses are computed at once, for many classes; a multiple of
    16. null: all."""
    ema_offload: Annotated[bool, Mark.MAY_CHANGE] = False
    """Whether the weights of the EMA teacher are kept in main memory, in float32, and
    copied to the GPU to predict, in the precision that it computes in."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adamw keeps two numbers per weight. adafactor keeps a row and a column of them where
    the encoder has linear layers (tiny and larger); it learns differently."""
    freeze_encoder: bool = False
    """Whether the encoder keeps its first weights; for published weights only. Learns
    less."""


class Settings(_Part):
    """Everything that fixes a run besides the data."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of all random choices: splits, samples, augmentation, weights."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Mark.MAY_CHANGE] = "auto"
    """auto uses a GPU if there is one; or cpu, cuda."""
    deterministic: Annotated[bool, Mark.MAY_CHANGE] = False
    """Whether a GPU uses only kernels that give the same bits every time, where there are
    any; slower. A CPU gives the same bits anyway."""
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    semi: SemiSettings = SemiSettings()
    image_labels: ImageLabelSettings = ImageLabelSettings()
    training: TrainingSettings = TrainingSettings()
    memory: Annotated[MemorySettings, Mark.PLANNED] = MemorySettings()

    def write(self, path: Path) -> None:
        """Write the tree as YAML."""
        write_atomically(path, self.to_yaml().encode())

    def to_yaml(self) -> str:
        """Return the tree as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def to_commented_yaml(self) -> str:
        """Return the tree as YAML, with a description as a comment above each setting."""
        return commented_yaml(self)

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Read a tree; settings that it leaves out have their defaults.

        Raises:
            UsageError: If the file is not a tree of settings, or is empty.
        """
        try:
            tree = load_yaml(read_text(path, MAX_YAML_BYTES))
        except (DataError, yaml.YAMLError) as error:
            raise UsageError(
                getattr(error, "came", f"`{path}` cannot be read: {error}"),
                needed="a YAML file of settings",
                fix="start from the settings.yaml that every run writes",
            ) from error
        if not tree:
            raise UsageError(
                f"`{path}` holds no setting.",
                needed="a YAML file of settings; those that it leaves out have their "
                "defaults",
                fix="restore it from a copy; `plantseg-next train --settings` prints all",
            )
        return cls.from_tree(tree, origin=str(path))

    @classmethod
    def from_tree(cls, tree: Any, *, origin: str) -> "Settings":  # noqa: ANN401
        """Return the typed tree for plain values.

        Args:
            tree: Nested mappings, as read from YAML.
            origin: Where they come from, for error messages.

        Raises:
            UsageError: If a key is unknown or a value is out of range.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise _explain(error, origin) from error
        except RecursionError as error:
            raise UsageError(
                f"{origin}: a value contains itself.",
                needed="plain values",
                fix="leave out the alias (*) in the YAML",
            ) from error

    def with_settings(self, pairs: list[str], *, origin: str = "--set") -> "Settings":
        """Return the tree with ``part.name=value`` applied.

        Args:
            pairs: Their values are read as YAML: ``null``, ``3e-4``, ``[0.5, 2]``.
            origin: Where they come from, for error messages.

        Raises:
            UsageError: If a pair has no ``=``, an unknown key, no value or a wrong one.

        Example:
            >>> Settings().with_settings(["training.lr=3e-4"]).training.lr
            0.0003
        """
        tree, names = self.model_dump(), setting_names()
        for pair in pairs:
            name, equals, text = pair.partition("=")
            name = name.strip()
            if not equals or not text.strip():
                raise UsageError(
                    f"{origin} got {pair!r}.",
                    needed="key=value",
                    fix="for example --set training.lr=3e-4",
                )
            try:
                value = load_yaml(text)
            except yaml.YAMLError as error:
                problem = getattr(error, "problem", None) or error
                raise UsageError(
                    f"{origin} {name}: {_short(text)} is not a value ({problem}).",
                    needed="a number, a word, null, or a list as [0.5, 2]",
                    fix="quote the pair, and close every bracket",
                ) from error
            if name not in names:
                raise unknown_setting(name, names, origin)
            *path, last = name.split(".")
            reduce(dict.__getitem__, path, tree)[last] = value
        return Settings.from_tree(tree, origin=origin)

    def changed(self, part: str, **values: object) -> "Settings":
        """Return the tree with other values in one part; they are not checked."""
        return self.model_copy(update={part: getattr(self, part).model_copy(update=values)})


def flat_settings(settings: Settings) -> dict[str, Any]:
    """Return the values of all settings by dotted name, as plain data."""
    tree = settings.model_dump(mode="json")
    return {
        name: reduce(dict.__getitem__, name.split("."), tree) for name in setting_names()
    }


def setting_names(mark: Mark | None = None) -> list[str]:
    """Return the dotted names of all settings, or of those with a mark."""
    return [name for name, marks in _marks(Settings) if mark is None or mark in marks]


def _marks(
    part: type[BaseModel], prefix: str = "", inherited: tuple[Any, ...] = ()
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for name, field in part.model_fields.items():
        marks = (*inherited, *field.metadata)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _marks(field.annotation, f"{prefix}{name}.", marks)
        else:
            yield prefix + name, marks


def _explain(error: ValidationError, origin: str) -> UsageError:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    known = setting_names()
    if first["type"] == "extra_forbidden":
        return unknown_setting(name, known, origin)
    came = f"`{name}` is" if name else "the content is"
    if name not in known and (whole := [k for k in known if name.startswith(f"{k}.")]):
        came = f"`{whole[0]}` contains"  # a part of a list or a mapping
    return UsageError(
        f"{origin}: {came} {_short(first['input'])}.",
        needed=first["msg"].removeprefix("Value error, "),
        fix="correct the value, or leave it out for its default",
    )


def _short(value: object) -> str:
    """Return a value for a message, cut if it is long or deep."""
    try:
        text = repr(value)
    except RecursionError:
        return "a value that is nested too deeply"
    return text if len(text) <= 200 else f"{text[:200]} ..."
