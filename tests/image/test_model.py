"""The U-Net, its processes and latents: shapes, laws and what each part can see."""

import math

import pytest
import torch

from bio_diffusion import checkpoint
from bio_diffusion.diffusion.latents import Latents
from bio_diffusion.diffusion.training import keyed_generator
from bio_diffusion.image.metrics import frechet_distance
from bio_diffusion.image.model import MULTIVARIATE, PROCESSES, ImageModel, truncated_logistic
from bio_diffusion.image.pipeline import ImageSampler
from bio_diffusion.image.unet import UNet

SMALL = {"widths": [8, 16], "blocks": 1, "attention": [1], "patch": 2, "heads": 2, "embedding": 16}
LATENTS = {"latents": 4, "codes": 3, "features": 8, "depth": 1, "heads": 2}


def noisy(module, seed=0):
    """The module with weights that say something, also where it begins silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


@pytest.mark.parametrize(
    ("least", "size"),
    [
        (0.4e6, {"widths": [32, 64], "blocks": 1, "patch": 2}),
        (0.8e6, {"widths": [48, 96], "blocks": 1, "patch": 2}),
        (48e6, {"widths": [128, 256, 256, 256], "blocks": 4, "embedding": 512}),
        (58e6, {"widths": [128, 256, 256, 384], "blocks": 4, "embedding": 512}),
    ],
)
def test_sizes_go_from_one_to_sixty_million_weights(least, size):
    with torch.device("meta"):
        count = sum(p.numel() for p in UNet(3, 3, **size).parameters())
    assert least < count < 1.8 * least


@pytest.mark.parametrize("side", [28, 30, 32])
def test_any_size_that_divides_into_patches(side):
    net = noisy(UNet(3, 3, **SMALL))
    assert net(torch.randn(2, 3, side, side), torch.rand(2)).shape == (2, 3, side, side)


def test_the_noise_level_and_every_pixel_are_heard():
    net = noisy(UNet(1, 1, **SMALL))
    x, noise = torch.randn(1, 1, 12, 12, requires_grad=True), torch.tensor([0.3])
    y = net(x, noise)
    y[0, 0, 0, 0].backward()
    assert bool((x.grad.abs() > 0).all())  # attention reaches the far corner
    assert not torch.allclose(net(x, noise + 0.5), y)


@pytest.mark.parametrize("hierarchical", [False, True])
def test_latents_are_heard_unless_hidden(hierarchical):
    net = noisy(UNet(1, 1, **SMALL, latents=4, codes=3, hierarchical=hierarchical))
    x, noise = torch.randn(1, 1, 12, 12).expand(2, -1, -1, -1), torch.full((2,), 0.3)
    z = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 0], [0, 1, 2, 1]]), 3).float()
    shown = net(x, noise, Latents(z, torch.tensor([False, False])))
    assert not torch.allclose(shown[0], shown[1])
    hidden = net(x, noise, Latents(z, torch.tensor([True, True])))
    torch.testing.assert_close(hidden[0], hidden[1])
    torch.testing.assert_close(net(x, noise), hidden)  # no latents at all are hidden ones


def test_group_g_enters_at_level_g_only():
    """With the groups' cross-attention on the way up alone, the middle never sees a latent."""
    net = noisy(UNet(1, 1, **SMALL, latents=4, codes=3, hierarchical=True))
    seen = {}
    net.middle.register_forward_hook(lambda *_: seen.update(middle=_[2]))
    net.up[0].register_forward_hook(lambda *_: seen.update(coarse=_[2]))
    x, noise = torch.randn(1, 1, 12, 12), torch.full((1,), 0.3)

    def run(codes):
        z = torch.nn.functional.one_hot(torch.tensor([codes]), 3).float()
        net.codes.mixed = torch.nn.Identity()  # keep the groups apart before the U-Net
        out = net(x, noise, Latents(z, torch.tensor([False])))
        return seen["middle"].clone(), seen["coarse"].clone(), out

    base, layout, texture = run([0, 0, 0, 0]), run([1, 1, 0, 0]), run([0, 0, 1, 1])
    assert torch.equal(base[0], layout[0]) and torch.equal(base[0], texture[0])
    assert not torch.allclose(base[1], layout[1]) and torch.equal(base[1], texture[1])
    assert not torch.allclose(base[2], texture[2])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"attention": [2]}, "level 2"),
        ({"widths": [9, 16]}, "heads"),
        ({"latents": 3, "codes": 2, "hierarchical": True}, "3 latents do not split into 2"),
        ({"latents": 2, "codes": 1}, "two codes"),
    ],
)
def test_what_does_not_fit_is_said(wrong, said):
    with pytest.raises(ValueError, match=said):
        UNet(1, 1, **{**SMALL, **wrong})


def test_a_network_made_double_works_in_double():
    model = noisy(ImageModel([1, 8, 8], network=SMALL, latents=LATENTS)).eval()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.8])
    cond = Latents(torch.eye(3)[torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])], torch.zeros(2).bool())
    with torch.no_grad():
        single = model.denoiser(x, t, cond)
        double = model.double().denoiser(x.double(), t, cond._replace(z=cond.z.double()))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-5)


def test_patches_must_divide_the_picture():
    with pytest.raises(ValueError, match="27 x 28"):
        ImageModel((1, 27, 28), network=SMALL)


@pytest.mark.parametrize("letters", [2, 16, 256])
def test_the_logistic_head_is_the_binned_law(letters):
    """Against bins of the logistic distribution function in float64."""
    location, width = torch.randn(3, 5), 2 * torch.randn(3, 5)
    log_p = truncated_logistic(location, width, letters)
    mean, scale = torch.tanh(location.double()), (width.double() - 2).clamp(-6, 6).exp()
    edges = torch.linspace(-1, 1, letters + 1, dtype=torch.float64)
    below = torch.sigmoid((edges - mean[..., None]) / scale[..., None])
    p = below.diff(dim=-1)
    p = p / p.sum(-1, keepdim=True)
    torch.testing.assert_close(log_p.double().exp(), p, atol=2e-5, rtol=2e-3)
    assert torch.isfinite(log_p).all()


def test_a_sharp_logistic_stays_finite_and_has_gradients():
    location = torch.tensor([[-30.0, 0.0, 30.0]], requires_grad=True)
    width = torch.tensor([[-50.0, 50.0, -50.0]], requires_grad=True)
    log_p = truncated_logistic(location, width, 16)
    assert torch.isfinite(log_p).all() and int(log_p[0, 0].argmax()) == 0
    log_p[..., 3].sum().backward()
    assert torch.isfinite(location.grad).all() and torch.isfinite(width.grad).all()


def test_a_softmax_gives_each_site_its_own_levels():
    model = ImageModel((3, 4, 4), "uniform", 5, SMALL, head="softmax")
    out = torch.randn(2, 15, 4, 4)  # V C channels
    model.denoiser.network.forward = lambda *_: out
    found = model.denoiser(model.like(2), torch.ones(2))
    wanted = out.view(2, 5, 3, 4, 4).log_softmax(1)
    assert found.shape == (2, 48, 5)
    assert torch.allclose(found[1, 16 + 4 * 2 + 3], wanted[1, :, 1, 2, 3])
    with pytest.raises(ValueError, match="no head is called 'bald'"):
        ImageModel((3, 4, 4), "uniform", 5, SMALL, head="bald")


@pytest.mark.parametrize(
    "process, head",
    [
        *((name, "logistic") for name in PROCESSES if name != "linear"),
        ("uniform", "softmax"),
        ("absorbing", "softmax"),
    ],
)
@pytest.mark.parametrize("latents", [None, LATENTS])
def test_every_process_learns_and_steps(process, head, latents):
    model = noisy(ImageModel((3, 8, 8), process, 16, SMALL, latents, head=head))
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    x_0, t = model.state(pixels), torch.tensor([0.3, 0.7])
    cond = None
    if latents:
        z = model.encoder(pixels.float() / 127.5 - 1).softmax(-1)
        cond = Latents(z, torch.tensor([False, True]))
    noised = model.process.perturb(x_0, t)
    loss = model.process.loss(model.denoiser(noised.x_t, t, cond), noised, x_0, t)
    loss.sum().backward()
    assert loss.shape == (2,) and torch.isfinite(loss).all()
    assert all(p.grad is not None for n, p in model.named_parameters() if "null" not in n)
    q = model.process.transition(noised.x_t, model.denoiser(noised.x_t, t, cond), t, t / 2)
    assert q.sample().shape == x_0.shape


def test_pixels_come_back_from_their_state():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    gaussian = ImageModel((1, 16, 16), network=SMALL)
    assert torch.equal(gaussian.pixels(gaussian.state(pixels)), pixels)
    tokens = ImageModel((1, 16, 16), "uniform", 16, SMALL)
    greys = tokens.pixels(tokens.state(pixels))
    assert len(greys.unique()) == 16 and int(greys.min()) == 0 and int(greys.max()) == 255
    assert torch.equal(tokens.pixels(tokens.state(greys)), greys)
    lifted = ImageModel((1, 16, 16), "cld", network=SMALL)
    state = lifted.state(pixels, keyed_generator(0))
    assert state.shape == (1, 2, 1, 16, 16) and torch.equal(lifted.pixels(state), pixels)
    assert not torch.equal(lifted.state(pixels, keyed_generator(1)), state)


@pytest.mark.parametrize("process", MULTIVARIATE)
def test_a_multivariate_bound_is_that_of_the_law_it_starts_from(process, tmp_path):
    """F = 0 is exact for N(0, c^2) in [-1, 1], so the bound is that density's, less its cells."""
    model = ImageModel((1, 8, 8), process, network=SMALL)
    for parameter in model.denoiser.network.parameters():
        parameter.data.zero_()
    given = {"data": "none", "shape": [1, 8, 8], "process": process, "network": SMALL}
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint("image", {"experiment": given}, model.state_dict()))
    source = keyed_generator(0)
    pixels = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=source)
    found = ImageSampler.load(str(path), "cpu").bits_per_dim(pixels, 16)
    x = (pixels.double() + 0.5) / 128 - 1
    log_p = -0.5 * (x.square() + math.log(2 * math.pi))
    exact = -(log_p.mean() - math.log(128)) / math.log(2)
    assert abs(float(found.mean() - exact)) < 0.1


def test_training_noise_has_the_law_asked_for():
    model = ImageModel((1, 8, 8), network=SMALL)
    t = model.times_of(-1.2, 1.2)((torch.arange(2000) + 0.5) / 2000)
    log_sigma = model.process.sigma(t).log()
    assert abs(float(log_sigma.mean()) + 1.2) < 0.01 and abs(float(log_sigma.std()) - 1.2) < 0.01
    assert ImageModel((1, 8, 8), "uniform", 4, SMALL).times_of(0, 1) is None
    cld = ImageModel((1, 8, 8), "cld", network=SMALL)
    assert cld.times_of(0, 1) == cld.process.quantile


def test_frechet_distance_of_gaussians_is_the_formula():
    """|m|^2 + sum (a - b)^2 for axis-parallel Gaussians of widths a and b (Dowson & Landau)."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    a = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(a.T)), (a - a.mean(0)).T, upper=False
    ).T  # whitened: mean 0, covariance 1, exactly
    widths, shift = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([0.5, 0.0, 1.0]).double()
    wanted = float(shift.square().sum() + (1 - widths).square().sum())
    assert math.isclose(frechet_distance(a, a * widths + shift), wanted, rel_tol=1e-9)
    assert abs(frechet_distance(a, a.flip(0))) < 1e-9
    with pytest.raises(ValueError, match="two pictures"):
        frechet_distance(a[:1], a)


def test_a_process_of_ones_own_matrices():
    recipe = {"Q": [[0, -1], [1, 0]], "D": [[0, 0], [0, 2]], "S": [1, 1]}
    mine = ImageModel((1, 8, 8), "linear", network=SMALL, recipe=recipe).process
    known = ImageModel((1, 8, 8), "cld", network=SMALL).process
    assert all(torch.equal(a, b) for a, b in zip(mine.recipe, known.recipe, strict=True))
    for bad, said in (
        (None, "wants recipe"),
        ({**recipe, "Q": [[0, 1], [1, 0]]}, "Q is not skew-symmetric"),
        ({**recipe, "D": [[0, 0], [0, 0]]}, "does not mix: eigenvalue"),
        ({**recipe, "D": [["a", 0], [0, 0]]}, "no matrices of numbers"),
        ({**recipe, "D": [[1], [0, 1]]}, "no matrices of numbers"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            ImageModel((1, 8, 8), "linear", network=SMALL, recipe=bad)
        assert "\n" not in str(error.value)
