"""python -m bio_diffusion.image: draw pictures from a trained model, or measure one.

Exit status: 0 all done; 1 a fault of this program; 2 bad usage or input, before any work; 3 done in
part; 130 interrupted, the files so far are valid.
"""

from __future__ import annotations

import argparse
import sys

from bio_diffusion.command import Parser, start

_EPILOG = """\
Exit status: 0 all done; 1 a fault of this program; 2 bad usage or input, before any work;
3 done in part (see summary.json); 130 interrupted, files so far valid.

Examples:
  python -m bio_diffusion.image sample --n 64 --steps 12 --seed 1
  python -m bio_diffusion.image sample --model mnist_disco --sampler euler --guidance 1
  python -m bio_diffusion.image evaluate --model runs/mine/model.safetensors --n 2000 --out measured
"""


def parser() -> Parser:
    """The command line; needs nothing but the standard library."""
    p = Parser(
        prog="python -m bio_diffusion.image",
        description="Draws pictures from a trained model, and measures how good they are.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = p.add_subparsers(dest="verb", metavar="sample|evaluate", required=True)
    told = {
        "sample": "draw pictures: grid.png, samples.npy, summary.json",
        "evaluate": "also measure bits/dim and the Frechet distance on held-out pictures",
    }
    for verb, words in told.items():
        sub = verbs.add_parser(verb, help=words, description=words, allow_abbrev=False)
        _what(sub, verb)
        _run(sub)
    return p


def _what(sub: argparse.ArgumentParser, verb: str) -> None:
    usual = 1000 if verb == "evaluate" else 64
    sub.add_argument(
        "--model", metavar="NAME|FILE", help="that ships, by name, or your own (mnist)"
    )
    sub.add_argument("--n", metavar="N", type=int, help=f"how many pictures to draw ({usual})")
    sub.add_argument(
        "--steps", metavar="N", type=int, help="of the sampler (18; tokens, multivariate 64)"
    )
    sub.add_argument(
        "--schedule",
        metavar="NAME|FILE",
        help="time grid: adaptive (default where one has been fitted), karras (default elsewhere), "
        "logsnr, cosine; of tokens uniform (default), sine; or a file of `python -m "
        "bio_diffusion.schedule fit --save`",
    )
    sub.add_argument(
        "--sampler",
        choices=("heun", "euler", "ancestral", "flow", "sscs", "em"),
        help="heun: two network calls a step (default); euler, ancestral: one. Tokens: ancestral; "
        "multivariate: ancestral (default), flow, sscs, em",
    )
    sub.add_argument(
        "--guidance", metavar="W", type=float, help="away from hidden latents, by W (0)"
    )
    sub.add_argument("--seed", metavar="N", type=int, help="random seed (0)")
    if verb == "evaluate":
        sub.add_argument(
            "--data", metavar="NAME|FILE|DIR", help="pictures to compare with (the model's own)"
        )
        sub.add_argument(
            "--classifier", metavar="NAME|FILE", help="whose features to use (mnist_classifier)"
        )
        sub.add_argument(
            "--inception", metavar="FILE", help="your weights of Inception: measures the FID too"
        )
        sub.add_argument(
            "--fid-reference", metavar="NPZ", help="mu and sigma to compare with (held-out part)"
        )
        sub.add_argument(
            "--bits-n", metavar="N", type=int, help="held-out pictures for bits/dim (256)"
        )


def _run(sub: argparse.ArgumentParser) -> None:
    run = sub.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="folder (image-results/VERB)")
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    again = run.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    again.add_argument("--overwrite", action="store_true", help="replace the results in it")
    run.add_argument("--quiet", action="store_true", help="print errors only")
    run.add_argument("--log-file", metavar="FILE", help="full log, with tracebacks")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parser().parse_args(arguments)
    return start("bio_diffusion.image.command", options)  # torch loads only now


if __name__ == "__main__":
    sys.exit(main())
