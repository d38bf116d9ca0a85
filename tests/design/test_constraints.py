"""Constraints as maps of transitions, against enumeration and in whole samplers."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from bio_diffusion.design import constraints
from bio_diffusion.design.constraints import (
    Grammar,
    Legal,
    Template,
    draw_legal,
    guides,
    log_share,
)
from bio_diffusion.design.language import Language
from bio_diffusion.design.rules import GC, LETTERS, Avoid, Contain, MaxRun, Sites
from bio_diffusion.diffusion.categorical import Absorbing, Autoregressive, Uniform
from bio_diffusion.diffusion.sampling import sample
from bio_diffusion.diffusion.schedule import uniform as even
from bio_diffusion.diffusion.token_transitions import Categorical, Unmask

ASKED = [Avoid("GANTC"), Contain("CAT"), GC(0.3, 0.7), MaxRun(2), Sites("NNR")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(count, first=0):
    return [seeded(1000 + first + i) for i in range(count)]


def text(ids):
    return "".join(LETTERS[i] for i in ids)


def enumerated(language, log_q):
    """Every legal sequence with its exact probability under one row of `log_q`."""
    every = torch.tensor(list(itertools.product(range(4), repeat=language.length)))
    inside = torch.tensor([text(ids) in language for ids in every.tolist()])
    legal = every[inside]
    sites = torch.arange(language.length)
    weight = log_q[sites, legal].sum(-1)
    return legal, weight


def test_draws_follow_the_conditioned_law():
    language = Language.of(ASKED, 6)
    log_q = (2 * torch.randn(6, 4, generator=seeded())).log_softmax(-1).double()
    legal, weight = enumerated(language, log_q)
    share = log_share(log_q[None], language.lattice)
    assert torch.allclose(share, weight.logsumexp(0)[None], atol=1e-12)
    count = 20_000
    drawn = draw_legal(log_q.expand(count, -1, -1), language.lattice, seeded(1))
    place = {tuple(ids): i for i, ids in enumerate(legal.tolist())}
    seen = np.bincount([place[tuple(ids)] for ids in drawn.tolist()], minlength=len(legal))
    expected = count * weight.softmax(0).numpy()
    often = expected > 5
    pooled = [np.append(x[often], x[~often].sum()) for x in (seen, expected)]
    assert chisquare(*pooled).pvalue > 1e-4


def test_impossible_letters_give_way_to_the_language():
    """One-hot weights of an illegal sequence: the nearest legal ones are drawn."""
    language = Language.of([Avoid("AC"), MaxRun(3)], 6)
    wish = torch.tensor([0, 1, 2, 2, 2, 2])  # ACGGGG
    hard = torch.full((1, 6, 4), -torch.inf).scatter(-1, wish[None, :, None], 0.0)
    q = Legal(Categorical(hard.expand(50, -1, -1)), language)
    drawn = q.sample(seeded())
    every = torch.tensor(list(itertools.product(range(4), repeat=6)))
    legal = every[[text(ids) in language for ids in every.tolist()]]
    fewest = int((legal != wish).sum(-1).min())
    assert all(text(ids) in language for ids in drawn.tolist())
    assert ((drawn != wish).sum(-1) == fewest).all()


def test_rows_do_not_see_each_other_or_the_memory(monkeypatch):
    language = Language.of(ASKED, 12)
    log_q = torch.randn(7, 12, 4, generator=seeded()).log_softmax(-1).double()
    whole = draw_legal(log_q, language.lattice, rows(7))
    assert torch.equal(whole[3:5], draw_legal(log_q[3:5], language.lattice, rows(2, 3)))
    monkeypatch.setattr(constraints, "_CELLS", 1)
    assert torch.equal(whole, draw_legal(log_q, language.lattice, rows(7)))


@pytest.mark.parametrize("make", [Uniform, Absorbing, Autoregressive])
@pytest.mark.parametrize("stubborn", [False, True])
def test_every_sample_of_every_process_is_legal(make, stubborn):
    length, process = 24, make(4)
    asked = [
        Avoid("GAATTC", "EcoRI"), Avoid("GGTCTC", "BsaI"), Contain("TATAWAW"), GC(0.4, 0.5),
        MaxRun(3), Sites("ACNNNNRYNN"),
    ]  # fmt: skip
    language = Language.of(asked, length)
    favourite = torch.tensor([2, 0, 0, 3, 3, 1] * 4)  # GAATTC over and over

    def denoiser(x_t, t, cond):
        sharp = 30.0 if stubborn else 1.0
        logits = sharp * torch.nn.functional.one_hot(favourite, 4).float()
        return logits.expand(len(x_t), -1, -1).log_softmax(-1)

    def run(count):
        x = process.prior(torch.zeros(count, length, dtype=torch.long), rows(count))
        times = even(length if make is Autoregressive else 5)
        guidance = guides(language, process)
        return sample(process, denoiser, x, times, None, guidance, rows(count, 50))

    drawn = run(20)
    assert all(text(ids) in language for ids in drawn.tolist())
    assert torch.equal(run(3), drawn[:3])


def test_under_masking_as_little_as_possible_is_rewritten():
    language = Language.of([Avoid("ACG")], 6)  # CGT is the other strand
    x_t = torch.tensor([[0, 1, 2, 4, 4, 4]] * 30)
    q = Unmask(torch.zeros(30, 6, 4).log_softmax(-1), (x_t == 4).double(), x_t)
    steered = Grammar(language)(q, x_t, torch.full((30,), 0.1), torch.zeros(30), None)
    drawn = steered.sample(seeded())
    assert ((drawn[:, :3] != x_t[:, :3]).sum(-1) == 1).all()
    early = Grammar(language)(q, x_t, torch.full((30,), 0.5), torch.full((30,), 0.4), None)
    assert early is q


def test_legal_transitions_are_steerable():
    language = Language.of([MaxRun(2)], 5)
    log_q = torch.randn(4, 5, 4, generator=seeded()).log_softmax(-1)
    q = Legal(Categorical(log_q), language)
    other = Legal(Categorical(torch.zeros(4, 5, 4).log_softmax(-1)), language)
    expected = q.sample(seeded(1))
    for same in (q.mix(other, 0.0), q.tilt(torch.zeros(4, 5, 4)), q.temper(1.0), other.mix(q, 1)):
        assert torch.equal(same.sample(seeded(1)), expected)
    push = torch.zeros(4, 5, 4)
    push[:, 0, 3] = 50.0
    assert (q.tilt(push).sample(seeded(2))[:, 0] == 3).all()


def test_templates_hold_in_every_step():
    allowed = torch.zeros(2, 4, 3, dtype=torch.bool)  # two templates in turn, three letters
    allowed[0, :, :2] = True
    allowed[1, :, 2] = True
    template = Template(allowed)
    x_t = torch.zeros(5, 4, dtype=torch.long)
    times = torch.full((5,), 0.5), torch.full((5,), 0.4)
    q = template(Categorical(torch.zeros(5, 4, 3).log_softmax(-1)), x_t, *times, None)
    assert torch.allclose(q.log_q[0].exp(), torch.tensor([0.5, 0.5, 0.0]))
    assert (q.sample(seeded())[1::2] == 2).all() and (q.sample(seeded())[::2] < 2).all()
    hard = torch.full((5, 4, 3), -torch.inf)
    hard[..., 0] = 0  # the model insists on what the second template forbids
    assert (template(Categorical(hard), x_t, *times, None).sample(seeded())[1::2] == 2).all()
    masked = torch.full((5, 4), 3)
    q = template(Unmask(hard, torch.zeros(5, 4), masked), masked, *times, None)
    assert (q.sample(seeded())[1::2] == 2).all()  # written at once
    assert (q.sample(seeded())[::2] == 3).all()
    with pytest.raises(ValueError, match="no letter at site 3"):
        Template(torch.tensor([[True], [True], [False]]))
