"""Backends: one protocol for models that map tiles to logits."""

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

if TYPE_CHECKING:
    from torch import nn


class TileLogits(NamedTuple):
    """Logits of a batch of tiles; any finite value, or minus infinity for impossible.

    Args:
        lesion: ``(t, k, h, w)``; its softmax over ``k`` is the probability of each class,
            class 0 is "no lesion".
        leaf: ``(t, h, w)``, logit of leaf minus logit of not leaf; its sigmoid is the
            probability of leaf.
        disease: ``(t, d)``; its softmax over ``d`` is the probability of each image-level
            label; ``d`` may be 0.
    """

    lesion: Float32[np.ndarray, "t k h w"]
    leaf: Float32[np.ndarray, "t h w"]
    disease: Float32[np.ndarray, "t d"]


@runtime_checkable
class Backend(Protocol):
    """A model that returns the logits of tiles.

    Logits, not probabilities: a temperature divides them, and members of an ensemble are
    combined, before the predictor turns them into probabilities.
    """

    def __call__(self, tiles: UInt8[np.ndarray, "t h w 3"]) -> TileLogits:
        """Return the logits of RGB tiles, at their size.

        Args:
            tiles: 0 to 255; ``h`` and ``w`` are multiples of 32.
        """
        ...


class TorchBackend:
    """Predict tiles with a network of ``models.segmenter``, in float32.

    A network in eval mode, as ``read_bundle`` returns it, is not changed, so several
    threads may call at once. One in training is set to eval mode during the call.

    Args:
        network: Its mode is the same after every call.
        device: PyTorch's name of the network's device.
    """

    def __init__(self, network: "nn.Module", device: str = "cpu") -> None:
        self._network = network
        self._device = device

    def __call__(self, tiles: UInt8[np.ndarray, "t h w 3"]) -> TileLogits:
        """Return the logits of RGB tiles."""
        if not self._network.training:
            return self._logits(tiles)
        self._network.eval()
        try:
            return self._logits(tiles)
        finally:
            self._network.train()

    def _logits(self, tiles: UInt8[np.ndarray, "t h w 3"]) -> TileLogits:
        import torch

        device_type = torch.device(self._device).type
        with torch.inference_mode(), torch.autocast(device_type, enabled=False):
            x = torch.from_numpy(tiles).to(self._device).permute(0, 3, 1, 2)
            scores = self._network(x.float().div(255)).resized(tiles.shape[1:3])
            leaf = scores.leaf[:, 1] - scores.leaf[:, 0]
            return TileLogits(
                *(m.float().cpu().numpy() for m in (scores.lesion, leaf, scores.disease))
            )
