"""A gate as the scoring job asks it: is this photograph's fate decided, or is another score needed?"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qualitygate.calibration.gate import Gate

# Share of photographs that get every score all the same: without them the scores that are left would be those of
# doubtful photographs only, and neither drift nor a new calibration could be read from them.
SAMPLE_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One voter: scores on the wrong side of the cut-off vote low; on it they don't."""

    cutoff: float
    direction: Literal["higher", "lower"]
    # A fallback cut-off votes only where it is let: the decision must stand with and without it.
    optional: bool = False

    def low(self, score: float) -> bool:
        """Whether the score votes to reject."""
        return score < self.cutoff if self.direction == "higher" else score > self.cutoff


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """The gate's vote, taken score by score.

    votes_needed: low votes that reject.
    sample_share: of photographs, drawn by id and gate alone, that get every score.
    """

    gate_id: str
    votes_needed: int
    cuts: Mapping[str, Cut]
    sample_share: float = SAMPLE_SHARE

    @property
    def voters(self) -> tuple[str, ...]:
        """Metrics with a vote, in the order in which they are best asked."""
        return tuple(self.cuts)

    def sampled(self, image_id: str) -> bool:
        """Whether the photograph belongs to the sample: the same answer on every machine and in every run."""
        digest = hashlib.sha256(f"{self.gate_id}/{image_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.sample_share * 2**64

    def settled(self, scores: Mapping[str, float]) -> bool:
        """Whether the decision stands whatever the voters without a score say.

        A failed score counts as unknown here: how it votes is decided when the gate is applied.
        """
        certain = sum(not cut.optional and cut.low(scores[name]) for name, cut in self.cuts.items() if name in scores)
        possible = sum(name not in scores or cut.low(scores[name]) for name, cut in self.cuts.items())
        return certain >= self.votes_needed or possible < self.votes_needed


def of_gate(gate: Gate, order: Sequence[str], sample_share: float = SAMPLE_SHARE) -> Vote:
    """The gate's vote, taken in this order. Raises GateRefused when too few of its methods can vote at all."""
    voters = {voter.name: voter for voter in gate.require(allow_fallback=True, allow_untrained=True)}
    return Vote(
        gate_id=gate.id,
        votes_needed=gate.votes_needed,
        sample_share=sample_share,
        cuts={
            name: Cut(
                # A voter has a cut-off: that is what makes it one.
                cutoff=float(voters[name].cutoff or 0.0),
                direction=voters[name].direction,
                optional=voters[name].status == "fallback",
            )
            for name in order
            if name in voters
        },
    )
