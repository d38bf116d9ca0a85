import pytest
import torch

from bio_diffusion.design.backbone import Sequences
from bio_diffusion.design.model import Continued, Generator, Predictor

SMALL = {"width": 16, "depth": 2, "heads": 2}
KINDS = [{"kind": "attention", **SMALL}, {"kind": "convolution", **SMALL, "kernel": 3}]


def awake(module: torch.nn.Module) -> torch.nn.Module:
    """Gates and heads start at zero: give every weight some value, so that all parts act."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize("kind", KINDS, ids=["attention", "convolution"])
def test_one_hots_are_letters(kind):
    net = awake(Predictor(4, [3, 2], kind))
    x, t = torch.randint(5, (6, 10)), torch.rand(6)
    one_hot = torch.nn.functional.one_hot(x, 5).float()
    for a, b in zip(net(x, t), net(one_hot, t), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(a.exp().sum(-1), torch.ones(6), atol=1e-5)


def test_a_causal_network_sees_the_past_alone():
    net = awake(Generator("autoregressive", 5, [2], {"kind": "attention", **SMALL}))
    x, t, cond = torch.randint(5, (3, 8)), torch.zeros(3), torch.zeros(3, 1, dtype=torch.long)
    changed = x.clone()
    changed[:, 4] = (x[:, 4] + 1) % 5
    before, after = net(x, t, cond), net(changed, t, cond)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert (before[:, 5:] - after[:, 5:]).abs().amax() > 1e-3


def test_going_on_from_what_was_read_changes_nothing():
    net = awake(Generator("autoregressive", 5, [2], {"kind": "attention", **SMALL}))
    net.body.requires_grad_(False), net.head.requires_grad_(False)
    continued, whole = Continued(net), torch.randint(5, (3, 8))
    t, told = torch.zeros(3), torch.zeros(3, 1, dtype=torch.long)
    calls = [(0, whole, told), (1, whole, told), (4, whole, told), (4, whole, told + 1)]
    calls += [
        (5, whole, told + 1),
        (6, whole.flip(0), told + 1),
        (2, whole, told),
        (7, whole, None),
    ]
    read = []
    net.body.layers[0].register_forward_hook(lambda _m, given, _out: read.append(given[0].shape[1]))
    for written, x, cond in calls:
        x_t = x.clone()
        x_t[:, written:] = net.process.mask
        assert torch.allclose(continued(x_t, t, cond), net(x_t, t, cond), atol=1e-5)
    assert read[::2] == [1, 1, 3, 5, 1, 7, 3, 8]  # only what is new, or all anew


def test_every_site_sees_every_other_without_causality():
    net = awake(Sequences(5, (), **SMALL))
    x = torch.randint(5, (1, 8))
    changed = x.clone()
    changed[:, 0] = (x[:, 0] + 1) % 5
    t = torch.zeros(1)
    assert ((net(x, t) - net(changed, t)).abs().amax(-1) > 1e-5).all()


def test_time_and_labels_matter_where_they_should():
    x, cond = torch.randint(5, (2, 8)), torch.zeros(2, 1, dtype=torch.long)
    times = torch.tensor([0.1, 0.1]), torch.tensor([0.9, 0.9])
    for process, told in (("uniform", True), ("absorbing", False), ("autoregressive", False)):
        net = awake(Generator(process, 5, [2], {"kind": "attention", **SMALL}))
        apart = (net(x, times[0], cond) - net(x, times[1], cond)).abs().amax() > 1e-4
        assert bool(apart) == told
        assert (net(x, times[0], cond) - net(x, times[0], cond + 1)).abs().amax() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"kind": "attention", "width": 10, "heads": 4}, "multiple"),
        ({"kind": "recurrent"}, "recurrent"),
        ({"kind": "convolution", "causal": True}, "causal"),
    ],
)
def test_impossible_networks_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Sequences(4, (), **arguments)
