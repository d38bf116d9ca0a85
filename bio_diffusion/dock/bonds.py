"""Bond orders"""
from __future__ import annotations
from rdkit import Chem
from rdkit.Chem import AllChem
from .ligand import Refused
def apply_template(mol: Chem.Mol, template: Chem.Mol) -> Chem.Mol:
    return AllChem.AssignBondOrdersFromTemplate(template, mol)
def molecule_from_pdb(text: str) -> Chem.Mol:
    mol = Chem.MolFromPDBBlock(text)
    if mol is None:
        raise Refused("parse", "pdb")
    return mol
