"""From a server on this machine to a set that loads, and archives that are meant to do harm."""

import gzip
import hashlib
import io
import lzma
import random
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bio_diffusion.dock import fetch, prepare
from bio_diffusion.dock.archive import Limits, unpack
from bio_diffusion.dock.dataset import CompactSet
from bio_diffusion.files import InputError
from tests.dock.test_prepare import make_complexes


class Server:
    """Serves bytes by path; knows ranges. `cut`: bytes after which the next answers break off."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
                asked = self.headers.get("Range")
                outer.asked.append((self.path, asked))
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:][: outer.cut])

            def log_message(self, *_: object) -> None:
                """Nothing on the screen."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def url(self, path: str, content: bytes | None = None) -> str:
        if content is not None:
            self.files[path] = content
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


def packed(files: dict[str, bytes], kind: str) -> bytes:
    """An archive of files by name."""
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return out.getvalue()
    level = {"preset": 0} if kind == "xz" else {"compresslevel": 1}
    with tarfile.open(fileobj=out, mode=f"w:{kind}", **level) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def complexes(folder: Path) -> dict[str, bytes]:
    make_complexes(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def get(server: Server, tmp_path: Path, content: bytes, *more: str, name: str = "/set") -> int:
    """Runs the command on what the server gives; more words come last and so win."""
    return fetch.main(
        [
            f"--url={server.url(name, content)}",
            f"--sha256={sha256(content)}",
            f"--out={tmp_path / 'set'}",
            f"--cache={tmp_path / 'cache'}",
            *more,
        ]
    )


@pytest.mark.parametrize("kind", ["xz", "gz", "zip"])
def test_from_the_server_to_a_set_that_loads(
    server: Server, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    files = complexes(tmp_path / "made")
    files["manifest.csv"] = b"id,split\n3lan,val\n4ryv,train\n"
    if kind != "xz":  # all of it in one folder, as most public sets are
        files = {f"public-set/{name}": content for name, content in files.items()}
    assert get(server, tmp_path, packed(files, kind)) == 0
    assert "2 complexes; next: python -m bio_diffusion.dock.prepare" in capsys.readouterr().out
    out = tmp_path / "compact.safetensors"
    if kind == "xz":
        status = prepare.main([f"--data={tmp_path / 'set'}", f"--out={out}", "--crop=10"])
        assert status == 0
        (example,) = CompactSet(out, {"split": "val"})
        assert example.id == "3lan" and len(example.crystal) == 26
    for name, content in files.items():
        assert (tmp_path / "set" / name.removeprefix("public-set/")).read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir() if p != out) == ["cache", "made", "set"]


def test_a_broken_download_goes_on_and_a_whole_one_is_kept(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    noise = random.Random(0).randbytes(10**5)
    content = packed({**complexes(tmp_path / "made"), "3lan/noise": noise}, "xz")
    server.cut = 2**16 + 7  # no more than the block of the break is lost
    assert get(server, tmp_path, content) == 2
    error = capsys.readouterr().err
    assert "the same command goes on" in error and error.count("\n") == 1
    assert not (tmp_path / "set").exists()
    server.cut = None
    assert get(server, tmp_path, content) == 0
    assert [asked for _, asked in server.asked] == [None, f"bytes={2**16}-"]
    assert get(server, tmp_path, content, f"--out={tmp_path / 'again'}") == 0
    assert len(server.asked) == 2  # from the cache


def test_a_stale_part_does_not_stay(server: Server, tmp_path: Path) -> None:
    """The first half of another file: the hash is wrong once, then all is fetched anew."""
    content = packed(complexes(tmp_path / "made"), "xz")
    (tmp_path / "cache").mkdir()
    part = tmp_path / "cache" / f"{sha256(content)[:16]}-set.part"
    part.write_bytes(bytes(1000))
    assert get(server, tmp_path, content) == 2
    assert get(server, tmp_path, content) == 0
    for left, status in ((content, 0), (content + b"more", 2)):  # whole, or longer than the file
        part.write_bytes(left)
        (tmp_path / "cache" / part.stem).unlink()
        assert get(server, tmp_path, content, f"--out={tmp_path / str(len(left))}") == status
        assert not part.exists()


def one_line_and_nothing_made(
    status: int, word: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    error = capsys.readouterr().err
    assert status == 2 and word in error and error.count("\n") == 1, error
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("cache", "made")] == []


def test_a_wrong_hash(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = packed(complexes(tmp_path / "made"), "xz")
    wanted = sha256(b"something else")
    status = get(server, tmp_path, content, f"--sha256={wanted}")
    one_line_and_nothing_made(status, f"{sha256(content)}, not {wanted}", tmp_path, capsys)
    assert list((tmp_path / "cache").iterdir()) == []  # what is wrong is not kept
    (tmp_path / "made" / "set.tar.xz").write_bytes(content)
    url = tmp_path / "made" / "set.tar.xz"
    status = get(server, tmp_path, content, f"--url={url}", f"--sha256={wanted}")
    one_line_and_nothing_made(status, f"not {wanted}", tmp_path, capsys)
    assert get(server, tmp_path, content, f"--url={url}") == 0


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--url=http://127.0.0.1:9/x"], "cannot be downloaded"),  # nobody listens on port 9
        (["--url=http://user:secret@127.0.0.1:9/x"], "cannot be downloaded"),
        (["--url=ftp://127.0.0.1/x"], "no address"),
        (["--url=http://[/x"], "no address"),
        (["--url=nowhere.zip"], "no such file"),
        (["--sha256=123"], "64 hexadecimal digits"),
    ],
)
def test_what_cannot_be_fetched(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], word: str
) -> None:
    status = get(server, tmp_path, b"x", *words)
    captured = capsys.readouterr()
    assert "secret" not in captured.err
    assert status == 2 and word in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_a_server_without_the_file(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status = get(server, tmp_path, b"x", f"--url={server.url('/nothing')}")
    one_line_and_nothing_made(status, "status 404", tmp_path, capsys)


def test_a_folder_in_use_is_left_alone(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = packed(complexes(tmp_path / "made"), "gz")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("mine")
    assert get(server, tmp_path, content) == 2 and not server.asked  # before any download
    assert "already holds files" in capsys.readouterr().err
    (tmp_path / "set" / "mine").unlink()
    assert get(server, tmp_path, content) == 0  # an empty one is fine


def test_an_archive_of_something_else(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status = get(server, tmp_path, packed({"readme.txt": b"hello"}, "zip"))
    one_line_and_nothing_made(status, "holds no <id>/protein.pdb", tmp_path, capsys)
    status = get(server, tmp_path, b"<html>please log in</html>")
    one_line_and_nothing_made(status, "no .tar.xz, .tar.gz or .zip", tmp_path, capsys)


def tar_of(*members: tuple[str, bytes, str, bytes]) -> bytes:
    """A .tar.xz of (name, type, link target, content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as tar:
        for name, kind, target, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zip_link() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("a/link")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "../../victim")
    return out.getvalue()


def long_header() -> bytes:
    """A tar whose header for a long name claims 40 MB, and has them: all zeros."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 40 * 10**6
    return lzma.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(member.size), preset=0)


def lying_zip() -> bytes:
    """A zip bomb whose headers claim one byte; the same bytes come out."""
    plain = bytes(40 * 10**6)
    data = bytearray(packed({"a/protein.pdb": plain}, "zip"))
    true = len(plain).to_bytes(4, "little")
    assert data.count(true) == 2
    return bytes(data.replace(true, (1).to_bytes(4, "little")))


ZEROS = {"a/protein.pdb": bytes(40 * 10**6)}
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "parent in tar": (lambda: packed({"../victim": b"x"}, "xz"), "points outside"),
    "parent in zip": (lambda: packed({"../victim": b"x"}, "zip"), "points outside"),
    "parent amid": (lambda: packed({"a/../../victim": b"x"}, "gz"), "points outside"),
    "absolute": (lambda: packed({"/victim": b"x"}, "xz"), "absolute"),
    "absolute in zip": (lambda: packed({"/victim": b"x"}, "zip"), "absolute"),
    "drive": (lambda: packed({"C:/victim": b"x"}, "zip"), "absolute"),
    "backslash": (lambda: packed({"..\\victim": b"x"}, "gz"), "absolute"),
    "line end": (lambda: packed({"a/\nb": b"x"}, "gz"), "no usable name"),
    "symlink": (
        lambda: tar_of(("a", tarfile.SYMTYPE, "..", b""), ("a/victim", tarfile.REGTYPE, "", b"x")),
        "link or a device",
    ),
    "symlink in zip": (zip_link, "link or a device"),
    "hard link": (lambda: tar_of(("a", tarfile.LNKTYPE, "../made", b"")), "link or a device"),
    "device": (lambda: tar_of(("a", tarfile.CHRTYPE, "", b"")), "link or a device"),
    "fifo": (lambda: tar_of(("a", tarfile.FIFOTYPE, "", b"")), "link or a device"),
    "twice": (lambda: tar_of(*[("a/b", tarfile.REGTYPE, "", b"x")] * 2), "twice"),
    "file and folder": (
        lambda: tar_of(("a", tarfile.REGTYPE, "", b"x"), ("a/b", tarfile.REGTYPE, "", b"x")),
        "twice",
    ),
    "bomb in xz": (lambda: packed({"a/b": bytes(200 * 10**6)}, "xz"), "out of proportion"),
    "bomb in gz": (lambda: packed(ZEROS, "gz"), "out of proportion"),
    "bomb in zip": (lambda: packed(ZEROS, "zip"), "out of proportion"),
    "many small bombs": (
        lambda: packed({f"a/{i}": bytes(10**6) for i in range(40)}, "xz"),
        "out of proportion",
    ),
    "lying zip": (lying_zip, "archive"),
    "header bomb": (long_header, "impossible length"),
    "cut": (lambda: packed({"a/b": bytes(range(256)) * 99}, "xz")[:-40], "damaged"),
    "garbage": (lambda: gzip.compress(b"no tar at all" * 99), "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(
    server: Server, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    make, word = HOSTILE[name]
    base = tmp_path / "deep" / "inside"
    base.mkdir(parents=True)
    (base.parent / "neighbour").write_text("as it was")
    content = make()
    assert len(content) < 10**6
    status = get(server, base, content)
    error = capsys.readouterr().err
    assert status == 2 and word in error and error.count("\n") == 1, error
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    cached = f"deep/inside/cache/{sha256(content)[:16]}-set"
    assert found == [cached, "deep/neighbour"]
    assert not Path("/victim").exists()


def test_counts_and_sizes_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.xz"
    path.write_bytes(packed({f"a/{i}": b"xy" for i in range(9)}, "xz"))
    for limits, word in (
        (Limits(members=8), "more than 8 members"),
        (Limits(member=1), "larger than"),
        (Limits(total=17), "out of proportion"),
    ):
        with pytest.raises(InputError, match=word):
            unpack(path, tmp_path / "out", limits)
        assert [p.name for p in tmp_path.iterdir()] == ["a.tar.xz"]
    assert unpack(path, tmp_path / "out", Limits(members=9, member=2, total=18)) == 9


def test_help_imports_little() -> None:
    script = (
        "import sys\nfrom bio_diffusion.dock.fetch import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'pooch', 'requests', 'numpy', 'rdkit'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr
