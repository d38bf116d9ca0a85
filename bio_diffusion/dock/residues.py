"""Residues of a structure file: one conformer, heavy atoms, and what class each belongs to.

Shapes: coordinates (3,), Å.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from scipy.spatial import cKDTree

from bio_diffusion.files import InputError, one_line, read_text

from .amino_acids import BACKBONE, SIDE_CHAINS, STATES

METALS = frozenset("Na K Mg Ca V Mn Fe Co Ni Cu Zn Mo Cd W".split())
"""Metal ions kept beside a protein: those of biology, and cadmium, which stands in for zinc."""

METAL_REACH = 4.0
"""Å from an ion to the nearest atom of a chain or cofactor, beyond which the ion is dropped."""

CAPS = frozenset("ACE FOR NH2 NMA NME".split())
"""Groups that end a chain in place of a residue."""

WATERS = frozenset("HOH DOD WAT H2O TIP TIP3 TP3 SOL OH2 MTO".split())

ADDITIVES = frozenset(
    """
    GOL EDO PGO PGR MPD MRD BU1 BU2 BU3 PDO PEG PGE PG4 PG0 PG5 PG6 1PE 2PE 1PG P6G P33 P4C PE3
    PE4 PE5 PE7 PE8 12P 15P 7PE XPE PEU ETE M2M TOE MXE EOH MOH IPA POL TBU ACN CCN DMS DMF DIO
    DOX ACY ACT FMT CO3 BCT NO3 NO2 SO4 SO3 PO4 PI 2HP PO3 SCN CYN AZI NH4 NH3 FLC CIT CAC MLI
    MLA TLA TAR SIN MES EPE TRS BTB BCN MPO NHE CPS CXS B3P HED BME DTT DTU DTV TCE TFA IMD URE
    GAI UNX BOG LMT LDA C8E SDS HTG HTO DMU UND D10 D12 OCT HEX C10
    """.split()
)
"""Buffers, precipitants, cryoprotectants and detergents: dropped, and never taken for a ligand."""


_COLUMNS = 78  # of a PDB line, up to the element; other programs write what they like behind


def read_structure(path: str | Path) -> gemmi.Structure:
    """Reads PDB or mmCIF, also gzipped, told apart by content.

    Raises:
        InputError: The file cannot be read, is of another kind, damaged, or holds no atom.
    """
    return parse_structure(read_text(path), one_line(path))


def parse_structure(text: str, name: str) -> gemmi.Structure:
    """Parses the text of a PDB or mmCIF file; `name` is for messages.

    Raises:
        InputError: The text is of another kind, damaged, or holds no atom.
    """
    # names of atoms and chains are ASCII; gemmi hands out others as bytes that are no text
    text = text.encode("ascii", "replace").decode("ascii")
    try:
        if any(line.lower().startswith("data_") for line in text.splitlines()):
            # real files carry other blocks beside the coordinates
            for block in gemmi.cif.read_string(text):
                structure = gemmi.make_structure_from_block(block)
                if len(structure) and any(True for _ in structure[0].all()):
                    break
        else:
            structure = gemmi.read_pdb_string(text, max_line_length=_COLUMNS)
        structure.merge_chain_parts()
    except (RuntimeError, ValueError, IndexError, OverflowError) as error:
        reason = one_line(error)
        raise InputError(
            "parse",
            f"{name}: not a readable PDB or mmCIF file ({reason}); fetch or export it again",
        ) from None
    if len(structure) == 0 or not any(True for _ in structure[0].all()):
        raise InputError("no_atoms", f"{name}: holds no atoms; give a protein as PDB or mmCIF")
    return structure


@dataclass
class Group:
    """One residue, ion or other group after the policy on atoms.

    Attributes:
        chain: Name of its chain.
        number: Sequence number with insertion code.
        name: Component name, `MET` for selenomethionine.
        kind: `protein`, `nucleic`, `modified` (in a chain), `group`, `ion`, `additive`, `water`.
        record: `A` for ATOM, `H` for HETATM.
        atoms: Heavy atoms of one conformer.
    """

    chain: str
    number: str
    name: str
    kind: str
    record: str
    atoms: list[gemmi.Atom]

    @property
    def label(self) -> str:
        """Chain, number and name for messages, such as `A:45 SER`."""
        return f"{self.chain}:{self.number} {self.name}"

    @property
    def coords(self) -> np.ndarray:
        """(n, 3) coordinates of its atoms, Å."""
        return np.array([atom.pos.tolist() for atom in self.atoms]).reshape(-1, 3)

    def position(self, name: str) -> np.ndarray | None:
        """(3,) coordinates of the atom of that name, if there is one."""
        for atom in self.atoms:
            if atom.name == name:
                return np.array(atom.pos.tolist())
        return None


def read_groups(structure: gemmi.Structure, counts: Counter[str]) -> list[Group]:
    """All residues of the first model, in the order of the file, classified.

    Args:
        structure: Parsed file.
        counts: Raised by what the policy on atoms drops or changes.
    """
    groups = [
        _read_group(chain, residue, counts)
        for chain in structure[0]
        for residue in _conformers(chain, counts)
    ]
    _link([group for group in groups if group.atoms and group.kind in _LINKED])
    return groups


def _conformers(chain: gemmi.Chain, counts: Counter[str]) -> Iterator[gemmi.Residue]:
    """Residues of a chain with one alternate location each, that of highest mean occupancy.

    One label is chosen for the whole residue, so that halves of two side-chain positions are
    never joined; a tie goes to the first label, the same in neighbouring residues. Where two
    components share a position (microheterogeneity) the same rule chooses between them.
    """
    weights: dict[str, dict[str, float]] = {}
    names: dict[str, set[str]] = {}
    for residue in chain:
        table = weights.setdefault(str(residue.seqid), defaultdict(float))
        names.setdefault(str(residue.seqid), set()).add(residue.name)
        for atom in residue:
            if atom.has_altloc():
                # the mean, so that a component of more atoms does not win by its size
                share = sum(a.altloc == atom.altloc for a in residue)
                table[atom.altloc] += atom.occ / share if np.isfinite(atom.occ) else 0.0
    counts["altloc_residues"] += sum(1 for table in weights.values() if table)
    for residue in chain:
        table = weights[str(residue.seqid)]
        rank = {a: i for i, a in enumerate(sorted(table, key=lambda a: (-table[a], a)))}
        labels = {atom.altloc for atom in residue if atom.has_altloc()}
        if not labels:
            yield residue
            continue
        rival = len(names[str(residue.seqid)]) > 1
        if rival and min(rank.values()) not in {rank[a] for a in labels}:
            continue
        best: dict[str, int] = {}
        for atom in residue:
            if atom.has_altloc():
                best[atom.name] = min(rank[atom.altloc], best.get(atom.name, len(rank)))
        chosen = residue.clone()
        for i in range(len(residue) - 1, -1, -1):
            if residue[i].has_altloc() and rank[residue[i].altloc] != best[residue[i].name]:
                del chosen[i]
        yield chosen


_LINKED = ("protein", "nucleic", "modified", "group")
_KIND = gemmi.ResidueKind
_PROTEIN = (_KIND.AA, _KIND.AAD, _KIND.PAA, _KIND.MAA)
_NUCLEIC = (_KIND.RNA, _KIND.DNA)


def classify(name: str, atoms: list[gemmi.Atom]) -> str:
    """Class of a residue by its component name and atoms.

    Returns:
        `protein`, `nucleic`, `modified`, `ion`, `additive`, `water`, or `group` for any other.
    """
    info = gemmi.find_tabulated_residue(name)
    if info.is_water() or name in WATERS:
        return "water"
    if info.kind in _PROTEIN:
        return "protein" if info.is_standard() else "modified"
    if info.kind in _NUCLEIC:
        return "nucleic" if info.is_standard() else "modified"
    if name in CAPS:
        return "modified"
    if len(atoms) == 1:
        return "ion"
    if name in ADDITIVES or info.kind == _KIND.BUF:
        return "additive"
    return "group"


def _read_group(chain: gemmi.Chain, residue: gemmi.Residue, counts: Counter[str]) -> Group:
    """Drops hydrogens and unusable atoms of a residue, renames selenomethionine, classifies."""
    atoms = []
    for atom in residue:
        if atom.is_hydrogen():
            counts["hydrogens_dropped"] += 1
        elif atom.element.atomic_number == 0 or not _usable(atom):
            counts["unknown_atoms_dropped"] += 1
        else:
            atoms.append(atom)
    name, record = residue.name, "H" if residue.het_flag == "H" else "A"
    if name == "MSE":
        counts["mse_to_met"] += 1
        name, record = "MET", "A"
        for atom in atoms:
            if atom.element.name == "Se":
                atom.element, atom.name = gemmi.Element("S"), "SD"
    # HIP, HSE and LYN name other compounds, too, which hold other atoms
    own = {*BACKBONE, *_ENDS, *SIDE_CHAINS[STATES[name]]} if name in STATES else set()
    if atoms and {a.name for a in atoms} <= own:
        counts["states_renamed"] += 1
        name, record = STATES[name], "A"
    kind = classify(name, atoms)
    return Group(chain.name, str(residue.seqid), name, kind, record, atoms)


_ENDS = ("OXT", "OT1", "OT2", "OC1", "OC2", "O1", "O2")  # oxygens of a chain's last residue


def _usable(atom: gemmi.Atom) -> bool:
    """Whether the coordinates are numbers that a PDB file can hold."""
    return all(np.isfinite(x) and -999.9 < x < 9999.0 for x in atom.pos.tolist())


def _link(groups: list[Group]) -> None:
    """Settles by its bonds what a HETATM monomer is: part of a chain, or free.

    A component that tables know as amino acid or nucleotide is free where nothing of a chain is
    bonded to it; a component unknown to them is part of a chain where its N, CA and C lie in one.
    """
    chains = [g for g in groups if g.kind in ("protein", "nucleic", "modified")]
    if not chains:
        return
    tree = cKDTree(np.concatenate([g.coords for g in chains]))
    owner = [id(g) for g in chains for _ in g.atoms]
    names = [a.name for g in chains for a in g.atoms]
    for group in groups:
        if group.record != "H":
            continue
        near = [
            (atom.name, names[k])
            for atom, found in zip(
                group.atoms, tree.query_ball_point(group.coords, _LINK), strict=True
            )
            for k in found
            if owner[k] != id(group)
        ]
        if group.kind == "group":
            backbone = {"N", "CA", "C"} <= {atom.name for atom in group.atoms}
            if backbone and {("N", "C"), ("C", "N")} & set(near):
                group.kind = "modified"
        elif not near:
            group.kind = "group"
        elif group.kind == "protein":
            group.record = "A"


_LINK = 1.8  # Å: bonds between monomers are 1.3 to 1.6, bad models reach 1.7
