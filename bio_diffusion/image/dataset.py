"""Pictures from files to tensors: what ships, published sets, and a user's own.

A data set is named by one of

    FILE.npz    arrays x_train, x_val, x_test (n, H, W[, C]), uint8, with y_train, ... or without;
                or JPEG files end to end, jpeg_train with their offset_train;
                or one array for all (x, images, data or arr_0)
    FOLDER      with train/, val/ and test/, or pictures alone, in any depth; PNG, JPEG, ...
    FOLDER      with train_data_batch_*.npz and val_data.npz (ImageNet-32 and -64 as published)

Where a set has no splits, every twentieth picture, in order of name, is held out, and serves as val
and as test. All pictures of a set have one size.

Shapes: N pictures, C channels (1 or 3), H, W pixels.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bio_diffusion.files import InputError, find_data, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Pictures", "open_pictures"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
HELD_OUT = 20  # one picture in so many, where a set has no splits
_SINGLE = ("x", "images", "data", "arr_0")


@dataclass(frozen=True)
class Pictures:
    """Pictures of one split.

    Attributes:
        x: (N, C, H, W) uint8.
        y: (N,) long labels from 0, or None.
    """

    x: Tensor
    y: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.x.shape[1], self.x.shape[2], self.x.shape[3]


def open_pictures(name: str, split: str) -> Pictures:
    """The pictures of a split (train, val or test) of a set, by path or by name in the data folder.

    Raises:
        FileNotFoundError: there is no such file or folder.
        InputError: it holds no pictures, too few to hold some out, pictures of several sizes,
            labels for fewer or more, or cannot be read.
    """
    path = find_data(name, "name an .npz, or a folder of pictures")
    if path.is_dir():
        batches = sorted(path.glob("*data*.npz"))
        return _published(batches, split, path) if batches else _folder(path, split)
    with _opened(path) as file:
        return _arrays(file, split, path)


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Its arrays are read within; one line for whatever is wrong with them."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError("npz", f"{path}: is a single array; store it by np.savez(FILE, x=...)")
        with file:
            yield file
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = one_line(error)
        raise InputError("npz", f"{path}: is no readable .npz of pictures ({reason})") from None


# --- arrays --------------------------------------------------------------------------------------


def _arrays(file: Mapping[str, np.ndarray], split: str, path: Path) -> Pictures:
    y = file.get(f"y_{split}")
    if f"x_{split}" in file:
        x = _pixels(file[f"x_{split}"], path)
        return Pictures(x, _labels(y, len(x), path))
    if f"jpeg_{split}" in file:
        raw, ends = file[f"jpeg_{split}"], file.get(f"offset_{split}")
        if ends is None or ends.ndim != 1 or len(ends) < 2 or ends.dtype.kind not in "iu":
            want = f"offset_{split}, whole numbers: where each picture begins, and the end"
            raise InputError("npz", f"{path}: jpeg_{split} needs {want}")
        named = (
            (f"{path}: picture {i}", io.BytesIO(raw[ends[i] : ends[i + 1]].tobytes()))
            for i in range(len(ends) - 1)
        )
        return Pictures(_stacked(named), _labels(y, len(ends) - 1, path))
    for key in _SINGLE:
        if key in file:
            every = _pixels(file[key], path)
            kept = _chosen(len(every), split, path)
            y = next((file[k] for k in ("y", "labels") if k in file), None)
            labels = _labels(y, len(every), path)
            return Pictures(every[kept], None if labels is None else labels[kept])
    there = ", ".join(file)
    raise InputError("npz", f"{path}: holds {there}; name its pictures x_{split}, or x")


def _pixels(array: np.ndarray, path: Path) -> Tensor:
    """(N, C, H, W) uint8 of (N, H, W), (N, H, W, C), (N, C, H, W) or flat (N, 3 H H)."""
    if array.dtype != np.uint8:
        raise InputError("npz", f"{path}: pixels are {array.dtype}; store them as uint8, 0 to 255")
    if array.ndim == 2:
        side = round((array.shape[1] / 3) ** 0.5)
        if 3 * side * side != array.shape[1]:
            raise InputError("npz", f"{path}: rows of {array.shape[1]} are no square RGB pictures")
        array = array.reshape(-1, 3, side, side)
    elif array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not len(array):
        raise InputError("npz", f"{path}: an array of shape {array.shape} is no set of pictures")
    return torch.from_numpy(np.ascontiguousarray(array))


def _labels(array: np.ndarray | None, count: int, path: Path) -> Tensor | None:
    """(N,) long; None without any, and for labels of another kind, which nothing here uses."""
    if array is None:
        return None
    if array.shape[:1] != (count,):
        found = f"labels of shape {list(array.shape)} beside {count} pictures"
        raise InputError("labels", f"{path}: {found}; give each its own")
    plain = array.ndim == 1 and array.dtype.kind in "iu" and array.min() >= 0
    return torch.from_numpy(array.astype(np.int64)) if plain else None


def _published(batches: list[Path], split: str, path: Path) -> Pictures:
    """Downsampled ImageNet: rows of 3 H W; its val part is test, and train is split."""
    wanted = [b for b in batches if b.name.startswith("val") == (split == "test")]
    if not wanted:
        raise InputError("missing", f"{path}: holds no *data*.npz for {split}")
    pixels, labels = [], []
    for batch in wanted:
        with _opened(batch) as file:
            if "data" not in file:
                raise InputError("npz", f"{batch}: holds {', '.join(file)}; name its pictures data")
            pixels.append(_pixels(file["data"], batch))
            labels.append(_labels(file.get("labels"), len(pixels[-1]), batch))
    x, known = torch.cat(pixels), [y for y in labels if y is not None]
    y = torch.cat(known) - 1 if len(known) == len(wanted) else None  # from 1 in the files
    kept = slice(None) if split == "test" else _chosen(len(x), split, path)
    return Pictures(x[kept], None if y is None else y[kept])


def _chosen(count: int, split: str, path: Path) -> Tensor:
    """Places of a split in a set without any."""
    if split != "train" and count < HELD_OUT:
        raise InputError(
            "empty",
            f"{path}: holds {count} pictures, and of so few none is held out; give {HELD_OUT} or "
            "more, or splits of your own",
        )
    place = torch.arange(count)
    held = place % HELD_OUT == HELD_OUT - 1
    return place[~held if split == "train" else held]


# --- single files --------------------------------------------------------------------------------


def _folder(path: Path, split: str) -> Pictures:
    parts = {part: path / part for part in ("train", "val", "test") if (path / part).is_dir()}
    root = parts.get(split, parts.get("test", parts.get("val"))) if parts else path
    if root is None:
        raise InputError("missing", f"{path}: has train/ but neither val/ nor test/; add one")
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        raise InputError("empty", f"{root}: holds no picture for {split} (PNG, JPEG, ...)")
    chosen = set(range(len(files)) if parts else _chosen(len(files), split, path).tolist())
    return Pictures(_stacked(((str(file), file) for file in files), chosen))


def _stacked(
    named: Iterable[tuple[str, Path | io.BytesIO]], chosen: Container[int] | None = None
) -> Tensor:
    """(N, C, H, W) of files, all or those chosen; in colour as soon as one of them is.

    All have one size, those that are not chosen, too.
    """
    from PIL import Image, UnidentifiedImageError

    rows: list[np.ndarray] = []
    first: tuple[str, tuple[int, int]] | None = None
    for place, (name, source) in enumerate(named):
        try:
            with Image.open(source) as picture:
                first = first or (name, picture.size)
                if picture.size != first[1]:
                    (a, (w, h)), (v, u) = first, picture.size
                    raise InputError(
                        "size",
                        f"{one_line(a, 120)} has {w} x {h} pixels but {one_line(name, 120)} "
                        f"{v} x {u}; bring all pictures to one size",
                    )
                if chosen is None or place in chosen:
                    rows.append(_plain(picture))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            raise InputError("picture", f"{name}: is no readable picture; remove it") from None
    channels = max(row.shape[0] for row in rows)
    whole = np.stack([np.broadcast_to(r, (channels, *r.shape[1:])) for r in rows])
    # as `_pixels`: with channels last, which numpy would keep, norms take ten times as long
    return torch.from_numpy(np.ascontiguousarray(whole))


def _plain(picture: Image) -> np.ndarray:
    """(C, H, W) uint8: grey where the file is, else RGB."""
    grey = picture.mode in ("1", "L", "LA")
    array = np.asarray(picture.convert("L" if grey else "RGB"))
    return array[None] if grey else array.transpose(2, 0, 1)
