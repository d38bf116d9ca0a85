"""Writes golden.json: what PoseBusters itself says of the poses beside this file.

Run `python tests/data/validity/make.py` with the posebusters package installed. Each `<id>.sdf`
holds poses of one ligand, the crystal pose first and then damaged or displaced ones, each
`<id>.pdb` the receptor residues within 7 Å of it. Structures: Protein Data Bank (CC0).
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from posebusters import PoseBusters
from rdkit import Chem

HERE = Path(__file__).parent


def judge(name: str, pose: Chem.Mol) -> dict[str, bool | None]:
    """PoseBusters' verdicts on one pose of complex `name`, None where it gives none."""
    crystal = Chem.SDMolSupplier(str(HERE / f"{name}.sdf"), sanitize=False)[0]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "pose.sdf", Path(folder) / "crystal.sdf"]
        for path, mol in zip(paths, (pose, crystal), strict=True):
            path.write_text(Chem.MolToMolBlock(mol, kekulize=False) + "$$$$\n")
        table = PoseBusters("redock").bust(*paths, HERE / f"{name}.pdb")
    row = table.iloc[0].to_dict()
    return {test: None if pd.isna(verdict) else bool(verdict) for test, verdict in row.items()}


def main() -> None:
    golden: dict[str, dict[str, dict[str, bool | None]]] = {}
    for path in sorted(HERE.glob("*.sdf")):
        poses = Chem.SDMolSupplier(str(path), sanitize=False)
        golden[path.stem] = {p.GetProp("_Name"): judge(path.stem, p) for p in poses}
    # only failures and open verdicts are written; every other test of `tests` passed
    tests = list(next(iter(next(iter(golden.values())).values())))
    exceptions = {
        name: {
            pose: {test: verdict for test, verdict in verdicts.items() if verdict is not True}
            for pose, verdicts in poses.items()
        }
        for name, poses in golden.items()
    }
    text = {"posebusters": version("posebusters"), "tests": tests, "not_passed": exceptions}
    (HERE / "golden.json").write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
