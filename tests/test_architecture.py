"""What keeps the house in order: who imports whom, what `--help` loads, what is tracked."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bio_diffusion"

# Heavy or optional packages, and the only places of ours that may import them.
HOMES = {
    "hydra": ["bio_diffusion.config"],
    "omegaconf": ["bio_diffusion.config"],
    "accelerate": ["bio_diffusion.runs"],
    "rdkit": ["bio_diffusion.dock", "bio_diffusion.design"],
    "gemmi": ["bio_diffusion.dock"],
    "Bio": ["bio_diffusion.dock", "bio_diffusion.design"],
    "e3nn": ["bio_diffusion.dock"],
    "spyrmsd": ["bio_diffusion.dock"],
    "posebusters": ["bio_diffusion.dock"],
    "vina": ["bio_diffusion.dock"],
    "meeko": ["bio_diffusion.dock"],
    "PIL": ["bio_diffusion.image"],
    "pooch": ["bio_diffusion.dock", "bio_diffusion.design", "bio_diffusion.image"],
}
# Training also runs where only torch, numpy and safetensors are installed.
TRAINING = re.compile(
    r"bio_diffusion(\.(checkpoint|sealed|files|config|train|runs|toy|diffusion.*"
    r"|dock\.(pose|graph|encoders|trunk|score_model|latents|dataset|physics|experiment|pool"
    r"|confidence.*)"
    r"|image\.(unet|latents|model|dataset|metrics|batches|experiment|fits)))?"
)
ABSENT_IN_TRAINING = {"rdkit", "gemmi", "Bio", "hydra", "omegaconf", "yaml", "pandas", "accelerate"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imports(name: str, *, at_import: bool = False) -> frozenset[str]:
    """Absolute names that a module imports; with `at_import` only those that its import runs."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return frozenset(found)


def ours(names: frozenset[str]) -> frozenset[str]:
    return names & FILES.keys()


def inside(name: str, home: str) -> bool:
    return name == home or name.startswith(home + ".")


def test_the_core_imports_nothing_of_ours():
    core = [name for name in FILES if inside(name, "bio_diffusion.diffusion")]
    assert core
    for name in core:
        assert all(inside(i, "bio_diffusion.diffusion") for i in ours(imports(name))), name


def test_domains_never_import_each_other():
    domains = {file.parent.name for file in PACKAGE.glob("*/__init__.py")} - {"diffusion"}
    for name in FILES:
        parts = name.split(".")
        if len(parts) > 1 and parts[1] in domains:
            for other in domains - {parts[1]}:
                home = f"bio_diffusion.{other}"
                assert not [i for i in imports(name) if inside(i, home)], name


def test_nobody_imports_a_command():
    for name in FILES:
        commands = [
            i
            for i in imports(name)
            if inside(i, "bio_diffusion.train")
            or (i.startswith("bio_diffusion") and i.endswith("__main__"))
        ]
        assert not commands, name


@pytest.mark.parametrize("package", HOMES)
def test_optional_packages_stay_at_home(package):
    for name in FILES:
        if any(inside(i, package) for i in imports(name)):
            assert any(inside(name, home) for home in HOMES[package]), name


@pytest.mark.parametrize("name", [name for name in FILES if TRAINING.fullmatch(name)])
def test_training_needs_no_chemistry(name):
    """Nothing that importing the module brings along reads molecules or configurations."""
    reached, pending = set(), {name}
    while pending:
        module = pending.pop()
        parents = {module.rpartition(".")[0]} & FILES.keys()
        found = imports(module, at_import=True)
        bad = {i.partition(".")[0] for i in found} & ABSENT_IN_TRAINING
        assert not bad, f"{name} reaches {module}, which imports {bad}"
        reached.add(module)
        pending |= (ours(found) | parents) - reached


def commands() -> list[str]:
    """Everything that `python -m` runs."""
    names = []
    for name, file in FILES.items():
        if file.name == "__main__.py":
            names.append(name.rpartition(".")[0])
        elif '__name__ == "__main__"' in file.read_text(encoding="utf-8"):
            names.append(name)
    return names


@pytest.mark.parametrize("command", [None, *commands()])
def test_help_loads_nothing_heavy(command):
    """Also importing the package alone."""
    run = f"runpy.run_module({command!r}, run_name='__main__', alter_sys=True)"
    script = (
        "import runpy, sys\n"
        "sys.argv = ['command', '--help']\n"
        "try:\n"
        f"    {run if command else 'import bio_diffusion'}\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pandas', 'rdkit', 'hydra', 'e3nn', 'gemmi', 'Bio'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("loaded: []"), done.stdout
    assert command is None or "usage: " in done.stdout


def test_public_names_are_where_the_package_says():
    import bio_diffusion

    for name, module in bio_diffusion._PUBLIC.items():
        assert module in FILES and re.search(
            rf"^(class|def) {name}\b", FILES[module].read_text(), re.MULTILINE
        )
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        bio_diffusion.Nonsense  # noqa: B018


def test_every_package_is_installed():
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    folders = {
        ".".join(file.parent.relative_to(ROOT).parts) for file in PACKAGE.rglob("__init__.py")
    }
    assert listed == folders | {"bio_diffusion.configs"}


def tracked() -> list[Path]:
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = [name for name in done.stdout.decode().split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_tracked_files_stay_under_60_mib():
    assert sum(file.stat().st_size for file in tracked()) < 60 * 2**20


def test_no_file_names_a_place_of_one_machine():
    place = re.compile(
        rb"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/|/tmp/\w+/"
        rb"|pypi\.(?:org|python)|pythonhosted|registry\.npm|download\.pytorch"
    )
    text = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".csv", ".ipynb", ".sh", ""}
    for file in tracked():
        if file.suffix in text and file != Path(__file__):
            found = place.search(file.read_bytes())
            assert not found, f"{file.relative_to(ROOT)}: {found[0].decode()}"
