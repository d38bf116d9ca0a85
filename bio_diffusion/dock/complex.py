"""What docking reads: protein, ligands and site. The one door of this package for input files."""

from __future__ import annotations

from .files import InputError
from .ligand import Failure, Ligand, read_ligands
from .receptor import Receptor, read_receptor

__all__ = ["Failure", "InputError", "Ligand", "Receptor", "read_ligands", "read_receptor"]
