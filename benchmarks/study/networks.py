"""The networks of the study, as factories for `--arch`. All take 3 channels and normalised images."""

from __future__ import annotations

import timm
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

CIFAR10_CFG = {
    "input_size": (3, 32, 32),
    "mean": (0.491, 0.482, 0.447),
    "std": (0.247, 0.243, 0.262),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}
DIGITS_CFG = {**CIFAR10_CFG, "input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}


def _described(module: nn.Module, description: dict[str, object] = CIFAR10_CFG) -> nn.Module:
    module.pretrained_cfg = description
    return module


def _resnet(width: int, num_classes: int) -> nn.Module:
    """Torchvision's ResNet18 with a 3x3 stem, without max-pooling, of any width."""
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes, width_per_group=64)
    network.inplanes = width
    network.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    network.maxpool = nn.Identity()
    for stage in range(4):
        layer = network._make_layer(BasicBlock, width << stage, 2, stride=1 if stage == 0 else 2)
        setattr(network, f"layer{stage + 1}", layer)
    network.fc = nn.Linear(width << 3, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return _described(network)


def resnet18_half(num_classes: int = 10) -> nn.Module:
    """ResNet18 with 32 to 256 channels."""
    return _resnet(32, num_classes)


def resnet18(num_classes: int = 10) -> nn.Module:
    """ResNet18 with 64 to 512 channels."""
    return _resnet(64, num_classes)


class _VGG(nn.Sequential):
    """VGG11 with BatchNorm as studies of CIFAR use it: one linear layer after the convolutions."""

    def __init__(self, widths: tuple[int, ...], num_classes: int) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for position, width in enumerate(widths):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if position in {0, 1, 3, 5, 7}:
                layers.append(nn.MaxPool2d(2))
            channels = width
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels, num_classes))
        self.pretrained_cfg = CIFAR10_CFG


def vgg11_bn(num_classes: int = 10) -> nn.Module:
    """VGG11-BN with 64 to 512 channels."""
    return _VGG((64, 128, 256, 256, 512, 512, 512, 512), num_classes)


def vgg11_bn_thin(num_classes: int = 10) -> nn.Module:
    """VGG11-BN with half the channels."""
    return _VGG((32, 64, 128, 128, 256, 256, 256, 256), num_classes)


def convnext_small_images(num_classes: int = 10) -> nn.Module:
    """A ConvNeXt for 32 pixels: patches of 2, LayerNorm, depthwise convolutions."""
    network = timm.create_model(
        "convnext_atto",
        num_classes=num_classes,
        depths=(2, 2, 4, 2),
        dims=(48, 96, 192, 384),
        patch_size=2,
        conv_mlp=False,
        drop_path_rate=0.0,
    )
    return _described(network)


def vit_small_images(num_classes: int = 10) -> nn.Module:
    """A ViT for 32 pixels: patches of 4, six blocks of width 192."""
    network = timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, img_size=32, patch_size=4, depth=6)
    return _described(network)


class _TinyConvolutions(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.pretrained_cfg = DIGITS_CFG
        self.features = torchvision.ops.Conv2dNormActivation(3, 16, 3)
        self.deeper = torchvision.ops.Conv2dNormActivation(16, 32, 3, stride=2)
        self.deepest = torchvision.ops.Conv2dNormActivation(32, 64, 3, stride=2)
        self.head = nn.Linear(64 * 16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.deepest(self.deeper(self.features(images))).flatten(1))


def tiny_convolutions(num_classes: int = 10) -> nn.Module:
    """Three convolutions with BatchNorm, for digits of 16 pixels."""
    return _TinyConvolutions(num_classes)
