"""python -m bio_diffusion.design: design DNA or small molecules to order.

Exit status: 0 all done; 1 a fault of this program; 2 bad usage or input, before any work; 3 done in
part; 130 interrupted, the files so far are valid.
"""

from __future__ import annotations

import argparse
import sys

from bio_diffusion.command import Parser, start

_EPILOG = """\
Exit status: 0 all done; 1 a fault of this program; 2 bad usage or input, before any work;
3 fewer designs than asked for (see summary.json); 130 interrupted, files so far valid.

Examples:
  python -m bio_diffusion.design smiles --n 100 --objective 'qed>=0.6' 'logp<=3' --unique
  python -m bio_diffusion.design smiles --scaffold 'c1ccc2[nH]ccc2c1' --objective 'qed>=0.7'
  python -m bio_diffusion.design dna --n 50 --avoid EcoRI BsaI --gc 0.4:0.6 --max-homopolymer 5
  python -m bio_diffusion.design dna --template 'NNNNTTGACANNNNNNNNNNNNNNNNNTATAATNNN' --seed 1
  python -m bio_diffusion.design smiles --model qm9 --objective 'qed>=0.5' --guidance cfg --steps 8
  python -m bio_diffusion.design --job jobs.yaml --out results
"""

_SMILES_NAMES = "qed, logp, sa, mw, rings, tpsa"


def parser() -> Parser:
    """The command line; needs nothing but the standard library."""
    p = Parser(
        prog="python -m bio_diffusion.design",
        description="Designs DNA or small molecules, guided to objectives and held to constraints.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "--job", metavar="FILE", help="YAML: one run (such as a config.yaml), or a list `jobs`"
    )
    _run_flags(p, suppressed=False)
    kinds = p.add_subparsers(dest="domain", metavar="dna|smiles")
    dna = kinds.add_parser(
        "dna", help="DNA of the model's length", allow_abbrev=False, description="Designs DNA."
    )
    smiles = kinds.add_parser(
        "smiles", help="small molecules", allow_abbrev=False, description="Designs small molecules."
    )
    for sub in (dna, smiles):
        _common(sub, "gc, motif:ID and the model's own" if sub is dna else _SMILES_NAMES)
        _run_flags(sub, suppressed=True)
    hold = dna.add_argument_group("constraints, all exact")
    hold.add_argument(
        "--template", metavar="IUPAC", type=_given, help="letters allowed at each site; N is free"
    )
    hold.add_argument(
        "--start",
        metavar="FASTA",
        type=_given,
        help="sequences to complete, --n designs of each; N is free",
    )
    hold.add_argument(
        "--avoid",
        metavar="MOTIF|ENZYME",
        nargs="+",
        action="extend",
        help="IUPAC motifs or restriction enzymes, on neither strand",
    )
    hold.add_argument(
        "--motif",
        metavar="ID",
        nargs="+",
        action="extend",
        help="IUPAC motifs or JASPAR matrices (their consensus), each at least once",
    )
    hold.add_argument(
        "--gc", metavar="LO:HI", type=_given, help="share of G and C, such as 0.4:0.6"
    )
    hold.add_argument("--max-homopolymer", metavar="K", type=int, help="longest run of one letter")
    keep = smiles.add_argument_group("constraints")
    keep.add_argument(
        "--scaffold", metavar="SMARTS", type=_given, help="substructure that every design keeps"
    )
    return p


def _given(text: str) -> str:
    """A flag's value; a blank one, as of a shell variable not set, would silently do nothing."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is blank; give a value or leave the flag out")
    return text


def _common(p: argparse.ArgumentParser, names: str) -> None:
    what = p.add_argument_group("what to design")
    what.add_argument("--n", metavar="N", type=int, help="how many (100)")
    what.add_argument(
        "--objective",
        metavar="'NAME>=VALUE'",
        nargs="+",
        action="extend",
        help=f"properties that every design must have: {names}",
    )
    what.add_argument(
        "--target",
        metavar="CLASS",
        nargs="+",
        action="extend",
        help="classes of the model to aim at, such as human or expression=4",
    )
    what.add_argument("--unique", action="store_const", const=True, help="no design twice")
    how = p.add_argument_group("how")
    how.add_argument("--model", metavar="NAME|FILE", help="that ships, by name, or your own")
    how.add_argument(
        "--guidance",
        choices=("none", "cfg", "cbg"),
        help="none: the conditioned model (default); cfg: classifier-free; cbg: by a classifier",
    )
    how.add_argument("--gamma", metavar="G", type=float, help="strength of the guidance (2)")
    how.add_argument("--steps", metavar="N", type=int, help="steps of the sampler (32)")
    how.add_argument(
        "--schedule",
        metavar="NAME|FILE",
        help="time grid: adaptive, kept in the model (default where there is one); uniform "
        "(default elsewhere); sine, short steps at low noise, for uniform noise; cosine, at high "
        "noise, for masks; or a file of `python -m bio_diffusion.schedule fit --save`",
    )
    how.add_argument("--seed", metavar="N", type=int, help="random seed (0)")
    how.add_argument(
        "--max-draws", metavar="K", type=int, help="draws at most for each design asked for (20)"
    )


def _run_flags(p: argparse.ArgumentParser, suppressed: bool) -> None:
    """Flags of the run itself, before the subcommand or after it."""
    left_out = argparse.SUPPRESS if suppressed else None
    run = p.add_argument_group("run")
    run.add_argument(
        "--out", metavar="DIR", default=left_out, type=_given, help="folder (design-results/DOMAIN)"
    )
    run.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default=argparse.SUPPRESS if suppressed else "auto",
    )
    again = run.add_mutually_exclusive_group()
    off = argparse.SUPPRESS if suppressed else False
    again.add_argument(
        "--resume", action="store_true", default=off, help="go on with the run in that folder"
    )
    again.add_argument(
        "--overwrite", action="store_true", default=off, help="replace the results in it"
    )
    run.add_argument("--quiet", action="store_true", default=off, help="print errors only")
    run.add_argument(
        "--log-file", metavar="FILE", default=left_out, help="full log, with tracebacks"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    p = parser()
    options = p.parse_args(arguments)
    if bool(options.job) == bool(options.domain):
        p.error("say dna or smiles, or name a file with --job")
    return start("bio_diffusion.design.command", options)  # the chemistry and torch load only now


if __name__ == "__main__":
    sys.exit(main())
