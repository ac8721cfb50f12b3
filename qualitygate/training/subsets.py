"""Which photographs each run trains, evaluates and is tested on (paper, sections 3.2 and 3.3, and the controls).

A repetition first holds out test groups, whole: their photographs are in no draw, of no kind. All draws come from the
pool, which is the rest. Kinds:

high      photographs that pass the gate
all       as many at random, whatever their quality: this is also random removal at equal size
varying   at each level a larger random base, of which the lowest percentage by quality is removed
random    control of `varying`: the same base, the same percentage removed at random
balanced  control of `high`: at random, with its number of photographs of each class
full      control: the whole pool, unfiltered, of whatever size

Sizes count training photographs; evaluation photographs are a tenth of the draw and come on top of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qualitygate.errors import ConfigurationError
from qualitygate.training.pool import Integers, Pool
from qualitygate.training.sampling import (
    ALL,
    BALANCED,
    FULL,
    HIGH,
    LEVELLED,
    RANDOM,
    TESTS,
    VARYING,
    Part,
    Repetition,
    Sampling,
    Subset,
    check,
    check_classes,
    check_disjoint,
    part_of,
    said,
)
from qualitygate.training.splits import generator, random_part, set_aside

# Test, evaluation and training each need a group of every class.
_FEWEST_GROUPS = 3


def draw(pool: Pool, sampling: Sampling, repetition: int) -> Repetition:
    """The subsets and test sets of a repetition; they follow from the seed and the repetition's number alone.

    All draws of `high` and `all` train on equally many photographs, and so do all levels of `varying` and `random`;
    where the pool is too small they shrink together and a message says so.

    Raises ConfigurationError, in one line with counts and the remedy: too few groups of a class, a subset that is
    empty or of one class, with `strict_size` fewer photographs than asked for.
    """
    check(sampling)
    stream = repetition if sampling.resample == "split+seed" else 0
    drawing = _Drawing(pool=pool, sampling=sampling, stream=stream, messages=[])
    tests, outside = drawing.hold_out()
    drawn = drawing.all_kinds(outside)
    subsets = tuple(
        Subset(
            kind=kind,
            removed=removed,
            repetition=repetition,
            train=part_of(pool, train),
            evaluation=part_of(pool, evaluation),
        )
        for (kind, removed), (train, evaluation) in drawn.items()
    )
    for subset in subsets:
        drawing.messages.extend(check_classes(pool, subset))
        check_disjoint(pool, subset, tests)
    return Repetition(number=repetition, subsets=subsets, tests=tests, messages=tuple(drawing.messages))


# ---- drawing -----------------------------------------------------------------------------------------------

Divided = tuple[Integers, Integers]  # rows to train on, rows to evaluate on


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    pool: Pool
    sampling: Sampling
    stream: int
    messages: list[str]

    def random(self, *purpose: str) -> np.random.Generator:
        return generator(self.sampling.seed, self.stream, *purpose)

    def hold_out(self) -> tuple[dict[str, Part], Integers]:
        """The test sets, and the rows of all other groups.

        Groups are chosen by their photographs that pass; their rejected ones come along. Where these are fewer than a
        tenth of the rejected, groups without any that passes are added.
        """
        pool, share = self.pool, self.sampling.test_fraction
        everything = np.arange(len(pool.label))
        high = np.flatnonzero(pool.passed)
        self._check_groups(high)
        chosen = set_aside(pool, high, share * len(high), self.random("test"), leave=2)
        held = np.isin(pool.unit, pool.unit[chosen])
        rejected = np.flatnonzero(~pool.passed)
        lacking = share * len(rejected) - np.count_nonzero(held & ~pool.passed)
        only_rejected = np.flatnonzero(~np.isin(pool.unit, pool.unit[high]))
        more = set_aside(pool, only_rejected, max(0.0, lacking), self.random("test", "rejected"), least=0, leave=0)
        held |= np.isin(pool.unit, pool.unit[more])
        rows = everything[held]
        sets = dict(zip(TESTS, (rows[pool.passed[rows]], rows, rows[~pool.passed[rows]]), strict=True))
        if np.count_nonzero(np.bincount(pool.label[sets["high"]], minlength=len(pool.classes))) < 2:
            raise ConfigurationError(
                f"the high-quality test set has a single class ({said(pool.counts(sets['high']))}): groups hold "
                "several classes or are too large; check the column group"
            )
        return {name: part_of(pool, found) for name, found in sets.items()}, everything[~held]

    def _check_groups(self, high: Integers) -> None:
        pool = self.pool
        for label, name in enumerate(pool.classes):
            rows = high[pool.label[high] == label]
            groups = len(np.unique(pool.unit[rows]))
            if groups < _FEWEST_GROUPS:
                total = int(np.count_nonzero(pool.label == label))
                raise ConfigurationError(
                    f"label {name!r}: {len(rows):,} of {total:,} photographs pass the gate, in {groups} groups; "
                    f"test, evaluation and training need {_FEWEST_GROUPS} groups at least: add photographs or leave "
                    "this label out"
                )

    def all_kinds(self, outside: Integers) -> dict[tuple[str, float], Divided]:
        sampling, drawn = self.sampling, dict[tuple[str, float], Divided]()
        high = self.high(outside)
        order = self.random(ALL).permutation(outside)
        everything = self.drawn(order, len(high[0]), ALL)
        count = min(len(high[0]), len(everything[0]))
        self._say_high(count)
        high, everything = self.cut(high, count, HIGH), self.cut(everything, count, ALL)
        if HIGH in sampling.kinds:
            drawn[HIGH, 0.0] = high
        if ALL in sampling.kinds:
            drawn[ALL, 0.0] = everything
        if BALANCED in sampling.kinds:
            drawn[BALANCED, 0.0] = self.balanced(outside, high)
        if FULL in sampling.kinds:
            drawn[FULL, 0.0] = self.divided(outside, FULL)
        if set(LEVELLED) & set(sampling.kinds):
            levels = self.levels(outside, count)
            drawn |= {found: levels[found] for found in levels if found[0] in sampling.kinds}
        return drawn

    def high(self, outside: Integers) -> Divided:
        """The high-quality set without its test photographs; at its full size 10 / 10 / 80 %, as in the paper."""
        wanted, rows = self.sampling.train_images, outside[self.pool.passed[outside]]
        if wanted is None or math.ceil(wanted / (1 - self.sampling.eval_fraction)) >= len(rows):
            target = self.sampling.eval_fraction * np.count_nonzero(self.pool.passed)
            evaluation = set_aside(self.pool, rows, target, self.random(HIGH, "eval"))
            divided = np.setdiff1d(rows, evaluation), evaluation
            return divided if wanted is None else self.cut(divided, wanted, HIGH)
        return self.drawn(self.random(HIGH).permutation(rows), wanted, HIGH)

    def divided(self, rows: Integers, *purpose: str) -> Divided:
        evaluation = set_aside(self.pool, rows, self.sampling.eval_fraction * len(rows), self.random(*purpose, "eval"))
        return np.setdiff1d(rows, evaluation), evaluation

    def drawn(
        self,
        order: Integers,
        count: int,
        *purpose: str,
        removed: float = 0.0,
        keep: Callable[[Integers, int], Integers] = lambda base, _: base,
    ) -> Divided:
        """The first photographs of a random order, so many that `count` of them train after removal and evaluation.

        keep: (base, how many) -> those that are kept, sorted. Fewer than `count` where the order ends.
        """
        share = (1 - removed / 100) * (1 - self.sampling.eval_fraction)
        size = min(len(order), _ceiling(count / share))
        while True:
            kept = keep(np.sort(order[:size]), size - _rounded(size * removed / 100))
            divided = self.divided(kept, *purpose)
            short = count - len(divided[0])
            if short <= 0 or size == len(order):
                return self.cut(divided, count, *purpose)
            # Evaluation takes whole groups, also such as are larger than it needs.
            size = min(len(order), size + max(math.ceil(short / share), size // 100))

    def cut(self, divided: Divided, count: int, *purpose: str) -> Divided:
        return random_part(divided[0], count, self.random(*purpose, "cut")), divided[1]

    def levels(self, outside: Integers, count: int) -> dict[tuple[str, float], Divided]:
        """All levels, with equally many training photographs: `count`, or what the pool gives."""
        order = self.random(VARYING).permutation(outside)
        levels = {(VARYING, float(removed)) for removed in self.sampling.removed}
        varying = {level: self._level(order, count, *level) for level in sorted(levels)}
        possible = min(len(train) for train, _ in varying.values())
        if possible < count:
            varying = {level: self._level(order, possible, *level) for level in sorted(levels)}
            possible = min(len(train) for train, _ in varying.values())
            self._say_levels(count, possible, len(outside))
        found = {level: self.cut(divided, possible, *_words(*level)) for level, divided in varying.items()}
        if RANDOM in self.sampling.kinds:
            for _, removed in sorted(levels):
                if removed:
                    found[RANDOM, removed] = self._level(order, possible, RANDOM, removed)
                    if (trained := len(found[RANDOM, removed][0])) < possible:
                        self.messages.append(
                            f"random, {removed:g} %: trains on {trained:,} photographs, the same level of varying "
                            f"quality on {possible:,}: evaluation takes whole groups"
                        )
        return found

    def _level(self, order: Integers, count: int, kind: str, removed: float) -> Divided:
        def best(base: Integers, kept: int) -> Integers:
            return np.sort(base[np.argsort(self.pool.place[base])[:kept]])

        def any_of_them(base: Integers, kept: int) -> Integers:
            return random_part(base, kept, self.random(*_words(kind, removed), "removal"))

        keep = best if kind == VARYING else any_of_them
        return self.drawn(order, count, *_words(kind, removed), removed=removed, keep=keep)

    def balanced(self, outside: Integers, high: Divided) -> Divided:
        """A random draw with exactly the numbers of each class that `high` trains on, as far as there are so many."""
        pool, classes = self.pool, range(len(self.pool.classes))
        wanted = np.bincount(pool.label[high[0]], minlength=len(classes))
        order = self.random(BALANCED).permutation(outside)
        orders = [order[pool.label[order] == label] for label in classes]
        there = np.array([len(found) for found in orders])
        sizes = np.minimum(there, np.ceil(wanted / (1 - self.sampling.eval_fraction)).astype(np.int64))
        while True:
            rows = np.sort(np.concatenate([found[:size] for found, size in zip(orders, sizes, strict=True)]))
            train, evaluation = self.divided(rows, BALANCED)
            short = np.maximum(0, wanted - np.bincount(pool.label[train], minlength=len(classes)))
            if not np.any((short > 0) & (sizes < there)):
                break
            sizes = np.minimum(there, sizes + short + (short > 0) * (sizes // 100))
        if short.any():
            self.messages.append(
                f"balanced: {int(short.sum()):,} of {int(wanted.sum()):,} training photographs are lacking to match "
                "the classes of the high-quality set, which has nearly all of a class"
            )
        random = self.random(BALANCED, "cut")
        parts = [random_part(train[pool.label[train] == label], int(wanted[label]), random) for label in classes]
        return np.sort(np.concatenate(parts)), evaluation

    def _say_high(self, count: int) -> None:
        wanted = self.sampling.train_images
        if wanted is not None and count < wanted:
            self._say(
                f"the high-quality set gives {count:,} training photographs beside test and evaluation, not {wanted:,}",
                f"every subset trains on {count:,} at most",
                f"give --train-images {count}",
            )

    def _say_levels(self, wanted: int, possible: int, there: int) -> None:
        most = max(self.sampling.removed)
        bare = _ceiling(wanted / (1 - most / 100))
        needed = _ceiling(wanted / (1 - self.sampling.eval_fraction) / (1 - most / 100))
        self._say(
            f"the pool outside the test groups holds {there:,} photographs; {wanted:,} training photographs with "
            f"{most:g} % removed before need {bare:,}, with an evaluation set about {needed:,}",
            f"every level of varying quality trains on {possible:,}",
            f"give --train-images {possible}, or fewer levels to --removed",
        )

    def _say(self, fact: str, consequence: str, remedy: str) -> None:
        if self.sampling.strict_size:
            raise ConfigurationError(f"{fact}; {remedy}, or leave out --strict-size to let all shrink alike")
        self.messages.append(f"{fact}: {consequence}")


def _words(kind: str, removed: float) -> tuple[str, str]:
    return kind, f"{removed:g}"


def _rounded(number: float) -> int:
    """Half up, which the built-in isn't."""
    return math.floor(number + 0.5)


def _ceiling(number: float) -> int:
    """Next whole number, but for the rounding of floating point: 90 / .9 is 100."""
    return math.ceil(number - 1e-9)
