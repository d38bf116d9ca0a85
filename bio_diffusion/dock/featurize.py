"""From RDKit molecules and read receptors to the tensors of `graph`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from rdkit import Chem

from bio_diffusion.dock.graph import (
    BOND_TYPES,
    LigandGraph,
    ReceptorGraph,
    receptor_atom_type,
    residue_positions,
    residue_type,
)
from bio_diffusion.dock.pose import TorsionTree

__all__ = ["ligand_graph", "receptor_graph", "torsion_tree"]

_ELEMENTS = {z: i for i, z in enumerate((6, 7, 8, 16, 15, 9, 17, 35, 53, 5, 14, 34))}
_HYBRIDIZATION = {
    Chem.HybridizationType.SP: 0,
    Chem.HybridizationType.SP2: 1,
    Chem.HybridizationType.SP3: 2,
    Chem.HybridizationType.SP3D: 3,
}
_CHIRALITY = {Chem.ChiralType.CHI_TETRAHEDRAL_CW: 1, Chem.ChiralType.CHI_TETRAHEDRAL_CCW: 2}
_BOND = {
    Chem.BondType.SINGLE: 0,
    Chem.BondType.DOUBLE: 1,
    Chem.BondType.TRIPLE: 2,
    Chem.BondType.AROMATIC: 3,
}
# Hydrogen-bond roles by SMARTS on heavy atoms, in the sense of Vina's typing: any N or O with a
# hydrogen donates; O, and N with a free lone pair, accepts.
_DONOR = Chem.MolFromSmarts("[#7,#8;!H0]")
_ACCEPTOR = Chem.MolFromSmarts("[#8,$([#7;!$([#7X3]-[*]=,:[*]);!$([nX3]);!$([#7X4]);!$([#7+])])]")
# A double bond outside rings does not turn; neither does an amide's C-N (kept planar by the input).
_AMIDE = Chem.MolFromSmarts("[#6X3](=[OX1])-[#7X3;!$([#7](-[#6X3](=[OX1]))-[#6X3](=[OX1]))]")


def ligand_graph(mol: Chem.Mol) -> LigandGraph:
    """Featurise a sanitised heavy-atom molecule; atom order is kept."""
    rings = mol.GetRingInfo()
    donors = {i for (i,) in mol.GetSubstructMatches(_DONOR, maxMatches=10_000)}
    acceptors = {i for (i,) in mol.GetSubstructMatches(_ACCEPTOR, maxMatches=10_000)}
    rows = []
    for atom in mol.GetAtoms():
        i = atom.GetIdx()
        charge = atom.GetFormalCharge()
        smallest = min((s for s in rings.AtomRingSizes(i)), default=0)
        rows.append(
            (
                _ELEMENTS.get(atom.GetAtomicNum(), 12),
                min(atom.GetDegree(), 5),
                min(atom.GetTotalNumHs(), 4),
                {-1: 0, 0: 1, 1: 2}.get(charge, 3),
                _HYBRIDIZATION.get(atom.GetHybridization(), 4),
                int(atom.GetIsAromatic()),
                _CHIRALITY.get(atom.GetChiralTag(), 0),
                min(rings.NumAtomRings(i), 3),
                smallest - 2 if 3 <= smallest <= 7 else (6 if smallest > 7 else 0),
                int(i in donors),
                int(i in acceptors),
            )
        )
    bonds, types = [], []
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        kind = _BOND.get(bond.GetBondType(), len(BOND_TYPES) - 1)
        bonds += [(i, j), (j, i)]
        types += [kind, kind]
    return LigandGraph(
        features=torch.tensor(rows, dtype=torch.long),
        bonds=torch.tensor(bonds, dtype=torch.long).reshape(-1, 2),
        bond_type=torch.tensor(types, dtype=torch.long),
        tree=torsion_tree(mol),
    )


def torsion_tree(mol: Chem.Mol) -> TorsionTree:
    """Acyclic single bonds, amides and linear groups apart, that move two heavy atoms or more."""
    amides = {
        frozenset((match[0], match[2]))
        for match in mol.GetSubstructMatches(_AMIDE, maxMatches=10_000)
    }
    bonds, rotatable = [], []
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        turns = bond.GetBondType() == Chem.BondType.SINGLE and not bond.IsInRing()
        linear = any(
            mol.GetAtomWithIdx(k).GetHybridization() == Chem.HybridizationType.SP for k in (i, j)
        )
        bonds.append((i, j))
        rotatable.append(turns and not linear and frozenset((i, j)) not in amides)
    return TorsionTree.from_bonds(
        torch.tensor(bonds, dtype=torch.long).reshape(-1, 2),
        torch.tensor(rotatable, dtype=torch.bool),
        mol.GetNumAtoms(),
    )


def receptor_graph(
    coords: np.ndarray,
    elements: Sequence[str],
    atom_names: Sequence[str],
    residue_index: np.ndarray,
    residue_names: Sequence[str],
) -> ReceptorGraph:
    """Featurise a receptor given as arrays (see `complex.Receptor` for the shapes)."""
    kinds = torch.tensor(
        [
            receptor_atom_type(residue_names[r], name, element)
            for r, name, element in zip(residue_index, atom_names, elements, strict=True)
        ]
    )
    position = torch.as_tensor(np.asarray(coords), dtype=torch.float32)
    residue = torch.as_tensor(np.asarray(residue_index), dtype=torch.long)
    return ReceptorGraph(
        coords=position,
        atom_type=kinds,
        residue=residue,
        residue_type=torch.tensor([residue_type(name) for name in residue_names]),
        residue_coords=residue_positions(position, kinds, residue, len(residue_names)),
    )
