"""Setting whole groups aside, by class, and random numbers that depend on their purpose alone."""

import zlib

import numpy as np

from qualitygate.training.pool import Integers, Pool


def generator(seed: int, repetition: int, *purpose: str) -> np.random.Generator:
    """A random generator of a seed, a repetition and a purpose: one more kind of subset changes no other's draw."""
    return np.random.default_rng([seed, repetition, *(zlib.crc32(part.encode()) for part in purpose)])


def set_aside(
    pool: Pool, rows: Integers, target: float, random: np.random.Generator, *, least: int = 1, leave: int = 1
) -> Integers:
    """Rows of whole groups, about `target` photographs of `rows` in the proportions of the classes.

    rows: sorted row numbers. A group of several classes counts to the one that most of its photographs have.
    least, leave: fewest groups of each class to set aside and to leave, where it has so many.

    Within a class, groups come in random order and are taken as long as that brings the number closer to its share;
    groups larger than the share are passed over while there are smaller ones. scikit-learn's StratifiedGroupKFold
    does the same for all folds at once, at .2 ms a group; this one takes a pool of a million.
    """
    if not len(rows) or (target < 0.5 and not least):
        return rows[:0]
    names, place = np.unique(pool.unit[rows], return_inverse=True)
    by_class = np.zeros((len(names), len(pool.classes)), dtype=np.int64)
    np.add.at(by_class, (place, pool.label[rows]), 1)
    sizes, main = by_class.sum(axis=1), by_class.argmax(axis=1)
    taken = np.zeros(len(names), dtype=bool)
    for label in range(len(pool.classes)):
        members = np.flatnonzero(main == label)
        if len(members) > leave:
            share = target * sizes[members].sum() / len(rows)
            taken[_up_to(members, sizes, share, random, least=least, most=len(members) - leave)] = True
    return rows[taken[place]]


def _up_to(
    members: Integers, sizes: Integers, share: float, random: np.random.Generator, *, least: int, most: int
) -> Integers:
    members = random.permutation(members)
    small = sizes[members] <= share
    # A stable sort: those that fit come first, each kind in its random order; too large ones by size.
    members = members[np.lexsort((np.where(small, 0, sizes[members]), ~small))]
    totals = np.concatenate([[0], np.cumsum(sizes[members])])
    count = int(np.argmin(np.abs(totals - share)))
    return members[: min(max(count, least), most)]


def random_part(rows: Integers, count: int, random: np.random.Generator) -> Integers:
    """`count` of the rows at random, in their order; all where there are no more."""
    return rows if len(rows) <= count else np.sort(random.permutation(rows)[:count])
