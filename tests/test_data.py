"""What data/README.md says of the files is so."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
PAGE = (DATA / "README.md").read_text(encoding="utf-8")

_spec = importlib.util.spec_from_file_location("checksums", DATA / "checksums.py")
assert _spec is not None and _spec.loader is not None
checksums = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checksums)


def rows() -> dict[str, str]:
    """Lines of the table of files, by file."""
    lines = PAGE.partition(checksums.BEGIN)[2].partition(checksums.END)[0].splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}


def test_the_table_of_files_is_true():
    made = {line.split("|")[1].strip(): line for line in checksums.table().splitlines()}
    for name, line in rows().items():
        assert made.get(name) == line, f"{name}: run python data/checksums.py"


def test_every_tracked_file_is_listed():
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", "."], cwd=DATA, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    tracked = set(done.stdout.decode().split("\0"))
    assert tracked & set(checksums.data_files()) <= rows().keys(), "run python data/checksums.py"


def test_rewriting_keeps_the_page_around_the_table(tmp_path):
    header = {"__metadata__": {"format": "1", "index": json.dumps([{"id": "a"}] * 1200)}}
    raw = json.dumps(header).encode()
    (tmp_path / "set.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    (tmp_path / "a.py").write_text("")
    (tmp_path / ".set.part").write_text("")
    page = checksums.replaced(f"before\n{checksums.BEGIN}\nold\n{checksums.END}\nafter\n", tmp_path)
    assert page.startswith(f"before\n{checksums.BEGIN}\n") and page.endswith("-->\nafter\n")
    assert "old" not in page and page.count("| 1,200 |") == 1 and "a.py" not in page
    with pytest.raises(ValueError, match="no lines"):
        checksums.replaced("a page without a table", tmp_path)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_counts_in_the_text_are_those_of_the_sets(split):
    """Splits, parts and stripped complexes as the index of each set has them."""
    path = DATA / f"dock_{split}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} has not been made")
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    index = json.loads(header["__metadata__"]["index"])
    assert {row["split"] for row in index} == {split}
    summary = re.search(r"\| \*\*in all\*\* \|(.*)\| \|", PAGE)
    assert summary is not None
    stated = dict(zip(("train", "val", "test"), re.findall(r"\d+", summary[1]), strict=True))
    assert len(index) == int(stated[split])
    for part in {row["test_part"] for row in index} - {""}:
        count = sum(row["test_part"] == part for row in index)
        assert f"| `test`, `{part}` | {count} |" in PAGE
    stripped = sum(row["het_stripped"] == "1" for row in index)
    assert re.search(rf"\b{stripped}\b", PAGE)
