"""What can be docked: from any RDKit molecule to a `Ligand`, or to a `Failure` that says why not.

Shapes: N heavy atoms. Coordinates in Å.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdmolops
from rdkit.Chem.MolStandardize import rdMolStandardize
from rdkit.rdBase import BlockLogs

from bio_diffusion.files import one_line

MAX_HEAVY_ATOMS = 150
"""Largest ligand taken: beyond it a rigid-body and torsion search has no meaning."""

MAX_DOUBT = 2.0
"""Nats of doubt about bond orders read off geometry above which more than half are wrong."""

ELEMENTS = frozenset("H B C N O F Si P S Cl As Se Br I".split())
"""Elements that the network and the scoring function know."""

COUNTER_IONS = """
[Li] [Na] [K] [Rb] [Cs] [Mg] [Ca] [Sr] [Ba] [Zn] [Al] [Ag] F Cl Br I O N [H][H] OO
CO CCO CC(C)O CCCO CCCCO CC(C)=O CC#N CS(C)=O CN(C)C=O C1CCOC1 C1COCCO1 ClCCl ClC(Cl)Cl CCOC(C)=O
Cc1ccccc1 c1ccncc1 CCCCC CCCCCC CCOCC CC(=O)N(C)C OCC(O)CO OCCO
C(=O)O CC(=O)O CCC(=O)O OC(=O)C(F)(F)F OC(=O)C(=O)O OC(=O)C=CC(=O)O OC(=O)CCC(=O)O OC(=O)CC(=O)O
OC(=O)C(O)C(O)C(=O)O OC(=O)CC(O)C(=O)O OC(=O)CC(O)(CC(=O)O)C(=O)O CC(O)C(=O)O OCC(=O)O
OC(=O)c1ccccc1 OC(=O)c1ccccc1O OC(=O)CCCCC(=O)O OC(=O)C(O)c1ccccc1
OCC(O)C(O)C(O)C(O)C(=O)O OC1OC(C(=O)O)C(O)C(O)C1O
CS(=O)(=O)O CCS(=O)(=O)O OCCS(=O)(=O)O OS(=O)(=O)CCS(=O)(=O)O OS(=O)(=O)C(F)(F)F
OS(=O)(=O)c1ccccc1 Cc1ccc(S(=O)(=O)O)cc1 OS(=O)(=O)NC1CCCCC1 CC1(C)C2CCC1(CS(=O)(=O)O)C(=O)C2
OS(=O)(=O)c1cccc2ccccc12 OS(=O)(=O)c1ccc2ccccc2c1
OS(=O)(=O)O OS(=O)O OP(=O)(O)O O[N+](=O)[O-] OC(=O)O OB(O)O OCl(=O)(=O)=O O[Cl+3]([O-])([O-])[O-]
F[P-](F)(F)(F)(F)F F[B-](F)(F)F SC#N NC#N C#N
CN CCN CNC CN(C)C CCN(CC)CC CCNCC NCCO OCCNCCO OCCN(CCO)CCO NC(CO)(CO)CO CNCC(O)C(O)C(O)C(O)CO
NCCN C[N+](C)(C)CCO C1CNCCN1 C1COCCN1 C1CCNCC1 CC(C)(C)N CC(C)N NC1CCCCC1 C1CCC(NC2CCCCC2)CC1
NCCCCC(N)C(=O)O NC(=N)NCCCC(N)C(=O)O NCC(=O)O C(CN)O NC(N)=O NC(N)=N C[N+](C)(C)C CC[N+](CC)(CC)CC
CCCC[N+](CCCC)(CCCC)CCCC
OC(=O)c1cc2ccccc2c(Cc2c(O)c(C(=O)O)cc3ccccc23)c1O OC(=O)c1ccc2ccccc2c1O OC(=O)c1cccnc1
OC(=O)CC(N)C(=O)O OC(=O)CCC(N)C(=O)O OCC(O)C1OC(=O)C(O)=C1O O=C1NS(=O)(=O)c2ccccc12
OCC1OC(OC(C(O)CO)C(O)C(O)C(=O)O)C(O)C(O)C1O OC(=O)CNC(=O)c1ccccc1
""".split()
"""Salts, solvents and coformers that are taken off a ligand, written neutral and without stereo."""


@dataclass(frozen=True)
class Ligand:
    """A molecule to dock.

    Attributes:
        id: Unique among what is read together, safe as a file name and a table cell.
        mol: Heavy atoms only, sanitised, stereo assigned; it carries no conformer.
        crystal: (N, 3) float64 coordinates in Å in the atom order of `mol`, where the input had
            coordinates in space, else None.
        source: Where it came from: file and record, or the SMILES.
        notes: What was changed or left open on reading, a line each.
        protein: The protein that the row of a table asked for, or None.
    """

    id: str
    mol: Chem.Mol
    crystal: np.ndarray | None
    source: str
    notes: tuple[str, ...] = ()
    protein: str | None = None


@dataclass(frozen=True)
class Failure:
    """A ligand that cannot be docked.

    Attributes:
        ligand_id: As in `Ligand.id`.
        code: `parse`, `empty`, `fragments`, `metal`, `element`, `query`, `too_large`, `bonds`,
            or the code of an `InputError` for a file.
        reason: One line for the user: file, record and cause.
    """

    ligand_id: str
    code: str
    reason: str


class Refused(Exception):
    """Inside the readers: why one record is no ligand. Becomes a `Failure`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def prepare(mol: Chem.Mol, ligand_id: str, source: str, protein: str | None = None) -> Ligand:
    """Checks a parsed molecule and brings it to the form that docking works on.

    Args:
        mol: Parsed, not necessarily sanitised, hydrogens as in the input. A conformer counts as
            a crystal pose where it extends in space.
        ligand_id: Identifier, already unique and safe.
        source: File and record, for messages.
        protein: Passed on.

    Returns:
        The ligand.

    Raises:
        Refused: The molecule cannot be docked.
    """
    notes: list[str] = []
    with BlockLogs():
        mol = Chem.Mol(mol)
        Chem.ClearMolSubstanceGroups(mol)  # abbreviations of a drawing hold on to their hydrogens
        mol = _main_fragment(mol, notes)
        _check_atoms(mol)
        mol = _sanitised(mol, notes)
        crystal = in_space(mol)
        if crystal:
            Chem.AssignStereochemistryFrom3D(mol)
        mol = _heavy(mol)
        _drop_moot_stereo(mol)
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
        notes += _open_stereo(mol)
    if mol.HasProp("doubt"):
        if mol.GetDoubleProp("doubt") > MAX_DOUBT:
            raise Refused("bonds", "its geometry does not tell the bond orders")
        notes.append("bond orders read off the geometry; give the SMILES to set them")
    coords = mol.GetConformer().GetPositions() if crystal else None
    mol.RemoveAllConformers()
    for key in list(mol.GetPropNames(includePrivate=True)):
        mol.ClearProp(key)
    return Ligand(ligand_id, mol, coords, source, tuple(notes), protein)


def check_size(mol: Chem.Mol) -> None:
    """Refuses what is empty or too large, before any step whose cost grows with size.

    Raises:
        Refused: `empty` or `too_large`.
    """
    heavy = sum(1 for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1)
    if not heavy and not any(_is_dummy(atom) for atom in mol.GetAtoms()):
        raise Refused("empty", "no heavy atoms")
    if heavy > 4 * MAX_HEAVY_ATOMS or mol.GetNumAtoms() > 12 * MAX_HEAVY_ATOMS:
        raise Refused("too_large", f"{heavy} heavy atoms, the limit is {MAX_HEAVY_ATOMS}")


def _is_dummy(atom: Chem.Atom) -> bool:
    return atom.GetAtomicNum() == 0


def _main_fragment(mol: Chem.Mol, notes: list[str]) -> Chem.Mol:
    """Strips known salts and solvents; two unknown pieces are no ligand."""
    check_size(mol)
    parts = rdmolops.GetMolFrags(mol, asMols=True, sanitizeFrags=False)
    pieces = [p for p in parts if any(a.GetAtomicNum() != 1 for a in p.GetAtoms())]
    if len(pieces) < 2:
        return mol
    if any(_metal_center(p) for p in pieces):
        raise Refused("metal", "a metal complex; metals belong into the protein file")

    named = [(p, _neutral_smiles(p)) for p in pieces]

    def rank(item: tuple[Chem.Mol, str]) -> tuple[bool, bool, int]:
        numbers = [a.GetAtomicNum() for a in item[0].GetAtoms()]
        return item[1] not in _counter_ions(), 6 in numbers, sum(z > 1 for z in numbers)

    named.sort(key=rank, reverse=True)
    (piece, main), *others = named
    names = [name for _, name in others]
    strange = [n for n in names if n not in _counter_ions() and n != main]
    if strange:
        raise Refused(
            "fragments",
            f"{len(pieces)} separate molecules ({one_line(strange[0], 40)} is no known salt or "
            "solvent); give one molecule a record",
        )
    if main in names and main not in _counter_ions():
        raise Refused("fragments", f"{len(pieces)} copies of one molecule; give one a record")
    notes.append("took off " + ", ".join(names[:5]))
    return piece


def _metal_center(piece: Chem.Mol) -> bool:
    """A metal among other atoms: a complex, unlike a lone counter-ion."""
    heavy = [a for a in piece.GetAtoms() if a.GetAtomicNum() > 1]
    return len(heavy) > 1 and any(_is_metal(a) for a in heavy)


_NON_METALS = frozenset((0, 1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18))
_NON_METALS |= {32, 33, 34, 35, 36, 51, 52, 53, 54, 85, 86}


def _is_metal(atom: Chem.Atom) -> bool:
    return atom.GetAtomicNum() not in _NON_METALS


def _neutral_smiles(mol: Chem.Mol) -> str:
    """Canonical SMILES of a piece, uncharged where protons can do it, without stereo."""
    plain = Chem.Mol(mol)
    try:
        Chem.SanitizeMol(plain)
        plain = _heavy(plain)
        for atom in plain.GetAtoms():
            atom.SetIsotope(0)
        plain = rdMolStandardize.Uncharger(force=True).uncharge(plain)
        if plain.GetNumAtoms() == 1 and _is_metal(plain.GetAtomWithIdx(0)):
            return f"[{plain.GetAtomWithIdx(0).GetSymbol()}]"
        return Chem.MolToSmiles(plain, isomericSmiles=False)
    except (ValueError, RuntimeError):
        return Chem.MolToSmiles(mol, isomericSmiles=False)


@cache
def _counter_ions() -> frozenset[str]:
    """The known salts and solvents in the spelling of `_neutral_smiles`."""
    with BlockLogs():
        return frozenset(_neutral_smiles(Chem.MolFromSmiles(s)) for s in COUNTER_IONS)


def _check_atoms(mol: Chem.Mol) -> None:
    """Refuses metals, elements without parameters, placeholders and too many atoms."""
    heavy = [a for a in mol.GetAtoms() if a.GetAtomicNum() != 1]
    for atom in heavy:
        if _is_metal(atom):
            raise Refused("metal", f"holds {atom.GetSymbol()}; metals belong into the protein file")
        if atom.HasQuery() or _is_dummy(atom):
            raise Refused(
                "query", f"atom {atom.GetIdx() + 1} is a placeholder; give one definite molecule"
            )
        if atom.GetSymbol() not in ELEMENTS:
            raise Refused("element", f"element {atom.GetSymbol()} is not supported")
    if any(bond.HasQuery() for bond in mol.GetBonds()):
        raise Refused("query", "holds a bond of undefined order; give one definite molecule")
    if len(heavy) > MAX_HEAVY_ATOMS:
        raise Refused("too_large", f"{len(heavy)} heavy atoms, the limit is {MAX_HEAVY_ATOMS}")


def _sanitised(mol: Chem.Mol, notes: list[str]) -> Chem.Mol:
    """Sanitises, and mends what files leave out: the charge of a four-bonded nitrogen, and
    hydrogens, without which an atom would be a radical."""
    trial = Chem.Mol(mol)
    problems = Chem.DetectChemistryProblems(trial)
    if any(p.GetType() == "AtomValenceException" for p in problems):
        for atom in trial.GetAtoms():
            order = sum(b.GetBondTypeAsDouble() for b in atom.GetBonds())
            if atom.GetAtomicNum() == 7 and atom.GetFormalCharge() == 0 and order == 4:
                atom.SetFormalCharge(1)
                atom.SetNoImplicit(True)
                notes.append(f"set charge +1 on the four-bonded N {atom.GetIdx() + 1}")
    try:
        Chem.SanitizeMol(trial)
    except (ValueError, RuntimeError) as error:
        raise Refused("parse", f"chemically impossible: {one_line(error, 120)}") from None
    radicals = [atom for atom in trial.GetAtoms() if atom.GetNumRadicalElectrons()]
    if radicals:
        for atom in radicals:
            atom.SetNumRadicalElectrons(0)
            atom.SetNoImplicit(False)
        Chem.SanitizeMol(trial)
        notes.append(f"filled {len(radicals)} open valence{'s' * (len(radicals) > 1)}")
    return trial


def skeleton(mol: Chem.Mol) -> Chem.Mol:
    """Elements and bonds of a molecule, without orders, charges, hydrogens and stereo."""
    plain = Chem.RWMol()
    for atom in mol.GetAtoms():
        bare = Chem.Atom(atom.GetAtomicNum())
        bare.SetNoImplicit(True)
        plain.AddAtom(bare)
    for bond in mol.GetBonds():
        plain.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), Chem.BondType.SINGLE)
    return plain.GetMol()


def atom_orders(mol: Chem.Mol, most: int = 32) -> np.ndarray:
    """Orders of a molecule's atoms that give the same elements and bonds, (P, N) long.

    The molecule's own comes first. There can be millions; after `most` they are left out, so that
    this is quick and the same on every machine (`metrics.symmetry` finds all, if time allows).
    """
    plain = skeleton(mol)
    found = plain.GetSubstructMatches(plain, uniquify=False, maxMatches=most)
    own = tuple(range(mol.GetNumAtoms()))
    return np.array([own, *(order for order in found if order != own)][:most])


def in_space(mol: Chem.Mol) -> bool:
    """Whether the coordinates are a pose: finite, no drawing, no two heavy atoms in one place."""
    if not mol.GetNumConformers():
        return False
    xyz = mol.GetConformer().GetPositions()
    xyz = xyz[[a.GetAtomicNum() > 1 for a in mol.GetAtoms()]]
    if not len(xyz) or not np.isfinite(xyz).all() or np.abs(xyz).max() > 1e4:
        return False
    if len(xyz) == 1:
        return bool(np.abs(xyz).max() > 0)
    if not np.abs(xyz[:, 2]).max() > 1e-3:
        return False
    gap = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1) + np.eye(len(xyz)) * 9
    return bool(gap.min() > 0.6)


def _heavy(mol: Chem.Mol) -> Chem.Mol:
    """Removes every hydrogen, deuterium and hydride included; their count stays on the atoms."""
    options: Any = rdmolops.RemoveHsParameters()
    for name in (
        "removeDegreeZero",
        "removeHigherDegrees",
        "removeOnlyHNeighbors",
        "removeIsotopes",
        "removeDummyNeighbors",
        "removeDefiningBondStereo",
        "removeWithWedgedBond",
        "removeWithQuery",
        "removeMapped",
        "removeInSGroups",
        "removeNonimplicit",
        "removeHydrides",
        "removeNontetrahedralNeighbors",
    ):
        setattr(options, name, True)
    options.showWarnings = False
    try:
        bare = rdmolops.RemoveHs(mol, options)
    except (ValueError, RuntimeError) as error:
        raise Refused("parse", f"hydrogens cannot be removed: {one_line(error, 100)}") from None
    if any(atom.GetAtomicNum() == 1 for atom in bare.GetAtoms()):
        raise Refused("parse", "a hydrogen without a heavy atom of its own")
    return bare


_MOOT = "[PX4,SX4,AsX4;$([*](~[OX1,OX2H,SX1,SX2H])~[OX1,OX2H,SX1,SX2H])]"


@cache
def _moot_pattern() -> Chem.Mol:
    return Chem.MolFromSmarts(_MOOT)


def _drop_moot_stereo(mol: Chem.Mol) -> None:
    """Forgets chirality at phosphorus and the like whose two terminal O or S trade their proton."""
    for (index,) in mol.GetSubstructMatches(_moot_pattern(), maxMatches=1000):
        mol.GetAtomWithIdx(index).SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)


def _open_stereo(mol: Chem.Mol) -> list[str]:
    """Notes how many stereocentres and double bonds the input leaves open."""
    moot = {i for (i,) in mol.GetSubstructMatches(_moot_pattern(), maxMatches=1000)}
    atoms, bonds = 0, 0
    for element in Chem.FindPotentialStereo(mol):
        if element.specified == Chem.StereoSpecified.Specified:
            continue
        if element.type == Chem.StereoType.Atom_Tetrahedral:
            atoms += element.centeredOn not in moot
        elif element.type == Chem.StereoType.Bond_Double:
            bonds += 1
    notes = []
    if atoms:
        notes.append(f"{atoms} undefined stereocentre{'s' * (atoms > 1)}")
    if bonds:
        notes.append(f"{bonds} undefined double-bond geometr{'ies' if bonds > 1 else 'y'}")
    return notes
