"""Two published networks, whose whole cost is measured beside PyTorch's own layers.

Modules are named as in torchvision, so that its state_dicts fit.
"""

from __future__ import annotations

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 layers and a shortcut (He et al., 2015)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's sum, activated."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + shortcut)


class ResNet18(nn.Module):
    """Four stages of two basic blocks; `width` is 64 as published."""

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(width, width, stride=1)
        self.layer2 = self._stage(width, 2 * width, stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, stride=2)
        self.layer4 = self._stage(4 * width, 8 * width, stride=2)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, classes) of images (N, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, BasicBlock(channels, channels, stride=1))


def conv_bn_relu6(
    in_channels: int, channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution, batch normalisation and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels, channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, project by 1x1 (Sandler et al., 2018)."""

    def __init__(self, in_channels: int, channels: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.shortcut = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            *([] if expand == 1 else [conv_bn_relu6(in_channels, hidden, 1)]),
            conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The projection, and the input where it fits."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals; all channels are divided by `divisor` (1 as published)."""

    #: expansion, channels, blocks, stride of the first
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
              (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip

    def __init__(self, divisor: int = 1, classes: int = 1000) -> None:
        super().__init__()
        channels = 32 // divisor
        layers: list[nn.Module] = [conv_bn_relu6(3, channels, 3, stride=2)]
        for expand, wanted, blocks, stride in self.STAGES:
            for block in range(blocks):
                step = stride if block == 0 else 1
                layers.append(InvertedResidual(channels, wanted // divisor, step, expand))
                channels = wanted // divisor
        layers.append(conv_bn_relu6(channels, 1280 // divisor, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(1280 // divisor, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, classes) of images (N, 3, H, W)."""
        return self.classifier(self.features(x).mean((2, 3)))
