"""Four published networks with few channels. Together they have every kind of 2-D layer.

Modules are named as in torchvision where it has the network, so that its state_dicts fit.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 layers and a shortcut (He et al., 2015)."""

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + shortcut)


class ResNet18(nn.Module):
    """Four stages of two basic blocks; `width` is 64 as published."""

    def __init__(self, width=64, classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for stage in range(4):
            first = BasicBlock(channels, width * 2**stage, stride=1 if stage == 0 else 2)
            channels = width * 2**stage
            blocks = nn.Sequential(first, BasicBlock(channels, channels, stride=1))
            self.add_module(f"layer{stage + 1}", blocks)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def conv_bn_relu6(in_channels, channels, kernel_size, stride=1, groups=1):
    return nn.Sequential(
        nn.Conv2d(
            in_channels, channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, project by 1x1 (Sandler et al., 2018)."""

    def __init__(self, in_channels, channels, stride, expand):
        super().__init__()
        hidden = in_channels * expand
        self.shortcut = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            *([] if expand == 1 else [conv_bn_relu6(in_channels, hidden, 1)]),
            conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals; all channels are divided by `divisor` (1 as published)."""

    #: expansion, channels, blocks, stride of the first
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
              (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip

    def __init__(self, divisor=1, classes=1000):
        super().__init__()
        channels = 32 // divisor
        layers = [conv_bn_relu6(3, channels, 3, stride=2)]
        for expand, wanted, blocks, stride in self.STAGES:
            for block in range(blocks):
                step = stride if block == 0 else 1
                layers.append(InvertedResidual(channels, wanted // divisor, step, expand))
                channels = wanted // divisor
        layers.append(conv_bn_relu6(channels, 1280 // divisor, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(1280 // divisor, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


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
