"""The result folder of a run: pictures as they are drawn, never half written, and a grid of them.

`.journal` holds the settings in its first line and then the pixels of every batch that was drawn,
end to end; a batch cut by a kill is dropped. The files that users see are written beside their old
versions and renamed over them.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bio_diffusion.files import write_bytes
from bio_diffusion.folders import Folder, append, check_folder, open_journal, same_run

__all__ = ["FILES", "ResultFolder", "grid_png"]

JOURNAL = ".journal"
FILES = ("grid.png", "samples.npy", "summary.json", "config.yaml")
_LARGEST_GRID = 400  # pictures


class ResultFolder(Folder):
    """What one run leaves behind. Made with `ResultFolder.open`.

    Args:
        path: the folder.
        journal: open at its end.
        shape: (C, H, W).
        pixels: (n, C, H, W) uint8 of an earlier part of the run.
    """

    def __init__(
        self, path: Path, journal: BinaryIO, shape: tuple[int, ...], pixels: np.ndarray
    ) -> None:
        super().__init__(path)
        self._journal, self.shape, self.pixels = journal, shape, pixels

    @classmethod
    def check(cls, path: Path, resume: bool, overwrite: bool) -> None:
        """Refuses a folder that cannot be used, see `folders.check_folder`."""
        check_folder(path, JOURNAL, resume, overwrite)

    @classmethod
    def open(
        cls,
        path: Path,
        key: Mapping[str, Any],
        shape: tuple[int, ...],
        chunk: int,
        resume: bool,
        overwrite: bool,
    ) -> ResultFolder:
        """Makes or takes over a folder.

        Args:
            path: The folder; parents are made.
            key: Everything that the pictures follow from, their number apart.
            shape: (C, H, W).
            chunk: Pictures in a batch; an earlier run is kept in whole batches.
            resume: Go on with the run in it.
            overwrite: Remove the results in it; other files stay.

        Raises:
            InputError: As `check`; or it cannot be written, another run writes there, or the run to
                go on with had other settings.
        """
        cls.check(path, resume, overwrite)
        journal = open_journal(path, JOURNAL, FILES, overwrite)
        known = json.loads(json.dumps(key))
        former, raw = _former(journal)
        if former is not None:
            same_run(path, former, known)
        if former is None:
            journal.truncate(0)
            journal.write(json.dumps(known).encode() + b"\n")
        size = chunk * math.prod(shape)
        kept = len(raw) // size * size
        if former is not None:
            journal.truncate(journal.seek(0, os.SEEK_END) - (len(raw) - kept))
        journal.flush()
        pixels = np.frombuffer(raw[:kept], np.uint8).reshape(-1, *shape)
        return cls(path, journal, shape, pixels)

    def add(self, pixels: np.ndarray) -> None:
        """Stores one batch (B, C, H, W) for good.

        Raises:
            OSError: The disk is full or failing.
        """
        append(self._journal, pixels.tobytes())
        self.pixels = np.concatenate([self.pixels, pixels])

    def write_pictures(self, count: int) -> None:
        """Writes `samples.npy`, (n, H, W) or (n, H, W, 3) uint8, and `grid.png`."""
        pixels = self.pixels[:count].transpose(0, 2, 3, 1)
        array = io.BytesIO()
        np.lib.format.write_array(array, pixels[..., 0] if self.shape[0] == 1 else pixels.copy())
        write_bytes(self.path / "samples.npy", array.getvalue())
        write_bytes(self.path / "grid.png", grid_png(pixels))


def grid_png(pixels: np.ndarray, gap: int = 2, across: int | None = None) -> bytes:
    """A PNG of the first 400 pictures (n, H, W, C) uint8, so many a row or as square as they go."""
    from PIL import Image

    pixels = pixels[:_LARGEST_GRID]
    n, H, W, C = pixels.shape
    across = across or max(1, math.ceil(math.sqrt(n)))
    down = max(1, math.ceil(n / across))
    sheet = np.full((down * (H + gap) + gap, across * (W + gap) + gap, C), 128, np.uint8)
    for number, picture in enumerate(pixels):
        y, x = (gap + place * (side + gap) for place, side in
                zip(divmod(number, across), (H, W), strict=True))  # fmt: skip
        sheet[y : y + H, x : x + W] = picture
    file = io.BytesIO()
    Image.fromarray(sheet[..., 0] if C == 1 else sheet).save(file, "PNG")
    return file.getvalue()


def _former(journal: BinaryIO) -> tuple[dict[str, Any] | None, bytes]:
    """Settings and pixels of the run that a journal holds; None without a whole first line."""
    journal.seek(0)
    line = journal.readline()
    if not line.endswith(b"\n"):
        return None, b""
    try:
        return json.loads(line), journal.read()
    except ValueError:
        return None, b""
