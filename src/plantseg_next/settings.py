"""The settings of a run: one frozen, typed tree, written beside its results.

Every number that changes what a run learns is here, under the name it has in the code.
An unknown key is an error that names its nearest neighbor.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from plantseg_next.errors import UsageError
from plantseg_next.files import write_atomically

Checkpointable = Literal["stage_1", "stage_2", "stage_3", "stage_4", "decoder", "fine"]
"""Parts of the network whose values need not be kept for the backward pass."""
Weight = float | tuple[float, float, int]
"""Of a data set: a number, or a first one, a last one, and over how many draws it goes
from the one to the other."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(_Part):
    """Which images, and how they are cut."""

    labeled_fraction: float = Field(1.0, gt=0, le=1)
    """Part of the training masks used; the rest are treated as unlabeled."""
    tile_px: int = Field(192, ge=64, multiple_of=32)
    """Side of a tile, in training and in prediction."""
    long_side_px: int | None = Field(1024, ge=64)
    """Larger images are shrunk to this long side, in training and in prediction, so that
    a leaf is seen at one scale whatever camera took it; null keeps every pixel."""
    balance: float = Field(0.5, ge=0, le=1)
    """0: every image is drawn equally often; 1: every disease."""
    weights: tuple[tuple[str, Weight], ...] = ()
    """How often the images of a data set are drawn, beside those of the others, as
    {field: 2.0}; or changing, as {village: [1.0, 0.2, 20000]}: from 1 to 0.2 over the
    first 20 000 draws."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.4, 2.0)
    """Least and greatest magnification of a training tile."""

    workers: int | None = Field(None, ge=0)
    """Processes that read images; 0 reads in the main process. null: as many as there
    are cores beyond two, at most 4."""
    prefetch: int = Field(4, ge=1)
    """Batches that each of them reads ahead."""
    cache_mib: float = Field(1024.0, ge=0)
    """Room for decoded images, a worker."""

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError("the least magnification comes first")
        return scale

    @field_validator("weights", mode="before")
    @classmethod
    def _pairs(cls, weights: Any) -> Any:  # noqa: ANN401
        return tuple(weights.items()) if isinstance(weights, dict) else weights

    @field_validator("weights")
    @classmethod
    def _not_negative(
        cls, weights: tuple[tuple[str, Weight], ...]
    ) -> tuple[tuple[str, Weight], ...]:
        for name, weight in weights:
            first, last, draws = (
                weight if isinstance(weight, tuple) else (weight, weight, 1)
            )
            if min(first, last) < 0 or draws < 1:
                raise ValueError(f"the weight of {name} is below 0, or over no draw")
        return weights

    @field_serializer("weights")
    def _table(self, weights: tuple[tuple[str, Weight], ...]) -> dict[str, Weight]:
        return dict(weights)


class ModelSettings(_Part):
    """The network."""

    encoder: str = "tf_efficientnet_lite1"
    """timm's name of the encoder: any network that timm makes with features_only."""
    weights: str = "packaged"
    """The encoder's ImageNet weights. packaged: those that a Python package carries, for
    tf_efficientnet_lite0 to lite2 (Apache-2.0). hub: timm's, from its hub; ConvNeXt-V2's
    are CC BY-NC 4.0 and forbid commercial use. none: a random start. Or a file."""
    start: str = "starter"
    """What training starts from. starter: the model that comes with the package.
    starter-field: the one that also learned from plants on soil (CC BY-SA 4.0).
    imagenet: the encoder's weights, the rest at random. random: nothing learned before.
    Or the path of a run or a model: all that it learned; its encoder, width and layers
    are taken with it."""
    width: int = Field(96, ge=32, multiple_of=32)
    """Channels of the decoder."""
    layers: int = Field(2, ge=0)
    """Attention layers over the coarse scales; 0 leaves a plain feature pyramid."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share dropped in the decoder."""

    @property
    def encoder_weights(self) -> str:
        """Where the encoder's weights come from, which fixes its normalization too."""
        return "none" if self.start == "random" else self.weights


class LossSettings(_Part):
    """Weights of the parts; 0 leaves a part out."""

    ohem_ce: float = Field(1.0, ge=0)
    focal_tversky: float = Field(1.0, ge=0)
    leaf: float = Field(0.5, ge=0)
    """Cross-entropy and Dice of the leaf head."""
    disease: float = Field(0.3, ge=0)
    """Cross-entropy of the image-level head."""
    points: float = Field(0.5, ge=0)
    """Cross-entropy of points and scribbles, those on lesions and those on none alike."""

    @model_validator(mode="after")
    def _teaches(self) -> "LossSettings":
        parts = ("ohem_ce", "focal_tversky", "leaf", "disease")
        if not any(getattr(self, name) > 0 for name in parts):
            raise ValueError(f"one of {', '.join(parts)} above 0")
        return self


class SemiSettings(_Part):
    """What is learned from images without masks; nothing where there are none."""

    method: Literal["supervised", "mean_teacher", "weak_to_strong"] = "weak_to_strong"
    """supervised: nothing. mean_teacher: the student is drawn to the teacher's
    probabilities. weak_to_strong: what the teacher says of the image as it is becomes
    the label of the same image under a harder light."""
    ratio: int = Field(1, ge=1)
    """Tiles without labels a tile with."""
    strong_views: int = Field(1, ge=1, le=2)
    """Harder views of a tile; two see complementary halves of the features."""
    strong_aug: float = Field(2.0, ge=0)
    """How hard the light of these views is, in multiples of that of labeled tiles."""
    consistency_weight: float = Field(1.0, ge=0)
    """Of what the teacher says, beside true labels, when the ramp is over; 0 asks it
    nothing and keeps it, as the running mean of a supervised run."""
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    """Part of the run before the teacher is asked; in any case not before it finds a
    lesion on labeled tiles."""
    rampup_fraction: float = Field(0.2, ge=0, le=1)
    """Part of the run over which its weight then rises."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Share of the old teacher that a step keeps; less in a short run."""
    confidence: tuple[Literal["probability", "energy", "entropy", "dropout"], ...] = Field(
        ("probability",), min_length=1
    )
    """By what the teacher is believed; several are combined as the mean of ranks."""
    threshold: float = Field(0.9, gt=0, lt=1)
    """Least probability believed; other gates believe as many pixels as this one."""
    adaptive_threshold: bool = True
    """Whether classes of which the teacher is seldom sure get a lower threshold."""
    cut_mix: float = Field(0.5, ge=0, le=1)
    """Chance that a tile takes a box from another one."""


class ImageLabelSettings(_Part):
    """What is learned from the names of images without masks, as class folders have.

    Nothing where there are none, or where ``semi.method`` is supervised.
    """

    fraction: float = Field(0.0, ge=0, le=1)
    """Part of the tiles without masks that show an image with a name, where there are
    images with and without. 0: names are not learned from. Off: it cost Dice in six of
    six runs."""
    cam_seeds: float = Field(0.5, ge=0)
    """Weight, at first, of the pixels by which the name is told; 0 takes the name only."""


class TrainingSettings(_Part):
    """The optimizer and its schedule."""

    minutes: float | None = Field(12.0, gt=0)
    """Length of the run; turned into steps after the first ones were timed.
    null: ``steps`` decides."""
    steps: int = Field(100_000, ge=1)
    """Most optimizer steps."""
    batch: int = Field(8, ge=1)
    """Tiles an optimizer step."""
    micro_batch: int | None = Field(None, ge=1)
    """Labeled tiles a forward pass; gradients are accumulated up to ``batch``. null:
    all. Halved during the run when memory runs out."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate of the decoder."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor on the rate from each layer of the encoder (stem or stage, as timm groups
    them) to the one before. null: 0.75 from pretrained weights, 1 from a random start."""
    weight_decay: float = Field(0.05, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the device computes in it. On a CPU, encoders other than
    ConvNeXt stay in float32: their depthwise layers take longer in bfloat16."""
    validations: int = Field(4, ge=1)
    """How often the run is judged on the validation split, evenly spaced."""
    checkpoint_minutes: float = Field(1.0, ge=0)
    """Between two checkpoints, besides those at validations; more where writing them
    would take over a hundredth of the time. 0: after every step."""
    on_collapse: Literal["continue", "rollback"] = "continue"
    """What to do when a validation finds no lesion at all and an earlier one did: go on
    and say so, or go back to the best checkpoint with half the rate."""
    validation_images: int = Field(40, ge=1)
    """Most images of a validation, drawn once by the seed."""

    @property
    def tiles_at_once(self) -> int:
        """Labeled tiles that are computed at once, at the start of a run."""
        return min(self.micro_batch or self.batch, self.batch)


class MemorySettings(_Part):
    """What is given for less memory. Exact, where nothing else is said.

    ``training.micro_batch`` belongs here too.
    """

    budget_mb: float | None = Field(None, gt=0)
    """Most that the run may take, in 10^6 bytes: of the GPU, or on a CPU all of the
    process. A GPU refuses more; on a CPU it is told. `plan` finds what fits."""
    activation_checkpointing: tuple[Checkpointable, ...] = ()
    """Parts of the network that are computed again in the backward pass instead of kept:
    slower by their forward pass."""
    loss_chunk_rows: int | None = Field(None, ge=16, multiple_of=16)
    """Rows of a tile whose losses are computed at once, where there are many classes.
    null: all."""
    ema_offload: bool = False
    """Whether the EMA teacher's weights are kept in main memory, in float32, and copied to
    the GPU to predict, in the precision that it computes in."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adamw keeps two numbers a weight. adafactor keeps a row and a column of them, where
    the encoder has linear layers: tiny and larger. It learns otherwise."""
    freeze_encoder: bool = False
    """Whether the encoder stays as it starts: for published weights only. Learns less."""


class Settings(_Part):
    """Everything that fixes a run besides the data."""

    seed: int = Field(0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False
    """Whether a GPU uses only kernels that give the same bits every time, where there are
    any; slower. A CPU gives them anyway."""
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    semi: SemiSettings = SemiSettings()
    image_labels: ImageLabelSettings = ImageLabelSettings()
    training: TrainingSettings = TrainingSettings()
    memory: MemorySettings = MemorySettings()

    def write(self, path: Path) -> None:
        """Write the tree as YAML."""
        write_atomically(path, self.to_yaml().encode())

    def to_yaml(self) -> str:
        """Return the tree as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Read a tree; what it leaves out has its default.

        Raises:
            UsageError: If the file is no such tree.
        """
        try:
            tree = yaml.safe_load(path.read_text("utf-8-sig"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(
                f"`{path}` cannot be read: {error}",
                needed="a YAML file of settings",
                fix="start from the settings.yaml that every run writes",
            ) from error
        return cls.from_tree({} if tree is None else tree, origin=str(path))

    @classmethod
    def from_tree(cls, tree: Any, *, origin: str) -> "Settings":  # noqa: ANN401
        """Return the typed tree of plain values.

        Args:
            tree: Nested mappings, as YAML gives them.
            origin: Where they come from, for the error.

        Raises:
            UsageError: If a key is unknown or a value is out of range.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise _explain(error, origin) from error

    def with_settings(self, pairs: list[str]) -> "Settings":
        """Return the tree with ``part.name=value`` applied.

        Values are read as YAML, so ``null``, ``3e-4`` and ``[0.5, 2]`` mean what they
        say.

        Raises:
            UsageError: If a pair has no ``=``, an unknown key or a wrong value.

        Example:
            >>> Settings().with_settings(["training.lr=3e-4"]).training.lr
            0.0003
        """
        tree = self.model_dump()
        for pair in pairs:
            name, equals, text = pair.partition("=")
            if not equals:
                raise UsageError(
                    f"--set got {pair!r}.",
                    needed="key=value",
                    fix="for example --set training.lr=3e-4",
                )
            try:
                value = yaml.safe_load(_yaml_number(text))
            except yaml.YAMLError as error:
                raise UsageError(
                    f"--set {name}: {text!r} is no value.",
                    needed="a number, a word, null, or a list as [0.5, 2]",
                    fix="quote the pair, and close every bracket",
                ) from error
            _place(tree, name.strip(), value)
        return Settings.from_tree(tree, origin="--set")


def flat_settings(settings: Settings) -> dict[str, Any]:
    """Return the values of all settings by dotted name."""
    return _flatten(settings)


def setting_names() -> list[str]:
    """Return the dotted names of all settings."""
    return list(flat_settings(Settings()))


def _flatten(part: BaseModel, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, plain in part.model_dump(mode="json").items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = plain
    return flat


def _yaml_number(text: str) -> str:
    """Return ``3e-4`` as a number YAML 1.1 knows; it takes it for text otherwise."""
    try:
        return repr(float(text)) if "e" in text.lower() else text
    except ValueError:
        return text


def _place(tree: dict[str, Any], name: str, value: object) -> None:
    if name not in setting_names():
        raise _unknown(name, "--set")
    *path, last = name.split(".")
    for step in path:
        tree = tree[step]
    tree[last] = value


RENAMED = {
    "data.labelled_share": "data.labeled_fraction",
    "loss.hardest_pixels": "loss.ohem_ce",
    "unlabelled.light": "semi.strong_aug",
    "unlabelled.weight": "semi.consistency_weight",
    "unlabelled.starts": "semi.warmup_fraction",
    "unlabelled.ramp": "semi.rampup_fraction",
    "unlabelled.decay": "semi.ema_decay",
    "unlabelled.gate": "semi.confidence",
    "unlabelled.dynamic": "semi.adaptive_threshold",
    "unlabelled.method": "semi.method",
    "unlabelled.ratio": "semi.ratio",
    "unlabelled.strong_views": "semi.strong_views",
    "unlabelled.threshold": "semi.threshold",
    "unlabelled.cut_mix": "semi.cut_mix",
    "unlabelled": "semi",
    "names.share": "image_labels.fraction",
    "names.seeds": "image_labels.cam_seeds",
    "names": "image_labels",
    "training.rate": "training.lr",
    "training.after_collapse": "training.on_collapse",
    "training.validation_pictures": "training.validation_images",
    "memory.recomputed": "memory.activation_checkpointing",
    "memory.loss_rows": "memory.loss_chunk_rows",
    "memory.teacher": "memory.ema_offload",
    "memory.optimiser": "memory.optimizer",
    "memory.frozen": "memory.freeze_encoder",
}
"""What settings were called before 2026-11-27."""
REMOVED = frozenset(
    {
        "data.max_tiles", "data.background_share", "data.unreadable_share",
        "model.drop_path", "loss.hardest_share", "loss.dice", "loss.boundary",
        "unlabelled.floor", "unlabelled.passes", "unlabelled.divide_by",
        "unlabelled.dice", "unlabelled.copy_paste", "names.backgrounds",
        "names.seeds_by", "names.smoothing", "names.fades", "names.high", "names.low",
        "names.denies", "names.least_precision", "training.warmup_share",
        "training.clip", "memory.channels_last", "memory.clears_cache",
    }
)  # fmt: skip
"""Settings that there are no longer; each has its earlier default for good."""


def _unknown(name: str, origin: str) -> UsageError:
    if name in RENAMED:
        return UsageError(
            f"{origin}: `{name}` is an old name.",
            needed=f"`{RENAMED[name]}`, which it is called now",
            fix=f"write {RENAMED[name]}; `plantseg-next train --settings` lists all",
        )
    if name in REMOVED:
        return UsageError(
            f"{origin}: there is no setting `{name}` any longer.",
            needed="settings that there are; this one has its earlier default for good",
            fix="leave it out; `plantseg-next train --settings` lists all",
        )
    names = setting_names()
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    by_ending = [n for n in names if n.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    nearest = (by_ending or near)[0]
    return UsageError(
        f"{origin}: there is no setting `{name}`.",
        needed=f"one of the settings; the nearest is `{nearest}`",
        fix="`plantseg-next train --settings` lists all with their defaults",
    )


def _explain(error: ValidationError, origin: str) -> UsageError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(name, origin)
    what = f"`{name}`" if name else "the whole"
    return UsageError(
        f"{origin}: {what} is {first['input']!r}.",
        needed=first["msg"],
        fix="correct the value, or leave it out for its default",
    )
