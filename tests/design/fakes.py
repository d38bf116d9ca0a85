"""A designer without a network: every letter equally likely, or molecules of the data at random."""

import csv
import gzip
import itertools

import torch

from bio_diffusion.checkpoint import CheckpointError
from bio_diffusion.design.dataset import Property, find_data
from bio_diffusion.design.grid import grid
from bio_diffusion.design.pipeline import WEIGHTS
from bio_diffusion.design.tokenizer import DnaTokenizer, SmilesTokenizer
from bio_diffusion.diffusion.categorical import Uniform
from bio_diffusion.diffusion.sampling import sample
from bio_diffusion.diffusion.schedule import uniform
from bio_diffusion.diffusion.training import keyed_generator

LETTERS = "C 1 O 2 ( ) N = c # 3 n o [nH] 4 F 5 -".split()


def column(name, key, count):
    with gzip.open(find_data(name), "rt", newline="") as file:
        return [row[key] for row in itertools.islice(csv.DictReader(file), 2000, 2000 + count)]


class FakeDesigner:
    """What the command asks of a `Designer`; `chunk` rows are drawn at once."""

    chunk = 16
    calls: list[dict] = []

    def __init__(self, domain, length):
        self.domain, self.length, self.name = domain, length, f"fake-{domain}"
        self.sha256, self.device = "0" * 64, torch.device("cpu")
        if domain == "dna":
            self.tokenizer = DnaTokenizer(length)
            self.labelled = (
                Property("species", names=("human", "worm")),
                Property("expression", edges=(1.0, 2.0)),
            )
            self.training = [s[:length] for s in column("ecoli_promoters.csv.gz", "sequence", 60)]
        else:
            self.tokenizer = SmilesTokenizer(length, LETTERS)
            self.labelled = (Property("qed", edges=(0.4, 0.5)), Property("rings", edges=(1.0,)))
            self.training = column("qm9.csv.gz", "smiles", 300)
        self.process = Uniform(len(self.tokenizer.letters))
        self.oracles = {"activity": lambda strings: [s.count("A") / 10 for s in strings]}

    @classmethod
    def load(cls, model="zinc", device="auto"):
        known = {"yeast": ("dna", 30), "zinc": ("smiles", 24)}
        if model not in known:
            raise CheckpointError(f"no model is called {model!r}; there are yeast, zinc")
        return cls(*known[model])

    @property
    def properties(self):
        return {p.name: p.describe() for p in self.labelled}

    predictor = None
    path, curve = WEIGHTS / "yeast.safetensors", None

    def times(self, steps, schedule):
        return grid(schedule, steps, self.path, self.curve)

    def design(self, n, *, first=0, seed=0, steps=32, constraints=(), **settings):
        type(self).calls.append({"n": n, "first": first, "constraints": constraints, **settings})
        letters = self.process.letters
        for start in range(first, first + n, self.chunk):
            count = min(self.chunk, first + n - start)
            rows = [keyed_generator(seed, start + i) for i in range(count)]
            if self.domain == "smiles":  # now and then broken, a radical, or new
                places = [int(torch.randint(len(self.training), (1,), generator=g)) for g in rows]
                known = self.training
                yield [
                    "C1CC" if p % 7 == 0
                    else "[CH2]" + known[p] if p % 11 == 0
                    else known[p] + "F" * (p % 3 == 0)
                    for p in places
                ]  # fmt: skip
                continue
            x = self.process.prior(torch.zeros(count, self.length, dtype=torch.long), rows)

            def flat(x_t, t, cond):
                return torch.zeros(*x_t.shape, letters).log_softmax(-1)

            x = sample(self.process, flat, x, uniform(2), None, constraints, rows)
            yield [self.tokenizer.decode(ids) for ids in x.tolist()]
