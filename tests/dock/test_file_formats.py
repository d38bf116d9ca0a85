"""docs/file-formats.md names what the code writes, and all of it."""

import ast
import re
from pathlib import Path

from bio_diffusion.dock.dataset import CompactSet
from bio_diffusion.dock.results import COLUMNS, FILES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([^`\n]+)`", PAGE))


def error_codes() -> set[str]:
    """First arguments of everything that the docking command raises or notes as a failure."""
    codes = set()
    for file in (ROOT / "bio_diffusion" / "dock").glob("*.py"):
        if file.stem in ("archive", "fetch", "prepare"):  # they print the line without its code
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("InputError", "Refused", "Crash")
                and isinstance(node.args[0], ast.Constant)
            ):
                codes.add(node.args[0].value)
    return codes


def test_every_code_is_explained():
    assert error_codes() - NAMED == set()


def test_every_column_file_and_array_is_explained():
    assert {*COLUMNS, *FILES, *CompactSet._COUNTS} - NAMED == set()
