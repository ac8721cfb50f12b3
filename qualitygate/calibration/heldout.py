"""What the gate buys on photographs of groups that it wasn't made from: repeated grouped cross-fitting.

In each fold all that is chosen from data (transforms, cut-offs, who may vote, the best single method, the logistic
combination) is chosen on the other folds. Rivals then reject exactly as many photographs of the fold as the gate did,
or, where photographs have weights, as much weight.

Suffixes: N photographs, R repeats, G groups, B replicates.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qualitygate.calibration import cutoffs
from qualitygate.calibration.cutoffs import Fit, Settings
from qualitygate.calibration.inputs import Photographs
from qualitygate.calibration.kde import Direction
from qualitygate.calibration.statistics import (
    Booleans,
    Floats,
    Integers,
    bootstrap,
    generator,
    group_sums,
    mass_below,
    symmetric_interval,
)

GATE = "gate"
_COVERAGES = 50
_FINE = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the photographs are divided. splits: for each repeat, its folds as (training, test) indices."""

    folds: int
    splits: tuple[tuple[tuple[Integers, Integers], ...], ...]
    note: str | None = None


def plan(photographs: Photographs, folds: int, repeats: int, seed: int) -> Plan | None:
    """Folds that keep groups whole and hold about equally many wrong predictions (StratifiedGroupKFold).

    Fewer folds where wrong predictions lie in fewer groups; None when they lie in one.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    correct, group = photographs.correct, photographs.group
    most = min(len(np.unique(group[~correct])), len(np.unique(group[correct])))
    used = min(folds, most)
    if used < 2:
        return None
    splits = []
    for repeat in range(repeats):
        splitter = StratifiedGroupKFold(n_splits=used, shuffle=True, random_state=(seed + repeat) % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of folds without a wrong prediction
            found = list(splitter.split(np.zeros(len(correct)), correct, group))
        splits.append(tuple((train, test) for train, test in found if len(test)))
    note = None
    if used < folds:
        note = f"{used} folds instead of {folds}: the wrong predictions lie in {most} groups"
    return Plan(folds=used, splits=tuple(splits), note=note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What held-out photographs met. accepted, place: by contestant, (R, N): the share of each photograph that it
    accepts (fractions where it can't tell ties apart), and its place in the fold, higher is better. undefined: share
    of the folds in which a method had no cut-off; undecided: in which the gate couldn't decide and all passed.
    decided: (R, N) whether it could in the photograph's fold."""

    accepted: Mapping[str, Floats]
    place: Mapping[str, Floats]
    undefined: Mapping[str, float]
    undecided: float
    decided: Booleans

    def passed(self) -> Floats:
        """(N,) share of the repeats in which the gate passed each photograph, of those in which it could decide on it;
        NaN where in none."""
        with np.errstate(invalid="ignore"):
            shares: Floats = (self.accepted[GATE] * self.decided).sum(axis=0) / self.decided.sum(axis=0)
        return shares


def cross_fit(
    photographs: Photographs,
    directions: Mapping[str, Direction],
    settings: Settings,
    plan: Plan,
    *,
    votes_needed: int,
    allow_fallback: bool,
    top1: Floats | None,
    advance: Callable[[], None],
) -> Outcome:
    """Decide on each photograph, in each repeat, by a gate of the other folds."""
    names = [GATE, "random", *(["top1"] if top1 is not None else []), "best_single", "logistic"]
    shape = (len(plan.splits), len(photographs))
    accepted = {name: np.ones(shape) for name in names}
    place = {name: np.full(shape, 0.5) for name in names}
    undefined = dict.fromkeys(photographs.scores, 0)
    decided = np.zeros(shape, dtype=np.bool_)
    folds, undecided = 0, 0
    for repeat, number, train, test in _walk(plan):
        learned = photographs.take(train)
        fits = cutoffs.fit_all(
            learned,
            directions,
            settings.for_part(f"{repeat}/{number}", len(train) / len(photographs), len(directions)),
        )
        folds += 1
        for name, fit in fits.items():
            undefined[name] += fit.status == "undefined"
        seen = photographs.take(test)
        voting = voters(fits, allow_fallback)
        undecided += len(voting) < votes_needed
        decided[repeat, test] = len(voting) >= votes_needed
        low = votes_low(seen, voting) if len(voting) >= votes_needed else np.zeros(len(test), dtype=np.int64)
        passed = low < votes_needed
        preferences = {
            GATE: _gate_order(seen, low, list(voting.values()) or list(fits.values())),
            "random": np.zeros(len(test)),
            "best_single": _best_single(seen, fits),
            "logistic": _logistic(learned, seen, fits),
        }
        if top1 is not None:
            preferences["top1"] = top1[test]
        for name, preference in preferences.items():
            place[name][repeat, test] = _places(preference, seen.weight)
            kept = float(seen.weight[passed].sum())
            accepted[name][repeat, test] = passed if name == GATE else accept(preference, kept, seen.weight)
        advance()
    return Outcome(
        accepted=accepted,
        place=place,
        undefined={name: count / folds for name, count in undefined.items()},
        undecided=undecided / folds,
        decided=decided,
    )


def _walk(plan: Plan) -> Iterator[tuple[int, int, Integers, Integers]]:
    for repeat, splits in enumerate(plan.splits):
        for number, (train, test) in enumerate(splits):
            yield repeat, number, train, test


# ---- contestants -----------------------------------------------------------------------------------------


def voters(fits: Mapping[str, Fit], allow_fallback: bool) -> dict[str, Fit]:
    """The methods that may vote."""
    allowed = ("ok", "fallback") if allow_fallback else ("ok",)
    return {name: fit for name, fit in fits.items() if fit.status in allowed}


def votes_low(photographs: Photographs, voting: Mapping[str, Fit]) -> Integers:
    """(N,) low votes; a score that failed counts as low, as the gate has it by default."""
    votes = [fit.low(photographs.scores[name]) | np.isnan(photographs.scores[name]) for name, fit in voting.items()]
    return np.sum(votes, axis=0, dtype=np.int64) if votes else np.zeros(len(photographs), dtype=np.int64)


def oriented(photographs: Photographs, fit: Fit) -> Floats:
    """(N,) quality by one method, higher is better, the worst where it has no score."""
    quality = fit.axis.quality(photographs.scores[fit.method])
    return np.where(np.isnan(quality), -np.inf, quality)


def _gate_order(photographs: Photographs, low: Integers, fits: list[Fit]) -> Floats:
    """Few low votes first, then the mean of the voters' ranks."""
    mean = np.mean([_places(oriented(photographs, fit), photographs.weight) for fit in fits], axis=0)
    return np.asarray(mean - low, dtype=np.float64)  # ranks lie within (0, 1): votes come first


def _best_single(photographs: Photographs, fits: Mapping[str, Fit]) -> Floats:
    """By the method that separated best on the training folds."""
    best = max(fits.values(), key=lambda fit: (-1.0 if fit.auroc is None else fit.auroc, fit.method))
    return oriented(photographs, best)


def _logistic(learned: Photographs, seen: Photographs, fits: Mapping[str, Fit]) -> Floats:
    """By a logistic regression on all methods' standardised qualities, fitted on the training folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = []
    for fit in fits.values():
        known, new = oriented(learned, fit), oriented(seen, fit)
        finite = known[np.isfinite(known)]
        if len(finite):
            columns.append([np.clip(values, finite.min(), finite.max()) for values in (known, new)])
    if not columns or len(np.unique(learned.correct)) < 2:
        return np.zeros(len(seen))
    train, test = (np.stack([column[which] for column in columns], axis=1) for which in (0, 1))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    steps = list(model.named_steps) if learned.weighted else []
    model.fit(train, learned.correct, **{f"{step}__sample_weight": learned.weight for step in steps})
    return np.asarray(model.decision_function(test), dtype=np.float64)


def _places(preference: Floats, weight: Floats) -> Floats:
    """(N,) places in (0, 1) by preference, ties in the middle of theirs."""
    return np.asarray(mass_below(preference, weight) / weight.sum(), dtype=np.float64)


def accept(preference: Floats, mass: float, weight: Floats | None = None) -> Floats:
    """(N,) the share of each photograph among the preferred ones of this weight; ties share what is left.

    weight: (N,), None where each photograph weighs 1 and the mass is their number.
    """
    if mass <= 0:
        return np.zeros(len(preference))
    weight = np.ones(len(preference)) if weight is None else weight
    order = np.argsort(-preference, kind="stable")
    last = min(int(np.searchsorted(np.cumsum(weight[order]), mass)), len(order) - 1)
    limit = preference[order[last]]
    above, tied = preference > limit, preference == limit
    share = min((mass - weight[above].sum()) / weight[tied].sum(), 1.0)
    return np.where(above, 1.0, np.where(tied, share, 0.0))


# ---- figures ---------------------------------------------------------------------------------------------


def figures(photographs: Photographs, outcome: Outcome, plan: Plan, *, replicates: int, seed: int) -> dict[str, Any]:
    """Coverage, precision, recall, accuracies and the comparison, with intervals, as calibration.json has them.

    Shares are over all repeats; intervals come from replicates that draw groups, each with its decisions in all
    repeats: how much the figures depend on which groups were photographed, not on which the gate was made from.
    """
    names = list(outcome.accepted)
    shares = [outcome.accepted[name].mean(axis=0) for name in names]
    right, weight = photographs.correct.astype(np.float64), photographs.weight
    columns = [np.ones(len(right)), right, *(part for share in shares for part in (share, share * right))]
    sums = group_sums(weight[:, None] * np.stack(columns, axis=1), photographs.group, photographs.groups)

    def read(totals: Floats) -> Floats:
        """(B, figures): coverage, precision, recall, accuracy passed and rejected, each contestant's accuracy."""
        with np.errstate(divide="ignore", invalid="ignore"):
            number, good, kept, kept_good = totals[:, 0], totals[:, 1], totals[:, 2], totals[:, 3]
            rejected, wrong = number - kept, number - good
            rejected_wrong = wrong - (kept - kept_good)
            # What is left after subtraction is rounding where nothing was rejected.
            rejected = np.where(rejected > 1e-9 * number, rejected, np.nan)
            accuracies = totals[:, 3::2] / totals[:, 2::2]
            first = [kept / number, rejected_wrong / rejected, rejected_wrong / wrong, kept_good / kept]
            return np.column_stack([*first, 1 - rejected_wrong / rejected, accuracies, accuracies[:, :1] - accuracies])

    point = read(sums.sum(axis=0, keepdims=True))[0]
    drawn = bootstrap(read, sums, replicates, generator(seed, "held out"))
    differences = 5 + len(names)
    estimates = [
        _estimate(float(value), column, photographs.groups, signed=number >= differences)
        for number, (value, column) in enumerate(zip(point, drawn.T, strict=True))
    ]
    comparison = []
    for number, name in enumerate(names):
        curve = risk_coverage(outcome.place[name], photographs.correct, weight)
        comparison.append(
            {
                "name": name,
                "accuracy_at_coverage": estimates[5 + number],
                "difference": None if name == GATE else estimates[differences + number],
                **curve,
            }
        )
    return {
        "repeats": len(plan.splits),
        "folds": plan.folds,
        "photographs": len(photographs),
        "coverage": estimates[0],
        "precision": estimates[1],
        "recall": estimates[2],
        "accuracy_all": float(np.average(right, weights=weight)),
        "accuracy_passed": estimates[3],
        "accuracy_rejected": estimates[4],
        "comparison": comparison,
        "undefined_shares": dict(outcome.undefined),
        "undecided_share": outcome.undecided,
    }


def _estimate(value: float, drawn: Floats, groups: int, *, signed: bool) -> dict[str, Any]:
    if not np.isfinite(value):
        return {"mean": None, "interval": None}
    interval = symmetric_interval(value, drawn, groups, (-1.0 if signed else 0.0, 1.0))
    return {"mean": value, "interval": list(interval) if interval else None}


def risk_coverage(place: Floats, correct: Booleans, weight: Floats | None = None) -> dict[str, Any]:
    """Area under the curve of risk (share of wrong predictions) against coverage, and accuracy along it.

    place: (R, N) places within the folds; photographs are accepted from the highest down, ties in proportion.
    weight: (N,), None where all weigh alike. The area is the mean risk over all coverages, in [0, 1]; lower is better.
    """
    fine = np.arange(1, _FINE + 1) / _FINE
    weight = np.ones(len(correct)) if weight is None else weight
    accuracy = np.mean([_accuracies(one, correct, weight, fine) for one in place], axis=0)
    shown = slice(_FINE // _COVERAGES - 1, None, _FINE // _COVERAGES)
    return {
        "aurc": float(np.mean(1 - accuracy)),
        "curve": {"coverage": fine[shown].tolist(), "accuracy": accuracy[shown].tolist()},
    }


def _accuracies(place: Floats, correct: Booleans, weight: Floats, coverages: Floats) -> Floats:
    """Accuracy of the share of photographs with the highest places, for each coverage."""
    order = np.argsort(-place, kind="stable")
    ordered = place[order]
    last = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [True]]))
    mass, good = (np.concatenate([[0.0], np.cumsum(values[order])[last]]) for values in (weight, weight * correct))
    accepted = coverages * mass[-1]
    return np.asarray(np.interp(accepted, mass, good) / accepted, dtype=np.float64)


def top1_of(photographs: Photographs, two_classes: bool) -> tuple[Floats | None, str | None]:
    """The classifier's own certainty, and a note where it can't be had.

    The confidence of the labelled class won't do: it knows the label.
    """
    if not np.isnan(photographs.top1).any():
        return photographs.top1, None
    if two_classes:
        return np.maximum(photographs.confidence, 1 - photographs.confidence), None
    missing = int(np.isnan(photographs.top1).sum())
    return None, (
        f"{missing} of {len(photographs)} predictions have no top1, so the gate isn't compared with the classifier's "
        "own certainty (the labelled class's confidence knows the label); add a top1 column"
    )
