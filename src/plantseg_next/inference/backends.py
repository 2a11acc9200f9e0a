"""Backends: one protocol for models that map tiles to probabilities."""

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

if TYPE_CHECKING:
    from torch import nn


class TileScores(NamedTuple):
    """Probabilities of a batch of tiles.

    Args:
        lesion: ``(t, k, h, w)``; over ``k`` they sum to 1, class 0 is "no lesion".
        leaf: ``(t, h, w)``, probability of leaf.
        disease: ``(t, d)``; ``d`` may be 0.
    """

    lesion: Float32[np.ndarray, "t k h w"]
    leaf: Float32[np.ndarray, "t h w"]
    disease: Float32[np.ndarray, "t d"]


@runtime_checkable
class Backend(Protocol):
    """A model that returns the probabilities of tiles."""

    def __call__(self, tiles: UInt8[np.ndarray, "t h w 3"]) -> TileScores:
        """Return the probabilities of RGB tiles; ``h`` and ``w`` are multiples of 32."""
        ...


class TorchBackend:
    """Predict tiles with a network of ``models.segmenter``, in float32.

    Args:
        network: Its mode (train or eval) is restored after every call.
        device: PyTorch's name of the network's device.
    """

    def __init__(self, network: "nn.Module", device: str = "cpu") -> None:
        self._network = network
        self._device = device

    def __call__(self, tiles: UInt8[np.ndarray, "t h w 3"]) -> TileScores:
        """Return the probabilities of RGB tiles."""
        import torch

        was_training = self._network.training
        self._network.eval()
        try:
            with torch.inference_mode():
                x = torch.from_numpy(tiles).to(self._device).permute(0, 3, 1, 2)
                scores = self._network(x.float().div(255)).resized(tiles.shape[1:3])
                return TileScores(
                    scores.lesion.softmax(1).float().cpu().numpy(),
                    scores.leaf.softmax(1)[:, 1].float().cpu().numpy(),
                    scores.disease.softmax(1).float().cpu().numpy(),
                )
        finally:
            self._network.train(was_training)
