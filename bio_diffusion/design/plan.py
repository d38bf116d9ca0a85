"""What a run of the command designs: settings read and checked, before any work.

A plan is made from plain settings, whose names are those of the flags; `config.yaml` holds them, so
that a run can be repeated by `--job config.yaml`.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bio_diffusion.config import merge
from bio_diffusion.design import motifs
from bio_diffusion.design.constraints import guides
from bio_diffusion.design.language import Language
from bio_diffusion.design.properties import WHOLE, Objective, Oracle, check_together, known_names
from bio_diffusion.design.rules import GC, IUPAC, Constraint, MaxRun, Sites
from bio_diffusion.design.scaffold import Scaffold
from bio_diffusion.diffusion.categorical import Autoregressive
from bio_diffusion.diffusion.process import Guidance
from bio_diffusion.diffusion.training import keyed_seed
from bio_diffusion.files import InputError, one_line, read_text

__all__ = ["DEFAULTS", "Plan", "Start", "settings_of"]

_SHARED: dict[str, Any] = {
    "n": 100, "objective": [], "target": [], "unique": False, "guidance": "none", "gamma": 2.0,
    "steps": 32, "schedule": "", "seed": 0, "max_draws": 20,
}  # fmt: skip

DEFAULTS: dict[str, dict[str, Any]] = {
    "dna": {
        "domain": "dna", "model": "yeast", **_SHARED, "template": "", "start": "", "avoid": [],
        "motif": [], "gc": "", "max_homopolymer": None,
    },
    "smiles": {"domain": "smiles", "model": "zinc", **_SHARED, "scaffold": ""},
}  # fmt: skip
"""Settings of each domain, by the names of the flags."""

_AT_LEAST = {"n": 1, "steps": 1, "seed": 0, "max_draws": 1}


class Model(Protocol):
    """What is asked of a `Designer`."""

    domain: str
    length: int
    tokenizer: Any
    process: Any
    labelled: Any

    @property
    def oracles(self) -> Mapping[str, Oracle]: ...

    @property
    def properties(self) -> Mapping[str, Sequence[str]]: ...

    def times(self, steps: int, schedule: str | None) -> Any: ...


@dataclass(frozen=True)
class Start:
    """One sequence to be completed, or the one empty start of a run without any.

    Attributes:
        id: Of its record; empty when there is none.
        seed: Of its draws. Each record has its own, or all would be completed in the same way.
        guides: What holds its constraints.
        language: Of DNA.
    """

    id: str
    seed: int
    guides: tuple[Guidance, ...] = ()
    language: Language | None = None


def settings_of(given: Mapping[str, Any] | argparse.Namespace) -> dict[str, Any]:
    """Whole settings from flags, or from one run of a job file.

    Raises:
        ConfigError: An unknown name or a value of another kind.
        InputError: The domain is none.
    """
    if isinstance(given, argparse.Namespace):
        flags = vars(given)
        return merge(DEFAULTS[given.domain], {k: flags.get(k) for k in DEFAULTS[given.domain]})
    domain = given.get("domain")
    if domain not in DEFAULTS:
        raise InputError("job", f"domain is {domain!r}; write domain: dna or domain: smiles")
    return merge(DEFAULTS[domain], given)


class Plan:
    """One run, checked.

    Args:
        settings: Of `settings_of`.
        model: The designer to use.

    Attributes:
        objectives: What every design must satisfy.
        targets: Property of the model -> class.
        records: Sequences of the file of starts, by id.
        starts: What to complete, one at least.
        constraints: On DNA, those that hold for every start.
        times: The grid of the sampler, from 1 to 0.
        scaffold: That every molecule keeps.
        warnings: What the user should know, a line each.

    Raises:
        InputError: Something cannot be used; one line.
    """

    def __init__(self, settings: Mapping[str, Any], model: Model) -> None:
        self.settings, self.model = settings, model
        self.domain: str = settings["domain"]
        self.warnings: list[str] = []
        self.oracles: Mapping[str, Oracle] = model.oracles
        self.scaffold: Scaffold | None = None
        self.records: dict[str, str] = {}
        self.constraints: list[Constraint] = []
        try:
            self._check()
            self.objectives = [self._objective(text) for text in settings["objective"]]
            check_together(self.objectives)
            self.targets = self._targets()
            if settings["guidance"] != "none" and not self.targets:
                known = ", ".join(model.properties) or "none"
                raise ValueError(
                    f"guidance {settings['guidance']} needs an aim: give --target or --objective "
                    f"on a property that the model knows ({known})"
                )
            self.starts = self._dna() if self.domain == "dna" else self._smiles()
        except InputError:
            raise
        except (ValueError, FileNotFoundError) as error:  # the latter: JASPAR's file
            raise InputError("setting", one_line(error, 400)) from None

    def _check(self) -> None:
        settings, model = self.settings, self.model
        if model.domain != self.domain:
            kinds = {"dna": "DNA", "smiles": "SMILES"}
            raise ValueError(
                f"the model {settings['model']} makes {kinds[model.domain]}, not "
                f"{kinds[self.domain]}: say design {model.domain} or another --model"
            )
        for name, least in _AT_LEAST.items():
            if settings[name] is None or settings[name] < least:
                raise ValueError(f"{name} is {settings[name]}; it must be {least} or more")
        if settings["guidance"] not in ("none", "cfg", "cbg"):
            raise ValueError(f"no guidance is called {settings['guidance']!r}: none, cfg or cbg")
        if not math.isfinite(settings["gamma"]) or settings["gamma"] < 0:
            raise ValueError(f"gamma is {settings['gamma']:g}; it must be 0 or more")
        if settings["guidance"] == "none" and settings["gamma"] != _SHARED["gamma"]:
            self.warnings.append("gamma changes nothing without --guidance cfg or cbg")
        if isinstance(model.process, Autoregressive) and settings["steps"] != _SHARED["steps"]:
            self.warnings.append(
                f"steps change nothing: the model {settings['model']} writes one site a step"
            )
        times = model.times(settings["steps"], settings["schedule"] or None)
        self.times: list[float] = times.tolist()

    def _objective(self, text: str) -> Objective:
        return Objective.parse(str(text), known_names(self.domain, self.oracles))

    def _targets(self) -> dict[str, int]:
        """Classes asked for by name, and those in which the objectives hold."""
        found, named = {}, set()
        for known in self.model.labelled:
            same = [objective for objective in self.objectives if objective.name == known.name]
            if same and known.edges:
                found[known.name] = _class(same, known.edges)
        for text in self.settings["target"]:
            name, place = self._target(str(text))
            if name in named:
                raise ValueError(f"target {text!r}: {name} has two targets; keep one")
            named.add(name)
            found[name] = place
        return found

    def _target(self, text: str) -> tuple[str, int]:
        """Property and class of NAME=CLASS, or of a class that one property has."""
        described = self.model.properties
        left, equals, right = text.partition("=")
        named = bool(equals) and left in described
        name, word = (left, right) if named else ("", text)
        pairs = [
            (key, place)
            for key, classes in described.items()
            if name in ("", key)
            for place, words in enumerate(classes)
            if word in (words, str(place) if name or len(described) == 1 else words)
        ]
        if len(pairs) != 1:
            hint = self._near(name, word)
            raise ValueError(f"the model {self.settings['model']} has no class {text!r}; {hint}")
        return pairs[0]

    def _near(self, name: str, word: str) -> str:
        """Classes that a word may have meant, of one property or (with "") all."""
        asked = [known for known in self.model.labelled if name in ("", known.name)]
        near = difflib.get_close_matches(word, [n for known in asked for n in known.names], 3, 0.5)
        if near:
            return f"did you mean {' or '.join(near)}?"
        there = [
            ", ".join(known.names)
            or f"{known.name}=0 to {known.name}={known.classes - 1} "
            f"({known.describe()[0]} to {known.describe()[-1]})"
            for known in asked
        ]
        return f"there are {', '.join(there)}" if there else "it was taught none"

    # --- constraints -----------------------------------------------------------------------------

    def _smiles(self) -> list[Start]:
        start = Start("", self.settings["seed"])
        if not self.settings["scaffold"]:
            return [start]
        self.scaffold = Scaffold(self.settings["scaffold"])
        guide = self.scaffold.guide(self.model.tokenizer, self.model.process)
        if guide is None:
            self.warnings.append(
                f"the scaffold {one_line(self.settings['scaffold'], 60)} is no plain structure: "
                "designs are only searched for it, which may take many draws"
            )
            return [start]
        return [replace(start, guides=(guide,))]

    def _dna(self) -> list[Start]:
        settings, held = self.settings, self.constraints
        held += [Sites(settings["template"])] if settings["template"] else []
        held += [motifs.avoid(str(word)) for word in settings["avoid"]]
        held += [motifs.contain(str(word)) for word in settings["motif"]]
        if settings["max_homopolymer"] is not None:
            held.append(MaxRun(int(settings["max_homopolymer"])))
        if settings["gc"]:
            window = _window(str(settings["gc"]))
            asked = [objective for objective in self.objectives if objective.name == "gc"]
            check_together(
                [*asked, Objective("gc", ">=", window.low), Objective("gc", "<=", window.high)]
            )
            held.append(window)
        if not settings["start"]:
            return [self._start(Start("", settings["seed"]), held)]
        self.records = read_fasta(settings["start"])
        starts = []
        for name, sequence in self.records.items():
            start = Start(name, keyed_seed(settings["seed"], name))
            try:
                starts.append(self._start(start, [*held, Sites(sequence)]))
            except ValueError as error:
                raise InputError("start", f"{settings['start']}: {name}: {error}") from None
        return starts

    def _start(self, start: Start, constraints: Sequence[Constraint]) -> Start:
        if not constraints:
            return start
        language = Language.of(constraints, self.model.length)
        if language.size < self.settings["n"]:
            about = f"{start.id}: " if start.id else ""
            self.warnings.append(
                f"{about}only {language.size} sequences satisfy all constraints, and "
                f"{self.settings['n']} designs are asked for"
            )
        return replace(start, guides=guides(language, self.model.process), language=language)


def _class(objectives: Sequence[Objective], edges: Sequence[float]) -> int:
    """The class to aim at for the objectives on one property.

    Between two bounds it is the one that holds their middle; beyond one bound the nearest that lies
    beyond it whole, else the outermost. Class k holds (edges[k-1], edges[k]].
    """
    least = [o.bounds()[0] for o in objectives if o.relation in (">=", ">", "=")]
    most = [o.bounds()[1] for o in objectives if o.relation in ("<=", "<", "=")]
    if least and most:
        middle = (max(least) + min(most)) / 2
        return sum(edge < middle for edge in edges)
    if least:
        next_value = 1.0 if objectives[0].name in WHOLE else 0.0
        above = [k for k, low in enumerate(edges, 1) if low + next_value >= max(least)]
        return above[0] if above else len(edges)
    below = [k for k, high in enumerate(edges) if high <= min(most)]
    return below[-1] if below else 0


def _window(text: str) -> GC:
    low, colon, high = text.partition(":")
    try:
        return GC(float(low), float(high))
    except ValueError as error:
        if "window" in str(error):
            raise
        raise ValueError(f"--gc {text!r} is no window: write LO:HI, such as 0.4:0.6") from None


def read_fasta(path: str) -> dict[str, str]:
    """Sequences of a FASTA file (also gzipped) by id, in upper case.

    Raises:
        InputError: It cannot be read, is empty, or holds an id twice or a letter that is no DNA.
    """
    name, found, current = one_line(path), {}, None
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        if line.startswith(">"):
            words = line[1:].split()
            if not words:
                raise InputError("fasta", f"{name}: line {number}: a record without an id")
            current = words[0]
            if current in found:
                raise InputError("fasta", f"{name}: {current}: this id occurs twice; rename one")
            found[current] = ""
        elif line and not line.startswith(";"):
            if current is None:
                raise InputError("fasta", f"{name}: line {number}: no FASTA; write >ID before it")
            wrong = sorted(set(line.upper().replace("U", "T")) - IUPAC.keys())
            if wrong:
                said = f"{wrong[0]!r} is no DNA letter; use {''.join(IUPAC)}"
                raise InputError("letter", f"{name}: {current}: {said}")
            found[current] += line.upper().replace("U", "T")
    for record, sequence in found.items():
        if not sequence:
            raise InputError("empty", f"{name}: {record}: the record has no sequence")
        if set(sequence) <= set("ACGT"):
            raise InputError(
                "start", f"{name}: {record}: nothing is left to design; write N where it may change"
            )
    if not found:
        raise InputError("empty", f"{name}: holds no record; write >ID and a sequence")
    return found
