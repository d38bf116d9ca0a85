"""The Inception network whose features the FID is made of, for users who have its weights.

It is Inception-v3 as converted from the TensorFlow release of 2015-12-05, up to the 2048 features
of the last pooling. Beside the Inception-v3 of other libraries it has three peculiarities: average
pools leave the padding out of their mean, the last block's pool takes the maximum, and pictures
enter as 299 x 299 in [-1, 1]. The weights do not ship. The file that is known as
``pt_inception-2015-12-05-6726825d.pth`` fits, or the same tensors as safetensors.

Shapes: N pictures, C channels (1 or 3), H, W pixels, F = 2048 features.

Source: Szegedy et al. 2016 (the network); Heusel et al. 2017 (the measure); parameter names, pools
    and resizing as in pytorch-fid 0.3, so that its file loads and its figures come out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bio_diffusion.files import InputError, one_line, require_file
from bio_diffusion.image.metrics import Moments

__all__ = ["FEATURES", "PUBLISHED", "Inception", "load_inception", "load_moments"]

FEATURES = 2048
PUBLISHED = "6726825d"  # how the sha256 of the published .pth begins
CLASSES = 1008  # of its classifier, which is not needed here
_SIDE = 299
_REMEDY = "give pt_inception-2015-12-05-6726825d.pth, or the same tensors as .safetensors"

# A layer: (name, outputs, kernel). A branch: layers in a row; those in a tuple lie side by side.
Layer = tuple[str, int, int | tuple[int, int]]
Branch = Sequence[Layer | tuple[Layer, Layer]]


def _double(*widths: int) -> Branch:
    return [(f"branch3x3dbl_{i + 1}", w, 3 if i else 1) for i, w in enumerate(widths)]


def _sevens(stem: str, width: int, *kernels: tuple[int, int]) -> list[Layer]:
    """A 1 x 1 layer, then long thin ones; the last has 192 outputs."""
    rest: list[Layer] = [(f"{stem}_{i + 2}", width, k) for i, k in enumerate(kernels)]
    rest[-1] = (rest[-1][0], 192, rest[-1][2])
    return [(f"{stem}_1", width, 1), *rest]


_ROW, _COLUMN = (1, 7), (7, 1)
_FIVES: list[Branch] = [  # Mixed_5b to 5d
    [("branch1x1", 64, 1)],
    [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
    _double(64, 96, 96),
]
_HALVED_17: list[Branch] = [[("branch3x3", 384, 3)], _double(64, 96, 96)]
_HALVED_8: list[Branch] = [
    [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
    [*_sevens("branch7x7x3", 192, _ROW, _COLUMN), ("branch7x7x3_4", 192, 3)],
]
_WIDE: list[Branch] = [  # Mixed_7b and 7c
    [("branch1x1", 320, 1)],
    [
        ("branch3x3_1", 384, 1),
        (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))),
    ],
    [
        *_double(448, 384),
        (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
    ],
]


def _seventeen(width: int) -> list[Branch]:
    """Mixed_6b to 6e."""
    return [
        [("branch1x1", 192, 1)],
        _sevens("branch7x7", width, _ROW, _COLUMN),
        _sevens("branch7x7dbl", width, _COLUMN, _ROW, _COLUMN, _ROW),
    ]


class Convolution(nn.Module):
    """Convolution without offset, batch normalisation, and the positive part."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int, padded: bool
    ) -> None:
        super().__init__()
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (high // 2, wide // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (high, wide), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, and a pool, whose outputs are put one after another.

    Args:
        inputs: channels that come in.
        branches: of layers; padded, unless the block halves the picture in their last ones.
        pooled: outputs of the 1 x 1 layer after the pool; 0 for a block that halves the picture,
            which takes the maximum and has no such layer.
        largest: pool by the maximum, not by the mean.
    """

    def __init__(
        self, inputs: int, branches: Sequence[Branch], pooled: int, largest: bool = False
    ) -> None:
        super().__init__()
        self.halves, self.largest = not pooled, largest
        self.paths: list[list[list[str]]] = []
        self.outputs = pooled or inputs
        for branch in branches:
            width, path = inputs, []
            for number, stage in enumerate(branch):
                beside = [stage] if isinstance(stage[0], str) else list(stage)
                strided = self.halves and number == len(branch) - 1
                for name, outputs, kernel in beside:
                    layer = Convolution(width, outputs, kernel, 1 + strided, not strided)
                    self.add_module(name, layer)
                path.append([name for name, _, _ in beside])
                width = sum(outputs for _, outputs, _ in beside)
            self.paths.append(path)
            self.outputs += width
        if pooled:
            self.branch_pool = Convolution(inputs, pooled, 1, 1, False)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for path in self.paths:
            h = x
            for names in path:
                h = torch.cat([self.get_submodule(name)(h) for name in names], 1)
            found.append(h)
        if self.halves:
            return torch.cat([*found, F.max_pool2d(x, 3, 2)], 1)
        if self.largest:
            pool = F.max_pool2d(x, 3, 1, 1)
        else:
            pool = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*found, self.branch_pool(pool)], 1)


class Inception(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] to the features (B, F); `describe` takes any pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, 1, False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, 1, True)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1, 1, False)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, 1, False)
        width = 192
        self.blocks: list[str] = []
        for name, branches, pooled in (
            ("5b", _FIVES, 32), ("5c", _FIVES, 64), ("5d", _FIVES, 64),
            ("6a", _HALVED_17, 0),
            ("6b", _seventeen(128), 192), ("6c", _seventeen(160), 192),
            ("6d", _seventeen(160), 192), ("6e", _seventeen(192), 192),
            ("7a", _HALVED_8, 0), ("7b", _WIDE, 192), ("7c", _WIDE, 192),
        ):  # fmt: skip
            block = Mixed(width, branches, pooled, largest=name == "7c")
            self.add_module(f"Mixed_{name}", block)
            self.blocks.append(f"Mixed_{name}")
            width = block.outputs

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))

    @torch.no_grad()
    def describe(self, pixels: Tensor, size: int = 25) -> Tensor:
        """Features (N, F) float64 of uint8 pixels (N, C, H, W); grey ones enter as RGB."""
        device, found = self.Conv2d_1a_3x3.conv.weight.device, []
        for part in pixels.split(size):
            x = part.to(device).expand(-1, 3, -1, -1).float() / 255
            x = F.interpolate(x, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
            found.append(self(2 * x - 1).double().cpu())
        return torch.cat(found)


def load_inception(path: str, device: torch.device) -> tuple[Inception, str]:
    """The network with the weights of a user's file, and the file's sha256.

    Raises:
        InputError: the file is missing, unreadable, or holds another network.
    """
    require_file(path)
    name = one_line(path)
    raw = Path(path).read_bytes()
    weights = _tensors(raw, path)
    with torch.device("meta"):  # no random weights: all are to come
        network = Inception()
    needed = {
        key: tuple(value.shape)
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    wrong = [k for k, shape in needed.items() if k not in weights or weights[k].shape != shape]
    if wrong:
        fault = "has another shape" if wrong[0] in weights else "is missing"
        raise InputError(
            "weights", f"{name}: is no Inception of the FID ({wrong[0]} {fault}); {_REMEDY}"
        )
    head = weights.get("fc.weight")
    if head is not None and len(head) != CLASSES:
        raise InputError(
            "weights",
            f"{name}: is an Inception-v3 of {len(head)} classes, and that of the FID has "
            f"{CLASSES}; {_REMEDY}",
        )
    if bad := [key for key in needed if not bool(torch.isfinite(weights[key]).all())]:
        raise InputError("weights", f"{name}: {bad[0]} is not finite; copy the file again")
    network = network.to_empty(device=device)
    network.load_state_dict({key: weights[key].float() for key in needed}, strict=False)
    return network.eval().requires_grad_(False), hashlib.sha256(raw).hexdigest()


def _tensors(raw: bytes, path: str) -> Mapping[str, Tensor]:
    """The named tensors of a .safetensors or a .pth; no pickled code is run."""
    found: Any
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load

            found = load(raw)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers of damaged files raise what they like
        reason = one_line(error, 80)
        raise InputError(
            "weights", f"{one_line(path)}: holds no readable weights ({reason}); {_REMEDY}"
        ) from None
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError("weights", f"{one_line(path)}: holds no named tensors; {_REMEDY}")
    return found


def load_moments(path: str, features: int = FEATURES) -> Moments:
    """The mean and covariance of a reference set: an .npz with ``mu`` (F,) and ``sigma`` (F, F).

    Raises:
        InputError: the file cannot be read, or they are no mean and covariance of so many features.
    """
    require_file(path)
    name, remedy = one_line(path), "give an .npz with mu and sigma of Inception's 2048 features"
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, cov = (np.asarray(file[key], dtype=np.float64) for key in ("mu", "sigma"))
    except Exception as error:  # as above
        reason = one_line(error, 80)
        raise InputError("npz", f"{name}: holds no statistics ({reason}); {remedy}") from None
    if mean.shape != (features,) or cov.shape != (features, features):
        shapes = f"mu {mean.shape}, sigma {cov.shape}"
        raise InputError("npz", f"{name}: has {shapes}; {remedy}")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise InputError("npz", f"{name}: mu or sigma is not finite; {remedy}")
    scale = float(np.abs(np.diag(cov)).max())
    if np.abs(cov - cov.T).max() > 1e-6 * scale or np.diag(cov).min() < 0:
        raise InputError("npz", f"{name}: sigma is no covariance; {remedy}")
    return Moments(torch.from_numpy(mean), torch.from_numpy(cov))
