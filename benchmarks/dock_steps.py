"""Steps, grid and temperature of the reverse diffusion: how good its poses are as drawn.

No search, no minimisation and no ranking follow: 16 poses a complex come straight from the sampler.

    python benchmarks/dock_steps.py --data DATA/val --manifest manifest.csv --split val \
        --sample 40 [--steps 6 10 20] [--schedule uniform karras adaptive]
        [--inverse-temperature 1 2 4 8] [--checkpoint FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from vina_baseline import chosen, sample_flags, search_box

from bio_diffusion.dock.complex import Ligand, Site, read_ligands, read_receptor
from bio_diffusion.dock.metrics import rate, symmetric_rmsd
from bio_diffusion.dock.network import NetworkPoses, load_model
from bio_diffusion.dock.sources import (
    SHIPPED,
    PoseSource,
    PreparedLigand,
    PreparedReceptor,
    PriorPoses,
)
from bio_diffusion.grids import kept

POSES = 16
SCHEDULES = ("uniform", "karras", "adaptive")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    sample_flags(parser)
    parser.add_argument("--steps", type=int, nargs="+", default=[6, 10, 20])
    parser.add_argument("--schedule", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    parser.add_argument("--inverse-temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, loaded = load_model(args.checkpoint, torch.device("cpu"))
    curve = kept(loaded)
    sources: dict[str, PoseSource] = {"random in the box": PriorPoses()}
    for schedule, steps, cold in product(args.schedule, args.steps, args.inverse_temperature):
        if schedule != "adaptive" or curve is not None:
            name = f"{schedule}, {steps} steps, inverse temperature {cold:g}"
            sources[name] = NetworkPoses(model, curve, steps, schedule, inverse_temperature=cold)
    found: dict[str, list[np.ndarray]] = {name: [] for name in sources}
    spent = dict.fromkeys(sources, 0.0)
    for key, _, _ in chosen(args):
        receptor = PreparedReceptor.of(read_receptor(args.data / key / "protein.pdb"))
        ligand = next(iter(read_ligands([str(args.data / key / "ligand.sdf")])))
        assert isinstance(ligand, Ligand) and ligand.crystal is not None
        prepared = PreparedLigand.of(ligand, 4, 0)
        site = Site(*search_box(ligand.crystal), "crystal")
        for name, source in sources.items():
            began = time.process_time()
            generator = torch.Generator().manual_seed(0)
            pose = source.poses(receptor, prepared, site, POSES, generator)
            spent[name] += time.process_time() - began
            found[name].append(symmetric_rmsd(pose.coords.numpy(), ligand.crystal, ligand.mol))
    count = len(next(iter(found.values())))
    print(f"{count} complexes, {POSES} poses each, model {loaded.sha256[:12]}\n")
    print("| poses | mean RMSD, Å | poses < 2 Å | poses < 4 Å | a pose < 2 Å | CPU s a complex |")
    print("|---|---|---|---|---|---|")
    for name, rows in found.items():
        rmsd = np.array(rows)
        error = rmsd.mean(1).std(ddof=1) / np.sqrt(count)
        print(
            f"| {name} | {rmsd.mean():.2f} ± {error:.2f} | {100 * (rmsd < 2).mean():.1f} % "
            f"| {100 * (rmsd < 4).mean():.1f} % | {rate((rmsd < 2).any(1))} "
            f"| {spent[name] / count:.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
