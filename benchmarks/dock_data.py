"""Score networks that learned from different data: how well they denoise and where they put poses.

    python benchmarks/dock_data.py --data DATA/val --manifest manifest.csv --split val \
        "crystal:RUN_A/model.safetensors" "shaken:RUN_B/model.safetensors"

Each model is NAME:FILE (or NAME:NAME of one that ships); differences are from the first, complex
by complex, ± their standard error over complexes. The denoising loss (1 = says nothing) is that of
training, of 32 noised copies of the crystal pose of each complex of the compact set; poses are 16
a complex, straight from the sampler with the time grid of the network that ships. No search, no
minimisation and no ranking follow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from vina_baseline import chosen, sample_flags, search_box

from bio_diffusion import checkpoint
from bio_diffusion.command import one_thread
from bio_diffusion.diffusion.training import keyed_generator, stratified_times
from bio_diffusion.dock.complex import Site
from bio_diffusion.dock.dataset import CompactSet, Example, PoseBatches
from bio_diffusion.dock.experiment import DockingModel, find_data
from bio_diffusion.dock.metrics import rate, symmetric_rmsd
from bio_diffusion.dock.network import NetworkPoses, load_model
from bio_diffusion.dock.prepare import read_ligand
from bio_diffusion.dock.receptor import read_receptor
from bio_diffusion.dock.sources import SHIPPED, PreparedLigand, PreparedReceptor
from bio_diffusion.grids import kept

COPIES, POSES = 32, 16


def losses(model: DockingModel, examples: Sequence[Example]) -> np.ndarray:
    """(C, 4) denoising losses of each complex: of all copies, and by third of noise, low first."""
    batches, found = PoseBatches(examples, COPIES), []
    for number, example in enumerate(examples):
        pose, pocket = batches.pocket(example, np.random.default_rng(number))
        given = model.score.encode(*pocket)
        t = stratified_times(len(pose), keyed_generator(number))
        noised = model.process.perturb(pose, t, keyed_generator(number, 1))
        loss = model.process.loss(model.score(noised.x_t, t, given), noised, pose, t)
        third = (3 * t).long().clamp(max=2)
        found.append([float(loss.mean()), *(float(loss[third == k].mean()) for k in range(3))])
    return np.array(found)


def compared(values: np.ndarray, first: np.ndarray, scale: float = 1.0) -> str:
    """Mean of (C,) values and the difference from `first` with its standard error."""
    change = scale * (values - first)
    error = change.std(ddof=1) / len(change) ** 0.5
    mean = f"{scale * values.mean():.3f}" if scale == 1 else f"{scale * values.mean():.1f} %"
    return mean if not change.any() else f"{mean} ({change.mean():+.3f} ± {error:.3f})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME:FILE")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", default="dock_val.safetensors", help="compact, for the loss")
    sample_flags(parser)
    args = parser.parse_intermixed_args(argv)
    names, files = zip(*(text.split(":", 1) for text in args.models), strict=True)
    paths = [checkpoint.find(file, "dock") for file in files]
    loaded = [load_model(path, torch.device("cpu")) for path in paths]
    curve = kept(checkpoint.load(SHIPPED, "dock"))
    sources = [NetworkPoses(model, curve) for model, _ in loaded]
    rmsd: list[list[np.ndarray]] = [[] for _ in sources]
    with one_thread(), torch.inference_mode():
        examples = list(CompactSet(find_data(args.set)))
        loss = [losses(model, examples) for model, _ in loaded]
        for key, _, _ in chosen(args):
            ligand = read_ligand(args.data / key)
            read = read_receptor(args.data / key / "protein.pdb")
            receptor = PreparedReceptor.of(read.without(ligand.crystal))
            prepared = PreparedLigand.of(ligand, 4, 0)
            site = Site(*search_box(ligand.crystal), "crystal")
            for source, rows in zip(sources, rmsd, strict=True):
                generator = torch.Generator().manual_seed(0)
                pose = source.poses(receptor, prepared, site, POSES, generator)
                rows.append(symmetric_rmsd(pose.coords.numpy(), ligand.crystal, ligand.mol))
    right = [(np.array(rows) < 2.0) for rows in rmsd]
    print(f"{len(examples)} complexes for the loss, {len(right[0])} for {POSES} poses each.\n")
    print(
        "| learned from | model | loss | low noise | middle | high | poses < 2 Å | a pose < 2 Å |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for k, name in enumerate(names):
        cells = [compared(loss[k][:, j], loss[0][:, j]) for j in range(4)]
        share = compared(right[k].mean(1), right[0].mean(1), 100.0)
        digest = loaded[k][1].sha256[:12]
        print(f"| {name} | {digest} | {' | '.join(cells)} | {share} | {rate(right[k].any(1))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
