"""The text of one record to a molecule: MOL blocks, MOL2 and SMILES."""

from __future__ import annotations

from rdkit import Chem
from rdkit.rdBase import BlockLogs

from bio_diffusion.files import one_line

from .ligand import Refused, check_size

__all__ = ["MAX_SMILES", "parse_mol2", "parse_molblock", "parse_smiles"]

MAX_SMILES = 5000
"""Longest SMILES parsed, in characters; a ligand of 150 atoms needs a tenth of it."""


def parse_molblock(block: str) -> Chem.Mol:
    """Parses one record of an SDF file.

    Raises:
        Refused: `parse`, `empty` or `too_large`.
    """
    with BlockLogs():
        raw = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
        if raw is None:
            raise Refused("parse", "not a readable MOL record")
        check_size(raw)
        # The sanitising parser also reads wedges; where it refuses, `prepare` tells why.
        return Chem.MolFromMolBlock(block, sanitize=True, removeHs=False) or raw


def parse_mol2(block: str) -> Chem.Mol:
    """Parses one record of a MOL2 file.

    Raises:
        Refused: `parse`, `empty` or `too_large`.
    """
    with BlockLogs():
        raw = Chem.MolFromMol2Block(block, sanitize=False, removeHs=False)
        if raw is None:
            raise Refused("parse", "not a readable MOL2 record")
        check_size(raw)
        if all(atom.GetAtomicNum() != 1 for atom in raw.GetAtoms()):
            return _without_hydrogens(raw)
        return Chem.MolFromMol2Block(block, sanitize=True, removeHs=False) or raw


def _without_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """A MOL2 record that leaves hydrogens out, with charges by atom types and valences open.

    The format means every hydrogen to be written, so that RDKit reads a bare atom as a radical or
    an ion. Only the types that are charged by themselves keep their charge.
    """
    charged = {"O.co2", "N.4", "C.cat"}
    types = [atom.GetPropsAsDict().get("_TriposAtomType", "") for atom in mol.GetAtoms()]
    for atom in mol.GetAtoms():
        around = {types[n.GetIdx()] for n in atom.GetNeighbors()}
        if types[atom.GetIdx()] not in charged and "C.cat" not in around:
            atom.SetFormalCharge(0)
        atom.SetNoImplicit(False)
    return mol


def parse_smiles(text: str) -> Chem.Mol:
    """Parses a SMILES string.

    Raises:
        Refused: `parse`, `empty` or `too_large`.
    """
    if len(text) > MAX_SMILES:
        raise Refused("too_large", f"a SMILES of {len(text)} characters, at most {MAX_SMILES}")
    if not text:
        raise Refused("empty", "no SMILES")
    with BlockLogs():
        raw = Chem.MolFromSmiles(text, sanitize=False)
        if raw is None:
            raise Refused("parse", f"{one_line(text, 60)} is no readable SMILES")
        check_size(raw)
        return Chem.MolFromSmiles(text) or raw
