"""Inception's features against an independent implementation, its file, and the FID."""

import hashlib

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file

from bio_diffusion.files import InputError
from bio_diffusion.image.inception import FEATURES, Inception, load_inception, load_moments
from bio_diffusion.image.metrics import Moments, frechet_distance


def closed_form(like):
    """Weights by a formula: no generator of random numbers has to stay as it is."""
    found = {}
    for number, (name, value) in enumerate(sorted(like.items())):
        if name.endswith("num_batches_tracked"):
            continue
        k = torch.arange(value.numel(), dtype=torch.float64)
        u = (torch.sin(12.9898 * k + number) * 43758.5453).remainder(1) - 0.5
        if value.dim() == 4:
            u = u * (24 / value[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            u = 1 + 0.4 * u
        else:
            u = 0.4 * u
        found[name] = u.reshape(value.shape).float()
    return found


def pictures():
    k = torch.arange(2 * 3 * 20 * 24, dtype=torch.float64)
    wave = 127.5 + 127 * torch.sin(0.002 * k * k / (1 + k / 300))
    return wave.to(torch.uint8).reshape(2, 3, 20, 24)


@pytest.fixture(scope="module")
def weights():
    with torch.device("meta"):
        like = Inception().state_dict()
    return closed_form(like)


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    """A file as it is published, with the classifier that is not needed."""
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file({**weights, "fc.weight": torch.zeros(1008, FEATURES)}, path)
    return str(path)


def test_features_are_those_of_an_independent_implementation(file):
    """The figures are pytorch-fid 0.3.0's, on torchvision 0.28, with the same weights: there the
    largest difference in 2 x 2048 features was 0."""
    network, sha256 = load_inception(file, torch.device("cpu"))
    with open(file, "rb") as raw:
        assert sha256 == hashlib.file_digest(raw, "sha256").hexdigest()
    found = network.describe(pictures(), 1)
    assert found.shape == (2, FEATURES) and found.dtype == torch.float64
    known = [
        [3.35359, 0.38658, 0.045144, 0.140925, 0.083705, 0.121524, 0.423024, 2.144127],
        [2.524491, 0.356309, 0.030988, 0.093632, 0.049377, 0.071359, 0.380497, 1.672103],
    ]
    torch.testing.assert_close(found[:, ::256], torch.tensor(known).double(), rtol=1e-3, atol=1e-4)
    assert float(found.mean()) == pytest.approx(0.854305, rel=1e-4)
    assert float(found[:, 1856:].mean()) == pytest.approx(1.033390, rel=1e-4)  # the last pool


def test_the_number_of_weights_is_the_published_one(weights):
    """Keras counts 21,768,352 without the 17,216 scales of its normalisations, which it leaves out;
    torchvision's names make it 94 convolutions."""
    learned = {name: w for name, w in weights.items() if not name.split(".")[-1].startswith("run")}
    assert sum(w.numel() for w in learned.values()) == 21_768_352 + 17_216
    assert sum(name.endswith("conv.weight") for name in weights) == 94
    shapes = {
        "Conv2d_4a_3x3.conv.weight": (192, 80, 3, 3),
        "Mixed_5d.branch3x3dbl_2.conv.weight": (96, 64, 3, 3),
        "Mixed_6a.branch3x3dbl_3.bn.running_var": (96,),
        "Mixed_6c.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    }
    assert {name: tuple(weights[name].shape) for name in shapes} == shapes


def test_grey_pictures_enter_as_colour(file):
    network, _ = load_inception(file, torch.device("cpu"))
    grey = pictures()[:1, :1]
    assert torch.equal(network.describe(grey), network.describe(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pth_of_either_age_is_read(weights, tmp_path, zipped):
    path = tmp_path / "w.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    network, _ = load_inception(str(path), torch.device("cpu"))
    name = "Mixed_7b.branch3x3_2a.bn.running_mean"
    assert torch.equal(network.state_dict()[name], weights[name])


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


def test_files_that_are_not_its_weights_are_refused(weights, tmp_path, capsys):
    lacking = {k: v for k, v in weights.items() if k != "Mixed_6e.branch_pool.bn.bias"}
    first = "Conv2d_1a_3x3.conv.weight"
    cases = {
        "other.pth": ({"a": torch.zeros(2)}, "Conv2d_1a_3x3.conv.weight is missing"),
        "lacking.pth": (lacking, "Mixed_6e.branch_pool.bn.bias is missing"),
        "shape.pth": ({**weights, first: torch.zeros(32, 1, 3, 3)}, "has another shape"),
        "vision.pth": ({**weights, "fc.weight": torch.zeros(1000, FEATURES)}, "of 1000 classes"),
        "nan.pth": ({**weights, first: weights[first] * torch.nan}, "not finite"),
        "list.pth": ([1, 2], "no named tensors"),
        "harmful.pth": (Harmful(), "no readable weights"),
    }
    for name, (saved, said) in cases.items():
        torch.save(saved, tmp_path / name)
        with pytest.raises(InputError, match=said):
            load_inception(str(tmp_path / name), torch.device("cpu"))
        (tmp_path / name).unlink()
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(InputError, match="no readable weights"):
            load_inception(str(tmp_path / name), torch.device("cpu"))
    with pytest.raises(InputError, match="no such file"):
        load_inception(str(tmp_path / "none.pth"), torch.device("cpu"))
    assert "run" not in capsys.readouterr().out


def test_statistics_are_read_and_bad_ones_refused(tmp_path):
    path = str(tmp_path / "s.npz")
    mean, cov = np.arange(3.0), np.diag([1.0, 2.0, 0.0])
    np.savez(path, mu=mean, sigma=cov)
    found = load_moments(path, 3)
    assert found.mean.tolist() == [0, 1, 2] and found.cov.dtype == torch.float64
    for given, said in (
        ({"mu": mean}, "holds no statistics"),
        ({"mu": mean, "sigma": cov[:2]}, "give an .npz with mu and sigma"),
        ({"mu": mean * np.nan, "sigma": cov}, "not finite"),
        ({"mu": mean, "sigma": -cov}, "no covariance"),
        ({"mu": mean, "sigma": np.triu(np.ones((3, 3)))}, "no covariance"),
    ):
        np.savez(path, **given)
        with pytest.raises(InputError, match=said):
            load_moments(path, 3)


def test_the_distance_takes_a_set_or_its_moments():
    """Of covariances that commute it is sum (sqrt a - sqrt b)^2 over the axes."""
    generator = torch.Generator().manual_seed(0)
    for size in (50, 3):  # more pictures than features, and fewer
        a, b = (torch.randn(size, 4, generator=generator) for _ in range(2))
        for given in (Moments.of(a), a):
            far = frechet_distance(given, Moments.of(b))
            product = scipy.linalg.sqrtm(np.cov(a.double().T) @ np.cov(b.double().T))
            known = (a.double().mean(0) - b.double().mean(0)).square().sum()
            known = known + np.cov(a.T).trace() + np.cov(b.T).trace() - 2 * product.trace().real
            assert far == pytest.approx(float(known), abs=1e-5)
    one = Moments(torch.zeros(2).double(), torch.diag(torch.tensor([4.0, 0.0])).double())
    two = Moments(torch.ones(2).double(), torch.diag(torch.tensor([1.0, 9.0])).double())
    assert frechet_distance(one, two) == pytest.approx(2 + 1 + 9)
