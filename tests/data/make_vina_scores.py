"""Score crystal poses with the `vina` package: the golden numbers of `tests/dock/test_physics.py`.

    python tests/data/make_vina_scores.py COMPLEXES MANIFEST --count 64

COMPLEXES holds `<split>/<id>/{protein.pdb,ligand.sdf}`. Receptors are prepared with Open Babel
(`obabel -xr -p 7.4`, whole, as `dock.receptor` cleaned them), ligands with Meeko after RDKit added
hydrogens to the crystal pose; coordinates are rounded to 0.01 Å beforehand, so that what is stored
is what was scored. Stored are the residues within 8.5 Å of the ligand: Vina sees nothing beyond 8.

Writes `vina_scores.json` (scores, SMILES) and `vina_structures.npz` (coordinates, names).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from meeko import MoleculePreparation, PDBQTWriterLegacy
from rdkit import Chem
from scipy.spatial import cKDTree
from vina import Vina

from bio_diffusion.dock.receptor import Receptor, read_receptor

REACH = 8.5  # Å, within which receptor residues are stored


def rounded(receptor: Receptor) -> tuple[np.ndarray, str]:
    """Coordinates and PDB text on a lattice of 0.01 Å."""
    coords = np.round(receptor.coords.astype(float), 2)
    atoms = iter(coords)
    lines = []
    for line in receptor.pdb.splitlines():
        if line.startswith(("ATOM", "HETATM")):
            place = "".join(f"{value:8.3f}" for value in next(atoms))
            line = line[:30] + place + line[54:]
        lines.append(line)
    return coords, "\n".join(lines) + "\n"


def score(pdb: str, mol: Chem.Mol) -> np.ndarray:
    """The eight energies of `Vina.score`."""
    setup = MoleculePreparation(rigid_macrocycles=True).prepare(Chem.AddHs(mol, addCoords=True))
    ligand, fine, message = PDBQTWriterLegacy.write_string(setup[0])
    if not fine:
        raise ValueError(message)
    with tempfile.TemporaryDirectory() as folder:
        source, prepared = Path(folder, "receptor.pdb"), Path(folder, "receptor.pdbqt")
        source.write_text(pdb)
        command = ["obabel", "-ipdb", source, "-opdbqt", "-xr", "-p", "7.4", "-O", prepared]
        subprocess.run(command, check=True, capture_output=True)
        vina = Vina(sf_name="vina", verbosity=0, cpu=1)
        vina.set_receptor(str(prepared))
    vina.set_ligand_from_string(ligand)
    place = mol.GetConformer().GetPositions()
    low, high = place.min(0), place.max(0)
    vina.compute_vina_maps(center=list((low + high) / 2), box_size=list(high - low + 10))
    return np.asarray(vina.score())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("complexes", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--count", type=int, default=64)
    arguments = parser.parse_args()
    rows = list(csv.DictReader(arguments.manifest.open()))
    open_ = [r for r in rows if "PDBbind" not in r["source"] and "no licence" not in r["licence"]]
    small = [r for r in open_ if int(r["n_prot_atoms"]) < 5000 and int(r["n_heavy"]) <= 60]
    # A quarter with metals or cofactors in reach, the rest as validation has them.
    plain = [r for r in small if r["split"] == "val"]
    special = [r for r in small if r["split"] == "test" and r["hets"]]
    quarter = arguments.count // 4
    table, arrays = {}, {"coords": [], "residue": [], "atom": [], "element": [], "name": []}
    ligands = []
    for row in special[:quarter] + plain[: arguments.count - quarter]:
        folder = arguments.complexes / row["split"] / row["id"]
        mol = Chem.MolFromMolFile(str(folder / "ligand.sdf"))
        smiles = Chem.MolToSmiles(mol)
        order = list(mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
        mol = Chem.RenumberAtoms(mol, order)
        place = np.round(mol.GetConformer().GetPositions(), 2)
        mol.GetConformer().SetPositions(place)
        receptor = read_receptor(folder / "protein.pdb")
        coords, pdb = rounded(receptor)
        energies = score(pdb, mol)
        near = cKDTree(place).query(coords)[0] <= REACH
        kept = np.flatnonzero(np.isin(receptor.residue_index, receptor.residue_index[near]))
        residues, index = np.unique(receptor.residue_index[kept], return_inverse=True)
        origin = place.mean(0).round(2)
        table[row["id"]] = {
            "smiles": smiles,
            "atoms": len(place),
            "receptor_atoms": len(kept),
            "residues": len(residues),
            "hets": row["hets"],
            "inter": float(energies[1]),
            "intra": float(energies[5]),
            "affinity": float(energies[0]),
        }
        ligands.append(place - origin)
        arrays["coords"].append(coords[kept] - origin)
        arrays["residue"].append(index)
        arrays["atom"] += [receptor.atom_names[i] for i in kept]
        arrays["element"] += [receptor.elements[i] for i in kept]
        arrays["name"] += [receptor.residue_names[i] for i in residues]
        print(row["id"], np.round(energies, 3), flush=True)
    here = Path(__file__).parent
    lattice = {
        "ligand": np.round(np.concatenate(ligands) * 100).astype(np.int16),
        "coords": np.round(np.concatenate(arrays["coords"]) * 100).astype(np.int16),
        "residue": np.concatenate(arrays["residue"]).astype(np.int16),
    }
    for key in ("atom", "element", "name"):
        words, codes = np.unique(arrays[key], return_inverse=True)
        lattice[key], lattice[f"{key}_words"] = codes.astype(np.int16), words
    np.savez_compressed(here / "vina_structures.npz", **lattice)
    (here / "vina_scores.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
