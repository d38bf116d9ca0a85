"""Denoising loss as a measure of how likely a state is."""

import pytest
import torch

from bio_diffusion.diffusion.likelihood import denoising_loss
from bio_diffusion.diffusion.product import R3, ProductDiffusion


class Point:
    """B points in the plane that move by translation."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def tangent_shapes(self) -> dict[str, tuple[int, int]]:
        return {"tr": (len(self.x), 2)}

    def moved(self, tangent: dict[str, torch.Tensor]) -> "Point":
        return Point(self.x + tangent["tr"])


PROCESS = ProductDiffusion({"tr": (R3(), 0.05, 5.0, 1.0)})
WIDTH = 0.5


def gaussian_score(x_t: Point, t: torch.Tensor, cond: None) -> dict[str, torch.Tensor]:
    """The exact score of data N(0, WIDTH^2 I) under the noise of PROCESS."""
    variance = WIDTH**2 + PROCESS.sigma(t)["tr"][:, None] ** 2
    return {"tr": (-x_t.x / variance).float()}


TIMES = torch.linspace(0.1, 0.9, 17).repeat(4)


def test_loss_falls_with_the_log_density() -> None:
    """For Gaussian data E[loss] at x_0 is a + b |x_0|^2, b > 0: as -log p, and in its order."""
    radius = torch.tensor([0.0, 0.3, 0.6, 1.0, 1.5])
    angle = torch.linspace(0, 2 * torch.pi, 25)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    loss = torch.stack(
        [denoising_loss(PROCESS, gaussian_score, Point(r * circle), TIMES).mean() for r in radius]
    )
    assert (loss[1:] > loss[:-1]).all()
    # the mean over the circle removes the cross term with the common noise, so the law is exact
    slope = (loss[1:] - loss[0]) / radius[1:] ** 2
    torch.testing.assert_close(slope, slope[:1].expand(4), rtol=1e-4, atol=0)


def test_equal_states_get_equal_losses() -> None:
    loss = denoising_loss(PROCESS, gaussian_score, Point(torch.ones(4, 2)), TIMES)
    assert torch.equal(loss, loss[:1].expand(4))


def test_the_seed_decides() -> None:
    x = Point(torch.ones(1, 2))
    first, again, other = (
        denoising_loss(PROCESS, gaussian_score, x, TIMES, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_no_times_is_an_error() -> None:
    with pytest.raises(ValueError, match="times is empty"):
        denoising_loss(PROCESS, gaussian_score, Point(torch.ones(1, 2)), torch.zeros(0))
