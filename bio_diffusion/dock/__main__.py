"""python -m bio_diffusion.dock: dock ligands into a protein.

Exit status: 0 all done; 1 a fault of this program; 2 bad usage or input, before any work; 3 done in
part; 130 interrupted, the files so far are valid.
"""

from __future__ import annotations

import argparse
import sys

from bio_diffusion.command import Parser, start
from bio_diffusion.dock import ahead

_EPILOG = """\
Words key=value override settings (names in configs/dock.yaml), such as starts=64.
Order: defaults < --config file < key=value < flags.

Without a ligand, the protein's own bound ligand is taken out and docked back; a protein without one
gets a small set of probe molecules docked at its likely sites. Without a site, --blind is meant.

Exit status: 0 all done; 1 a fault of this program; 2 bad usage or input, before any work;
3 done in part (see failures.csv); 130 interrupted, files so far valid.

Examples:
  python -m bio_diffusion.dock --protein p.pdb --ligand l.sdf --autobox_ligand l.sdf
  python -m bio_diffusion.dock --protein p.cif.gz --ligand 'CC(=O)Nc1ccc(O)cc1' --blind
  python -m bio_diffusion.dock --protein p.pdb --ligands library.smi --center 12 4.5 -3 --workers 8
"""


def parser() -> Parser:
    """The command line; needs nothing but the standard library."""
    p = Parser(
        prog="python -m bio_diffusion.dock",
        description="Docks ligands into a protein and writes ranked, checked poses.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = p.add_argument_group("what to dock")
    what.add_argument("--protein", metavar="FILE", required=True, help="PDB or mmCIF, also .gz")
    what.add_argument(
        "--ligand",
        metavar="L",
        action="append",
        default=[],
        help="SDF, MOL2, PDB or mmCIF file, or a SMILES string; repeatable",
    )
    what.add_argument(
        "--ligands",
        metavar="FILE",
        help="many: .sdf, .smi, or .csv with columns id, smiles or path, and optionally protein",
    )
    where = p.add_argument_group("where").add_mutually_exclusive_group()
    where.add_argument("--autobox_ligand", metavar="FILE", help="box around this ligand")
    where.add_argument("--center", metavar=("X", "Y", "Z"), nargs=3, type=float, help="Å")
    where.add_argument("--pocket-residues", metavar="A:45,A:102", help="box around residues")
    where.add_argument(
        "--blind",
        action="store_true",
        help="find the sites (the default; --protein alone redocks a ligand in it)",
    )
    how = p.add_argument_group("how")
    how.add_argument("--size", metavar="A", type=float, help="edge of the box with --center, Å")
    how.add_argument("--num-poses", metavar="N", type=int, help="poses of each ligand (10)")
    how.add_argument("--seed", metavar="N", type=int, help="random seed (0)")
    how.add_argument("--steps", metavar="N", type=int, help="steps of the diffusion sampler")
    how.add_argument("--schedule", metavar="NAME", help="adaptive, uniform or karras")
    how.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="trained model (or the name of one that ships), or none: physics alone",
    )
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    how.add_argument(
        "--prepare",
        choices=("none", "check", "fix"),
        help="report missing atoms of the protein (check), rebuild them (fix), or neither",
    )
    how.add_argument(
        "--minimize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="search and minimise with the physics (default: yes)",
    )
    how.add_argument("--config", metavar="FILE", help="settings as YAML, such as a config.yaml")
    run = p.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="folder (docking-results/NAME)")
    again = run.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    again.add_argument("--overwrite", action="store_true", help="replace the results in it")
    run.add_argument("--workers", metavar="N", type=int, help="processes (all cores)")
    run.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler to run on")
    run.add_argument("--quiet", action="store_true", help="print errors only")
    run.add_argument("--log-file", metavar="FILE", help="full log, with tracebacks")
    p.add_argument("overrides", metavar="key=value", nargs="*", help="settings")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parser().parse_intermixed_args(arguments)
    ahead.begin()
    return start("bio_diffusion.dock.command", options)  # the chemistry and torch load only now


if __name__ == "__main__":
    sys.exit(main())
