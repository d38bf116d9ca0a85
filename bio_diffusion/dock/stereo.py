"""The handedness of stereocentres and the sides of double bonds, in graphs and in coordinates.

`Stereo` asks whether coordinates have the stereochemistry that a molecule's labels demand;
`StereoLayers` whether poses have that of a reference pose, as the InChI sees it.

Shapes: B poses, N heavy atoms, C stereocentres, D double bonds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.inchi import MolToInchi

__all__ = ["Stereo", "StereoLayers"]

_LAYERS = {
    "double_bond_stereochemistry": "b",
    "tetrahedral_chirality": "tms",
}
"""PoseBusters' test names and the InChI layers that they compare."""

_CHARGED = "[+1!h0!$([*]~[-1,-2,-3,-4]),-1!$([*]~[+1,+2,+3,+4])]"
_SURE_VOLUME = 1.0  # Å^3; a tetrahedral carbon has 2 to 4, a planar one 0
_SURE_COSINE = 0.5  # of the torsion about a double bond; a planar one has 1 or -1


@dataclass(frozen=True)
class Stereo:
    """The specified stereochemistry of a molecule, as signs that coordinates must have.

    Attributes:
        centers: (C, 4) long, a centre and three neighbours; every three of four heavy ones.
        handedness: (C,) +1 or -1, the sign of the triple product of the three bond vectors.
        doubles: (D, 4) long, atoms a-i=j-b of a double bond.
        sides: (D,) +1 where a and b lie on one side (cis), -1 where not (trans).
    """

    centers: np.ndarray
    handedness: np.ndarray
    doubles: np.ndarray
    sides: np.ndarray

    @classmethod
    def of(cls, mol: Chem.Mol) -> Stereo:
        """Reads the chiral tags and double-bond labels; unspecified ones are left free."""
        signs = {
            Chem.ChiralType.CHI_TETRAHEDRAL_CCW: 1.0,
            Chem.ChiralType.CHI_TETRAHEDRAL_CW: -1.0,
        }
        sides = {
            Chem.BondStereo.STEREOZ: 1.0,
            Chem.BondStereo.STEREOCIS: 1.0,
            Chem.BondStereo.STEREOE: -1.0,
            Chem.BondStereo.STEREOTRANS: -1.0,
        }
        centers, handedness, doubles, same = [], [], [], []
        for atom in mol.GetAtoms():
            sign = signs.get(atom.GetChiralTag())
            if sign is not None and atom.GetDegree() >= 3:
                around = [bond.GetOtherAtomIdx(atom.GetIdx()) for bond in atom.GetBonds()]
                for parity, triple in _triples(around):
                    centers.append((atom.GetIdx(), *triple))
                    handedness.append(sign * parity)
        for bond in mol.GetBonds():
            side = sides.get(bond.GetStereo())
            if side is not None and len(bond.GetStereoAtoms()) == 2:
                a, b = bond.GetStereoAtoms()
                doubles.append((a, bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), b))
                same.append(side)
        return cls(
            np.array(centers, dtype=np.int64).reshape(-1, 4),
            np.array(handedness),
            np.array(doubles, dtype=np.int64).reshape(-1, 4),
            np.array(same),
        )

    def kept(self, coords: np.ndarray) -> np.ndarray:
        """(B, N, 3) -> (B,) bool: every specified centre and double bond has its sign."""
        hands = _volumes(coords, self.centers) * self.handedness
        sides = _cosines(coords, self.doubles) * self.sides
        return np.asarray((hands > 0).all(1) & (sides > 0).all(1))


class StereoLayers:
    """Compares the stereochemistry of poses to that of a reference pose.

    The judgement is the InChI's: hydrogens added, charges neutralised, centres and double bonds
    perceived from the coordinates, layers compared. That takes milliseconds a pose, so first the
    signs of all possible stereo elements are compared: a pose that clearly has every sign of the
    reference has its InChI too. Only the others are written as InChI.

    Args:
        mol: Sanitised heavy-atom molecule of N atoms.
        reference: (N, 3) Å.

    Source: the identity test of PoseBusters 0.6.5.
    """

    def __init__(self, mol: Chem.Mol, reference: np.ndarray) -> None:
        self._mol = _neutral(mol)
        centers, doubles = [], []
        with rdBase.BlockLogs():
            possible = Chem.FindPotentialStereo(Chem.Mol(self._mol))
        for element in possible:
            around = [int(i) for i in element.controllingAtoms if i < mol.GetNumAtoms()]
            if element.type == Chem.StereoType.Atom_Tetrahedral:
                centers += [(int(element.centeredOn), *triple) for _, triple in _triples(around)]
            elif element.type == Chem.StereoType.Bond_Double:
                bond = mol.GetBondWithIdx(int(element.centeredOn))
                i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
                ends = [
                    [a for a in around if mol.GetBondBetweenAtoms(a, end) and a not in (i, j)]
                    for end in (i, j)
                ]
                if all(ends):
                    doubles.append((ends[0][0], i, j, ends[1][0]))
        self._centers = np.array(centers, dtype=np.int64).reshape(-1, 4)
        self._doubles = np.array(doubles, dtype=np.int64).reshape(-1, 4)
        target = np.asarray(reference, dtype=np.float64)
        self._signs = self._signs_of(target[None])[0]
        self._layers = self._layers_of(target)

    def kept(self, poses: np.ndarray) -> dict[str, np.ndarray]:
        """(B, N, 3) Å -> (B,) bool by test name."""
        clear = (self._signs_of(poses) == self._signs).all(1) & (self._signs != 0).all()
        results = {name: np.ones(len(poses), dtype=bool) for name in _LAYERS}
        for pose in np.flatnonzero(~clear):
            layers = self._layers_of(poses[pose])
            for name, letters in _LAYERS.items():
                results[name][pose] = all(
                    layers.get(letter) == self._layers.get(letter) for letter in letters
                )
        return results

    def _signs_of(self, coords: np.ndarray) -> np.ndarray:
        """(B, N, 3) -> (B, C + D) of -1, 0, 1; 0 where the geometry leaves a doubt."""
        volumes = _volumes(coords, self._centers)
        cosines = _cosines(coords, self._doubles)
        signs = (
            np.where(np.abs(volumes) < _SURE_VOLUME, 0.0, np.sign(volumes)),
            np.where(np.abs(cosines) < _SURE_COSINE, 0.0, np.sign(cosines)),
        )
        return np.concatenate(signs, axis=1)

    def _layers_of(self, pose: np.ndarray) -> dict[str, str]:
        """InChI layers of one pose (N, 3) by their letter."""
        mol = Chem.Mol(self._mol)
        conformer = Chem.Conformer(mol.GetNumAtoms())
        conformer.SetPositions(np.asarray(pose, dtype=np.float64))
        mol.AddConformer(conformer)
        # a ketimine's hydrogen has no fixed side
        ketimines = {n for _, n in mol.GetSubstructMatches(Chem.MolFromSmarts("[CX3]=[NH1]"))}
        carriers = [i for i in range(mol.GetNumAtoms()) if i not in ketimines]
        with rdBase.BlockLogs():
            mol = Chem.AddHs(mol, onlyOnAtoms=carriers, addCoords=True)
            Chem.AssignStereochemistryFrom3D(mol, replaceExistingTags=True)
            inchi = MolToInchi(mol)
        return {layer[0]: layer[1:] for layer in inchi.split("/")[2:] if layer}


def _neutral(mol: Chem.Mol) -> Chem.Mol:
    """The molecule without stereo labels and isotopes, its charges taken up by hydrogens."""
    bare = Chem.Mol(mol)
    bare.RemoveAllConformers()
    Chem.RemoveStereochemistry(bare)
    for atom in bare.GetAtoms():
        atom.SetIsotope(0)
    neutral = Chem.Mol(bare)
    try:
        for (index,) in neutral.GetSubstructMatches(Chem.MolFromSmarts(_CHARGED)):
            atom = neutral.GetAtomWithIdx(index)
            hydrogens, charge = atom.GetTotalNumHs(), atom.GetFormalCharge()
            atom.SetFormalCharge(0)
            atom.SetNumExplicitHs(hydrogens - charge)
            atom.UpdatePropertyCache()
    except Chem.AtomValenceException:
        return bare
    return neutral


def _triples(around: list[int]) -> list[tuple[float, tuple[int, ...]]]:
    """The triples of three or four neighbours, with the sign of each relative to the first.

    About a tetrahedral centre all four say the same; when one neighbour has moved to the wrong
    side, the triple without it still looks right.
    """
    if len(around) != 4:
        return [(1.0, tuple(around[:3]))]
    a, b, c, d = around
    return [(1.0, (a, b, c)), (-1.0, (a, b, d)), (1.0, (a, c, d)), (-1.0, (b, c, d))]


def _volumes(coords: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """(B, N, 3), (C, 4) -> (B, C) triple products of the bonds to the first three neighbours."""
    c, x, y, z = (coords[:, column] for column in centers.T)
    return np.einsum("bci,bci->bc", x - c, np.cross(y - c, z - c))


def _cosines(coords: np.ndarray, doubles: np.ndarray) -> np.ndarray:
    """(B, N, 3), (D, 4) -> (B, D) cosines of the torsions a-i=j-b: 1 is cis, -1 trans."""
    a, i, j, b = (coords[:, column] for column in doubles.T)
    first, second = np.cross(j - i, a - i), np.cross(j - i, b - j)
    length = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.einsum("bdi,bdi->bd", first, second) / np.maximum(length, 1e-12)
