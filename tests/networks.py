"""Four published networks with few channels. Together they have every kind of 2-D layer.

Modules are named as in torchvision where it has the network, so that its state_dicts fit.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from tricorr.perf.benchmarks.networks import MobileNetV2, ResNet18


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (N, C, H, W)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise, then two 1x1 layers, scaled per channel (Liu et al., 2022)."""

    def __init__(self, channels):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            ChannelNorm(channels),
            nn.Conv2d(channels, 4 * channels, 1),
            nn.GELU(),
            nn.Conv2d(4 * channels, channels, 1),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x):
        return x + self.layer_scale * self.block(x)


class ConvNeXt(nn.Module):
    """A stem of 4x4 patches and two stages of two blocks, 2x2 patches between them."""

    def __init__(self, width=96, classes=1000):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=4),
            ChannelNorm(width),
            ConvNeXtBlock(width),
            ConvNeXtBlock(width),
            ChannelNorm(width),
            nn.Conv2d(width, 2 * width, 2, stride=2),
            ConvNeXtBlock(2 * width),
            ConvNeXtBlock(2 * width),
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class UNet(nn.Module):
    """Down by pooling, up by transposed convolutions, with skips (Ronneberger et al., 2015)."""

    def __init__(self, width=64, depth=2, classes=2):
        super().__init__()

        def double(in_channels, channels):
            pair = OrderedDict()
            for index in range(2):
                pair[f"conv{index + 1}"] = nn.Conv2d(
                    channels if index else in_channels, channels, 3, padding=1,
                    padding_mode="reflect",
                )  # fmt: skip
                pair[f"relu{index + 1}"] = nn.ReLU()
            return nn.Sequential(pair)

        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            double(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1])
        )
        self.merge = nn.ModuleList(double(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat((skip, up(x)), dim=1))
        return self.head(x)


#: name: (network, shape of a batch). Three training steps take about a second.
NETWORKS = {
    "resnet18": (lambda: ResNet18(width=4, classes=5), (4, 3, 64, 64)),
    "mobilenet_v2": (lambda: MobileNetV2(divisor=8, classes=5), (4, 3, 64, 64)),
    "convnext": (lambda: ConvNeXt(width=4, classes=5), (2, 3, 32, 32)),
    "unet": (lambda: UNet(width=4, depth=2, classes=5), (2, 3, 16, 16)),
}
