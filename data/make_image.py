"""Make the picture set of this folder from the source file.

    python data/make_image.py --source DIR

`DIR` holds ``images/mnist.npz`` (arrays ``x_<split>``, n x 28 x 28, and ``y_<split>``). The same
arrays are packed with LZMA instead of deflate, which `numpy.load` reads all the same; output is the
same bytes at every run.
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def pack(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Writes an .npz without times, compressed with LZMA."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array))
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_LZMA
            archive.writestr(info, member.getvalue())
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    with np.load(parser.parse_args().source / "images/mnist.npz") as source:
        pack({name: source[name] for name in sorted(source.files)}, HERE / "mnist.npz")
    return 0


if __name__ == "__main__":
    sys.exit(main())
