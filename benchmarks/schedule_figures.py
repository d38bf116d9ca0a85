"""Draws the figures of docs/methods/adaptive-schedules.md, from exact scores: about a minute.

python benchmarks/schedule_figures.py [FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from schedule_tokens import fitted as fitted_words
from schedule_tokens import hand, masked_worlds
from schedule_toys import LINES, by_hand, fitted, walked

STEPS = [4, 6, 8, 12, 16, 24, 32]
COLORS = {
    "log SNR": "tab:gray", "EDM rho 7": "black", "corrector": "tab:orange",
    "terminal, walked": "tab:blue", "heun, walked": "tab:green", "mixture": "tab:red",
}  # fmt: skip


def lines(folder: Path) -> None:
    """W1 against steps, two toys and three samplers; and where 16 knots lie."""
    fig, axes = plt.subplots(2, 4, figsize=(15, 6.4))
    for row, name in zip(axes, ("two", "cantor"), strict=True):
        toy = LINES[name]()
        curves = fitted(toy.process, toy.denoiser, toy.draw(512, 99), toy.scale)
        grids = by_hand(toy.process, toy.scale) | {k: c.knots for k, c in curves.items()}
        for height, (key, color) in enumerate(COLORS.items()):
            knots = toy.process.level(grids[key](16)[:-1])
            row[0].plot(knots, [height] * len(knots), "|", ms=13, mew=2, c=color)
            for axis, sampler in zip(row[1:], ("Euler", "Heun", "ancestral"), strict=True):
                found = [
                    toy.distances(walked(toy, sampler, grids[key](n), 5000, 0))[1] for n in STEPS
                ]
                axis.plot(STEPS, found, marker=".", c=color, label=key)
        row[0].set(
            xscale="log", yticks=range(len(COLORS)), yticklabels=COLORS, title=f"{name}: 16 knots",
            xlabel="noise level",
        )  # fmt: skip
        for axis, sampler in zip(row[1:], ("Euler", "Heun", "ancestral"), strict=True):
            axis.set(xscale="log", yscale="log", title=f"{name}, {sampler}: W1", xlabel="steps")
            axis.set_xticks(STEPS, STEPS)
            axis.set_ylim(top=0.3)
            axis.minorticks_off()
    axes[0, 1].legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(folder / "adaptive-schedules-line.png", dpi=70)


def words(folder: Path) -> None:
    """KL against steps under masking."""
    fig, axes = plt.subplots(1, 4, figsize=(15, 3.4))
    for axis, (name, world) in zip(axes, masked_worlds().items(), strict=True):
        grids = hand("masking") | fitted_words(world, 0)
        shown = {"linear": "tab:gray", "cosine": "black", "sine": "tab:purple",
                 "path": "tab:blue", "unmasking": "tab:green"}  # fmt: skip
        for key, color in shown.items():
            found = [world.divergence(grids[key](n)) for n in STEPS]
            axis.plot(STEPS, found, marker=".", c=color, label=key)
        axis.set(xscale="log", yscale="log", title=f"{name}: KL, nats", xlabel="steps")
        axis.set_xticks(STEPS, STEPS)
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(folder / "adaptive-schedules-masks.png", dpi=70)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/methods"))
    place = parser.parse_args().folder
    torch.set_num_threads(1)
    lines(place)
    words(place)
