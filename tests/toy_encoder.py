"""An encoder of 12,000 weights, for tests whose subject is not the encoder.

It is registered with timm under its name, so that settings, files and commands take the
same path as with any other network.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

NAME = "toy_encoder"
CHANNELS = (8, 16, 24, 32)
default_cfgs = generate_default_cfgs({f"{NAME}.untrained": {"num_classes": 0}})


class ToyEncoder(nn.Module):
    """One strided convolution a stage, at strides 4, 8, 16 and 32."""

    def __init__(self, num_classes: int = 0, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = CHANNELS[-1]
        before = in_chans
        self.feature_info = []
        for i, (channels, stride) in enumerate(zip(CHANNELS, (4, 2, 2, 2), strict=True)):
            conv = nn.Conv2d(before, channels, 2 * stride - 1, stride, stride - 1)
            name = f"stages_{i}"
            self.add_module(name, nn.Sequential(conv, nn.GELU()))
            info = {"num_chs": channels, "reduction": 4 * 2**i, "module": name}
            self.feature_info.append(info)
            before = channels

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:  # noqa: ARG002
        """Return what tells timm which layer a parameter is of."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}

    def forward(self, x: Tensor) -> Tensor:
        """Return the last map; timm takes the others by name."""
        for i in range(len(CHANNELS)):
            x = getattr(self, f"stages_{i}")(x)
        return x


@register_model
def toy_encoder(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Return the toy encoder, as timm makes it."""
    return build_model_with_cfg(
        ToyEncoder,
        NAME,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": False},
        **arguments,
    )
