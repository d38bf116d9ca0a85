"""Rewrite the table of files in README.md: size, number of complexes and sha256 of each.

    python data/checksums.py

Lists every file of this folder but scripts, pages and hidden ones. Run it whenever a file changes;
a test holds the table against the files.
"""

import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
BEGIN, END = "<!-- files: python data/checksums.py -->", "<!-- end of files -->"


def data_files(folder: Path = HERE) -> list[str]:
    """Paths of the data files, relative to `folder`."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix not in (".py", ".pyc", ".md")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def complexes(path: Path) -> str:
    """Complexes in a compact set, by its header; nothing for other files."""
    if path.suffix != ".safetensors":
        return ""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return f"{len(json.loads(header['__metadata__']['index'])):,}"


def table(folder: Path = HERE) -> str:
    """The table as it should stand in the page."""
    lines = ["| file | bytes | complexes | sha256 |", "|---|---|---|---|"]
    for name in data_files(folder):
        path = folder / name
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"| {name} | {path.stat().st_size:,} | {complexes(path)} | {digest} |")
    return "\n".join(lines)


def replaced(page: str, folder: Path = HERE) -> str:
    """The page with its table made anew.

    Raises:
        ValueError: when the page has no place for it.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(folder)}\n{END}{after}"


def main() -> int:
    page = HERE / "README.md"
    page.write_text(replaced(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{page}: {len(data_files())} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
