"""Download a public docking set and unpack it into a folder that `prepare` reads.

    python -m bio_diffusion.dock.fetch --url URL --sha256 HEX --out DIR [--cache DIR]

The archive (``.tar.xz``, ``.tar.gz`` or ``.zip``) holds ``<id>/protein.pdb`` (or .cif) and
``<id>/ligand.sdf`` (or .mol2), PDBbind's ``<id>/<id>_protein.pdb`` and ``<id>/<id>_ligand.sdf``
too, and maybe a ``manifest.csv``, all of it at the top or in one folder. Its sha256 is checked
before anything is unpacked, and what is unpacked is checked by `archive`. A download that broke
off goes on where it stopped; a finished one stays in the cache. URL may also be a file here, for
sets that one must log in to download.

Exit status: 0 done; 2 wrong hash, refused archive, no server, or DIR already in use; 130
interrupted. Afterwards: ``python -m bio_diffusion.dock.prepare --data DIR --out FILE``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bio_diffusion.command import Parser
from bio_diffusion.files import InputError, one_line, require_file, slug

from .archive import Limits, require_free, unpack
from .prepare import complex_folders

__all__ = ["fetch", "main"]

_BLOCK = 2**14  # bytes received at once, and so the most that a broken connection loses
_WAIT = (10, 60)  # seconds for a connection, and between two parts of an answer


def fetch(
    url: str,
    sha256: str,
    out: str | Path,
    cache: str | Path | None = None,
    limits: Limits | None = None,
) -> Path:
    """Downloads an archive of complexes, checks it and unpacks it.

    Args:
        url: http or https address, or the path of a file that is here already.
        sha256: of the archive, 64 hexadecimal digits.
        out: folder to make; it must not exist or be empty.
        cache: where downloads are kept; None: the user's cache folder.
        limits: of what may be unpacked.

    Returns:
        `out`, holding at least one complex.

    Raises:
        InputError: `hash`, `unreachable`, `archive`, `no_complex`, `out_exists`, `unwritable` or
            `setting`. `out` is then as it was.
    """
    out, sha256 = Path(out), sha256.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise InputError("setting", "--sha256 takes the 64 hexadecimal digits of the archive's own")
    require_free(out)
    if "://" not in url:
        archive = _local(Path(url), sha256)
    else:
        archive = _download(_address(url), sha256, cache)
    unpack(archive, out, limits, check=_require_complexes)
    return out


def _require_complexes(folder: Path) -> None:
    if not complex_folders(folder):
        raise InputError(
            "no_complex", "the archive holds no <id>/protein.pdb with <id>/ligand.sdf; nothing kept"
        )


def _local(path: Path, sha256: str) -> Path:
    """A file that is here, once its hash is right."""
    require_file(path)
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise _wrong_hash(str(path), sha256, found)
    return path


def _address(url: str) -> str:
    """The URL itself, once it is one of http or https."""
    try:
        known = urlsplit(url).scheme in ("http", "https")
    except ValueError:
        known = False
    if not known:
        raise InputError("setting", f"{one_line(url)}: no address of http or https; or name a file")
    return url


def _wrong_hash(name: str, wanted: str, found: str) -> InputError:
    return InputError(
        "hash", f"{name}: its sha256 is {found}, not {wanted}; it is damaged or another file"
    )


def _shown(url: str) -> str:
    """A URL for messages: without a password, parameters or odd characters."""
    parts = urlsplit(url)
    return one_line(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", 120)


def _download(url: str, sha256: str, cache: str | Path | None) -> Path:
    """The archive in the cache, downloaded where it is not there or not whole."""
    import pooch
    import requests

    folder = Path(pooch.os_cache("bio_diffusion") if cache is None else cache).expanduser()
    name = f"{sha256[:16]}-{slug(Path(urlsplit(url).path).name) or 'archive'}"
    pooch.get_logger().setLevel("WARNING")
    loader = _Resuming(folder / f"{name}.part")
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", name, folder, downloader=loader))
    except requests.RequestException as error:
        kept = f"; {loader.size / 2**20:.1f} MiB are kept, the same command goes on"
        reason = f"status {error.response.status_code}" if error.response is not None else error
        raise InputError(
            "unreachable",
            f"{_shown(url)}: cannot be downloaded ({one_line(reason, 100)})"
            + (kept if loader.size else "; check address and network"),
        ) from None
    except OSError as error:
        raise InputError(
            "unwritable", f"{one_line(folder)}: cannot be written: {error.strerror or error}"
        ) from None
    except ValueError:  # pooch's word for a wrong hash; it has removed the file
        raise _wrong_hash(_shown(url), sha256, loader.sha256) from None


class _Resuming:
    """A downloader for pooch that goes on with what a broken download left.

    Args:
        part: where the bytes gather. It becomes the file that pooch checks, so a file that fails
            the check is gone and the next try starts anew.
    """

    def __init__(self, part: Path) -> None:
        self.part = part
        self.sha256 = ""

    @property
    def size(self) -> int:
        """Bytes there so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:  # noqa: ANN401 - pooch's
        """Downloads `url` to `output_file`.

        Raises:
            requests.RequestException: no connection, an error status, or an answer cut short.
        """
        import requests

        # what is hashed is the file, not a repacked form of it on the way
        headers = {"Accept-Encoding": "identity"}
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
        with requests.get(url, headers=headers, stream=True, timeout=_WAIT) as answer:
            whole = answer.status_code == 416 and self._complete(answer.headers)
            if not whole:
                answer.raise_for_status()
                self._receive(answer)
        with self.part.open("rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        self.part.replace(output_file)

    def _complete(self, headers: Any) -> bool:  # noqa: ANN401 - requests has no types
        """Whether "range not satisfiable" means that all is here; if not, begins anew next time."""
        if headers.get("Content-Range") == f"bytes */{self.size}":
            return True
        self.part.unlink()
        return False

    def _receive(self, answer: Any) -> None:  # noqa: ANN401 - see above
        import requests

        going_on = answer.status_code == 206
        wanted = int(answer.headers.get("Content-Length", -1))
        got = 0
        with self.part.open("ab" if going_on else "wb") as out:
            for block in answer.iter_content(_BLOCK):
                out.write(block)
                got += len(block)
        if 0 <= got < wanted:
            raise requests.ConnectionError(f"the answer ended after {got} of {wanted} bytes")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = Parser(
        prog="python -m bio_diffusion.dock.fetch",
        description=(__doc__ or "").split("\n")[0],
        epilog=(__doc__ or "").partition("--cache DIR]\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", required=True, help="address of the archive, or a file")
    parser.add_argument("--sha256", required=True, metavar="HEX", help="of the archive")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where downloads are kept")
    args = parser.parse_args(arguments)
    try:
        folder = fetch(args.url, args.sha256, args.out, args.cache)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    count = len(complex_folders(folder))
    print(
        f"{folder}: {count} complexes; next: python -m bio_diffusion.dock.prepare --data {folder}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
