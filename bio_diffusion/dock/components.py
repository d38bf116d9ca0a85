"""Molecules of PDB and mmCIF: atoms of a structure, and entries of a component dictionary.

Atoms of a structure carry no bond orders. They come, in this order, from a SMILES that the caller
gives, the component's own table in an mmCIF file, the components of `components.json` (cofactors
and nucleotides met at least three times in the docking set; connectivity from the wwPDB component
dictionary, CC0), or from the geometry (`bonds`). Bonds between atoms are read off distances.

A component dictionary (one component, as the wwPDB's `LIG.cif`, or many) gives atoms, charges and
bonds. Its coordinates are no pose in any protein: they tell the stereochemistry and are left.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import gemmi
import numpy as np
from rdkit import Chem
from rdkit.Geometry import Point3D
from rdkit.rdBase import BlockLogs

from bio_diffusion.files import InputError, one_line

from .bonds import ORDERS, apply_template, perceive, with_orders
from .ligand import MAX_HEAVY_ATOMS, Refused, check_size
from .ligand_formats import parse_smiles
from .residues import Group, parse_structure, read_groups

__all__ = ["Component", "components", "molecule_of_structure", "with_bonds"]


def with_bonds(
    groups: Sequence[Group], text: str = "", template: Chem.Mol | None = None
) -> Chem.Mol:
    """One molecule of some groups, by the best source of bond orders there is.

    Args:
        groups: Its residues, heavy atoms in space.
        text: Of the file, whose own tables count where it is mmCIF.
        template: The molecule with the right orders.

    Raises:
        Refused: `template`, `fragments`, `too_large` or `bonds`.
    """
    atoms = [atom for group in groups for atom in group.atoms]
    elements = [atom.element.name for atom in atoms]
    coords = np.concatenate([group.coords for group in groups])
    guess = perceive(elements, coords)
    if template is not None:
        return apply_template(guess, template)
    if len(groups) == 1:
        name = groups[0].name
        table = _orders(text, name)
        if table:
            index = {atom.name: i for i, atom in enumerate(atoms)}
            orders = {
                (index[a], index[b]): order
                for (a, b), order in table.items()
                if a in index and b in index
            }
            if len(orders) >= len(elements) - 1:
                return with_orders(elements, coords, orders)
        if name in _known():
            try:
                return apply_template(guess, parse_smiles(_known()[name]))
            except Refused:
                pass  # another molecule under a known name, or atoms are missing
    return guess


def molecule_of_structure(text: str) -> Chem.Mol:
    """The one molecule of a PDB or mmCIF file: all its atoms but water and hydrogens.

    Raises:
        Refused: `empty`, `protein`, or as `with_bonds`.
        InputError: The text cannot be parsed.
    """
    try:
        found = read_groups(parse_structure(text, "the file"), Counter())
    except InputError as error:
        if error.code != "no_atoms":
            raise
        found = []  # the remedy there is for proteins
    groups = [group for group in found if group.kind != "water" and group.atoms]
    if not groups:
        raise Refused("empty", "no heavy atoms")
    if sum(len(group.atoms) for group in groups) > MAX_HEAVY_ATOMS and any(
        group.kind in ("protein", "nucleic") for group in groups
    ):
        raise Refused(
            "protein", "holds a protein or nucleic acid; give the ligand's own file or its SMILES"
        )
    return with_bonds(groups, text)


@dataclass
class Component:
    """An entry of a component dictionary.

    Attributes:
        atoms: By name: element, charge, and ideal and model coordinates (NaN where unknown).
        bonds: Order by the names of two atoms: `sing`, `doub`, `trip`, `arom` or `delo`.
    """

    atoms: dict[str, tuple[str, int, np.ndarray]] = field(default_factory=dict)
    bonds: dict[tuple[str, str], str] = field(default_factory=dict)

    def molecule(self) -> Chem.Mol:
        """The molecule, its stereochemistry from the coordinates, without a conformer.

        Raises:
            Refused: `empty`, `too_large`, or `bonds` for an order that names no bond.
        """
        mol = Chem.RWMol()
        index = {name: i for i, name in enumerate(self.atoms)}
        for symbol, charge, _ in self.atoms.values():
            atom = Chem.Atom(gemmi.Element(symbol).atomic_number)
            atom.SetFormalCharge(charge)
            mol.AddAtom(atom)
        check_size(mol)
        for (first, second), order in self.bonds.items():
            if order not in ORDERS or first not in index or second not in index:
                raise Refused(
                    "bonds", f"bond {first}-{second} of order {order}; give an SDF or its SMILES"
                )
            mol.AddBond(index[first], index[second], ORDERS[order])
            if order == "arom":
                for i in (index[first], index[second]):
                    mol.GetAtomWithIdx(i).SetIsAromatic(True)
        try:
            with BlockLogs():
                return self._stereo(mol)
        except (ValueError, RuntimeError):
            return mol.GetMol()  # `prepare` tells what is wrong with it

    def _stereo(self, mol: Chem.Mol) -> Chem.Mol:
        """With stereo labels where either set of coordinates has all heavy atoms."""
        Chem.SanitizeMol(mol)
        coords = np.stack([xyz for _, _, xyz in self.atoms.values()])  # (N, 2, 3)
        heavy = [atom.GetAtomicNum() > 1 for atom in mol.GetAtoms()]
        for xyz in coords.transpose(1, 0, 2):
            if not np.isfinite(xyz[heavy]).all() or len(np.unique(xyz[heavy], axis=0)) < sum(heavy):
                continue
            conformer = Chem.Conformer(len(xyz))
            for i, place in enumerate(np.nan_to_num(xyz)):
                conformer.SetAtomPosition(i, Point3D(*map(float, place)))
            conformer.Set3D(True)
            mol.AddConformer(conformer)
            bare = Chem.RemoveHs(mol)  # a hydrogen may lack its place
            Chem.AssignStereochemistryFrom3D(bare)
            bare.RemoveAllConformers()
            return bare
        return mol.GetMol()


def components(text: str, name: str) -> dict[str, Component]:
    """The entries of a component dictionary by component name; none where there are atom sites.

    Raises:
        InputError: The text is a damaged mmCIF file, or one with neither entries nor atoms.
    """
    if not any(line.lower().startswith("data_") for line in text.splitlines()):
        return {}
    try:
        blocks = gemmi.cif.read_string(text)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            "parse", f"{name}: not a readable mmCIF file ({one_line(error)}); fetch it again"
        ) from None
    found: dict[str, Component] = {}
    for block in blocks:
        if block.find_values("_atom_site.Cartn_x"):
            return {}
        for row in block.find("_chem_comp_atom.", _ATOM):
            entry = found.setdefault(gemmi.cif.as_string(row[0]), Component())
            charge = gemmi.cif.as_number(row[3], 0.0) if row.has(3) else 0.0
            places = [gemmi.cif.as_number(row[i]) if row.has(i) else np.nan for i in range(4, 13)]
            ideal, model, library = np.array(places).reshape(3, 3)
            other = model if np.isfinite(model).all() else library
            entry.atoms[gemmi.cif.as_string(row[1])] = (
                gemmi.cif.as_string(row[2]), round(charge), np.stack([ideal, other])
            )  # fmt: skip
        for comp, pair, order in _bonds(block):
            found.setdefault(comp, Component()).bonds[pair] = order
    if not found:
        raise InputError(
            "no_atoms", f"{name}: neither atoms nor a component in it; give the ligand as SDF"
        )
    return found


_ATOM = [
    "comp_id", "atom_id", "type_symbol", "?charge",
    *(f"?pdbx_model_Cartn_{axis}_ideal" for axis in "xyz"),
    *(f"?model_Cartn_{axis}" for axis in "xyz"),
    *(f"?{axis}" for axis in "xyz"),
]  # fmt: skip
"""Columns of an atom; the last three as monomer libraries for refinement call them."""


def _bonds(block: gemmi.cif.Block) -> list[tuple[str, tuple[str, str], str]]:
    """Component, atom names and order of the bonds that a block lists."""
    found = []
    columns = ["comp_id", "atom_id_1", "atom_id_2", "?value_order", "?type"]
    for row in block.find("_chem_comp_bond.", columns):
        order = next((row[i] for i in (3, 4) if row.has(i)), "sing")
        comp, first, second, order = (
            gemmi.cif.as_string(cell) for cell in (row[0], row[1], row[2], order)
        )
        found.append((comp, (first, second), order.lower()[:4]))
    return found


def _orders(text: str, name: str) -> dict[tuple[str, str], str]:
    """Bonds of a component by atom names, where an mmCIF file carries them."""
    if "_chem_comp_bond." not in text:
        return {}
    return {
        pair: order
        for block in gemmi.cif.read_string(text)
        for comp, pair, order in _bonds(block)
        if comp == name
    }


@cache
def _known() -> dict[str, str]:
    """SMILES of common cofactors and nucleotides by component name."""
    return json.loads(Path(__file__).with_name("components.json").read_text("utf-8"))
