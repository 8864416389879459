"""Arithmetic on measurements: ratios within a round, slopes, and verdicts."""

import math
import statistics
from dataclasses import dataclass

# If the baseline itself varies more than this, a limit cannot be enforced strictly.
NOISY = 0.10


@dataclass(frozen=True)
class Spread:
    """The values of a figure over the rounds."""

    median: float
    low: float
    high: float
    # The value of each round.
    rounds: tuple = ()

    @classmethod
    def of(cls, values):
        return cls(statistics.median(values), min(values), max(values), tuple(values))

    @property
    def relative(self):
        """The range of the rounds relative to the median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    def text(self, digits=None):
        if digits is None:
            digits = 2 if abs(self.median) >= 0.1 or not self.median else 4
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def percentile(values, percent):
    """The smallest value that is at least as large as this percentage of the values."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def ratios(ours, theirs):
    """The ratio of ours to theirs in each round; rounds with a baseline of 0 are ignored."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if b > 0]
    if not pairs:
        raise ValueError("no round has a baseline")
    return Spread.of([a / b for a, b in pairs])


def slope(small, large):
    """The cost of one more unit from two measurements `(size, figure)`, without any fixed cost."""
    (size_a, figure_a), (size_b, figure_b) = small, large
    if size_b <= size_a:
        raise ValueError("the second measurement must be larger")
    return (figure_b - figure_a) / (size_b - size_a)


def shares(counts):
    """The share of each count in the total."""
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


@dataclass(frozen=True)
class Goal:
    """An entry of the table of goals: less is better, unless `more`. One without limits is only reported."""

    number: int | None
    what: str
    versus: str
    must: float | None
    aim: float | None
    more: bool = False

    def meets(self, value, limit, slack=0.0):
        return value >= limit * (1 - slack) if self.more else value <= limit * (1 + slack)

    def verdict(self, value, reference_spread=0.0):
        """`aim`, `must` or `missed`; with a noisy baseline, `must` is widened by its spread."""
        if self.must is None:
            return ""
        if self.meets(value, self.aim):
            return "aim"
        if self.meets(value, self.must):
            return "must"
        if reference_spread > NOISY and self.meets(value, self.must, reference_spread):
            return "must (noisy)"
        return "missed"


def regressions(baseline, measured, allowed=0.05, slack=0.05):
    """The figures that are missing, unknown, or more than `allowed` above the baseline; `slack` is the
    absolute variation tolerated for small figures."""
    problems = []
    for name in sorted(baseline.keys() | measured.keys()):
        if name not in measured:
            problems.append(f"{name}: was not measured")
        elif name not in baseline:
            problems.append(f"{name}: is not in the baseline; add it with --write")
        elif measured[name] > baseline[name] * (1 + allowed) + slack:
            more = measured[name] / baseline[name] - 1 if baseline[name] else float("inf")
            problems.append(f"{name}: {measured[name]:g} instead of {baseline[name]:g} ({more:+.1%})")
    return problems
