"""What a subset is: kinds, settings, parts with their hashes, and what makes one unusable."""

import hashlib
from dataclasses import dataclass

import numpy as np

from qualitygate.errors import ConfigurationError
from qualitygate.training.pool import Integers, Pool

HIGH, ALL, VARYING = "high", "all", "varying"
RANDOM, BALANCED, FULL = "random", "balanced", "full"
KINDS = (HIGH, ALL, VARYING)
CONTROLS = (RANDOM, BALANCED, FULL)
LEVELLED = (VARYING, RANDOM)
LEVELS = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)
# The test sets of a repetition, all from the same held-out groups.
TESTS = ("high", "all", "rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How subsets are drawn.

    kinds: of KINDS and CONTROLS. removed: levels of `varying` and `random`, percent in [0, 100); `random` has no
        level 0, where nothing is removed.
    train_images: training photographs of each draw; None: all that the high-quality set leaves.
    test_fraction: share of the high-quality and of the rejected photographs held out for tests.
    eval_fraction: share of each run's draw that evaluates it.
    strict_size: refuse, rather than shrink, where there are fewer photographs than asked for.
    resample: "split+seed" draws anew for each repetition; "seed" draws once, as the paper seems to.
    """

    kinds: tuple[str, ...] = (*KINDS, *CONTROLS)
    removed: tuple[float, ...] = LEVELS
    train_images: int | None = None
    test_fraction: float = 0.1
    eval_fraction: float = 0.1
    strict_size: bool = False
    resample: str = "split+seed"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of the pool, sorted, and the SHA-256 of their ids, groups, labels and, where known, contents."""

    rows: Integers
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """What a run trains and evaluates on. removed: percent; 0 for kinds without levels."""

    kind: str
    removed: float
    repetition: int
    train: Part
    evaluation: Part

    @property
    def name(self) -> str:
        return subset_name(self.kind, self.removed, self.repetition)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """All subsets of one repetition and its test sets by name; they share no group with any of the subsets."""

    number: int
    subsets: tuple[Subset, ...]
    tests: dict[str, Part]
    messages: tuple[str, ...]


def subset_name(kind: str, removed: float, repetition: int) -> str:
    """Such as `varying-30-2`."""
    return f"{kind}-{removed:g}-{repetition}"


def part_of(pool: Pool, rows: Integers) -> Part:
    """Rows with the hash of what they hold."""
    digest = hashlib.sha256()
    for row in rows:
        fields = (pool.image_id[row], pool.group[row], pool.classes[pool.label[row]], pool.content[row])
        digest.update("\x1f".join(str(field) for field in fields).encode() + b"\x1e")
    return Part(rows=rows, sha256=digest.hexdigest())


def check(sampling: Sampling) -> None:
    """Refuse settings that can't be meant, in one line."""
    unknown = sorted(set(sampling.kinds) - {*KINDS, *CONTROLS})
    if unknown or not sampling.kinds:
        wrong = f"unknown {', '.join(map(repr, unknown))}" if unknown else "none"
        raise ConfigurationError(f"kinds: {wrong}; choose from {', '.join((*KINDS, *CONTROLS))}")
    if any(not 0 <= level < 100 for level in sampling.removed) or len(set(sampling.removed)) < len(sampling.removed):
        levels = ", ".join(f"{level:g}" for level in sampling.removed)
        raise ConfigurationError(f"removed: {levels}; give different percentages of at least 0 and below 100")
    if set(sampling.kinds) & set(LEVELLED) and not sampling.removed:
        raise ConfigurationError("removed is empty; give percentages such as 0,30, or leave out the kind varying")
    for name in ("test_fraction", "eval_fraction"):
        if not 0 < getattr(sampling, name) <= 0.5:
            raise ConfigurationError(f"{name}: {getattr(sampling, name):g}; give a share above 0 and up to .5")
    if sampling.train_images is not None and sampling.train_images < 2:
        raise ConfigurationError(f"train_images: {sampling.train_images}; give 2 at least")
    if sampling.resample not in ("split+seed", "seed"):
        raise ConfigurationError(f"resample: {sampling.resample!r}; choose split+seed or seed")


# ---- what is refused ---------------------------------------------------------------------------------------


def check_disjoint(pool: Pool, subset: Subset, tests: dict[str, Part]) -> None:
    """Refuse photographs or groups on two sides: of training, evaluation and the test sets."""
    sides = {"training": subset.train, "evaluation": subset.evaluation, "the test sets": tests["all"]}
    named = list(sides.items())
    for place, (name, part) in enumerate(named):
        for other, against in named[place + 1 :]:
            units = np.intersect1d(pool.unit[part.rows], pool.unit[against.rows])
            if len(units):
                rows = part.rows[np.isin(pool.unit[part.rows], units)]
                raise ConfigurationError(
                    f"subset {subset.name}: {len(units):,} groups with {len(rows):,} photographs of {name} are in "
                    f"{other} too (such as group {pool.group[rows[0]]!r}); remove the folder subsets and draw again"
                )


def check_classes(pool: Pool, subset: Subset) -> list[str]:
    """Refuse a training or evaluation set that is empty or has a single class; returns which classes are absent."""
    messages = []
    for what, part in (("training", subset.train), ("evaluation", subset.evaluation)):
        counts = pool.counts(part.rows)
        present = [name for name, count in counts.items() if count]
        if len(present) < 2:
            kind = "is empty" if not present else f"has a single class ({said(counts)})"
            raise ConfigurationError(
                f"subset {subset.name}: its {what} set {kind}; draw more photographs (--train-images), remove fewer "
                "(--removed), or add groups of each class"
            )
        if len(present) < len(counts):
            absent = ", ".join(repr(name) for name, count in counts.items() if not count)
            messages.append(f"subset {subset.name}: no {what} photograph of {absent}")
    return messages


def said(counts: dict[str, int]) -> str:
    """Counts by class, for messages."""
    return ", ".join(f"{count:,} of {name!r}" for name, count in counts.items())
