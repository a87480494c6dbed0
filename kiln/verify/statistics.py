"""The arithmetic of the gates: what a sample proves, and what it leaves open. Pure, and without a dependency.

Every bound here is one-sided at ``ALPHA``: a gate asks one question, whether something is too bad. Two such bounds enclose 1 - 2 ``ALPHA``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist, fmean, stdev

ALPHA = 0.05
POWER = 0.9


class Verdict(Enum):
    """What a sample says: proven good, proven bad, or neither. Neither is no pass."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Interval:
    """The two one-sided bounds of a value."""

    low: float
    high: float


# Proportions


def standard_error(right: int, asked: int) -> float:
    """The binomial standard error of the share ``right`` of ``asked``."""
    share = right / asked
    return math.sqrt(share * (1 - share) / asked)


def at_most(count: int, asked: int, share: float) -> float:
    """The chance of ``count`` or fewer right answers of ``asked`` where each is right with the chance ``share``."""
    if count < 0:
        return 0.0
    if count >= asked or share <= 0:
        return 1.0
    if share >= 1:
        return 0.0
    log_share, log_rest = math.log(share), math.log1p(-share)
    whole = math.lgamma(asked + 1)
    terms = (
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(asked - k + 1) + k * log_share + (asked - k) * log_rest)
        for k in range(count + 1)
    )
    return min(1.0, math.fsum(terms))


def at_least(count: int, asked: int, share: float) -> float:
    """The chance of ``count`` or more right answers; counted as the wrong ones, so that a small chance stays exact."""
    return at_most(asked - count, asked, 1 - share)


def between(low: int, high: int, asked: int, share: float) -> float:
    """The chance that the number of right answers is from ``low`` to ``high``, both included."""
    return max(0.0, at_most(high, asked, share) - at_most(low - 1, asked, share))


def share_interval(right: int, asked: int, alpha: float = ALPHA) -> Interval:
    """Exact bounds of the share behind ``right`` of ``asked``: no smaller and no larger share would be rejected at ``alpha``.

    C. J. Clopper and E. S. Pearson, Biometrika 26 (1934) 404-413. They hold for few questions and for shares near one, where the
    normal approximation does not.
    """
    low = 0.0 if right == 0 else _crossing(lambda share: at_least(right, asked, share) - alpha)
    high = 1.0 if right == asked else _crossing(lambda share: alpha - at_most(right, asked, share))
    return Interval(low, high)


def judge_share(right: int, asked: int, bound: float, alpha: float = ALPHA) -> Verdict:
    """Whether the share behind ``right`` of ``asked`` lies above ``bound``: by the exact binomial test, each way at ``alpha``."""
    if at_least(right, asked, bound) <= alpha:
        return Verdict.PASS
    return Verdict.FAIL if at_most(right, asked, bound) <= alpha else Verdict.CANNOT_TELL


def questions_to_separate(bad: float, good: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """How many questions it takes so that a share of ``good`` is told from ``bad`` with the chance ``power``, at ``alpha`` one-sided.

    ((z_alpha sqrt(bad (1 - bad)) + z_power sqrt(good (1 - good))) / (good - bad))^2: the sample size for one proportion, for example in
    J. L. Fleiss, B. Levin, M. C. Paik, Statistical Methods for Rates and Proportions, 3rd edition (2003), chapter 2.
    """
    normal = NormalDist()
    spread = normal.inv_cdf(1 - alpha) * math.sqrt(bad * (1 - bad)) + normal.inv_cdf(power) * math.sqrt(
        good * (1 - good)
    )
    return math.ceil((spread / (good - bad)) ** 2)


# The same questions asked of two


def mcnemar(only_first: int, only_second: int) -> float:
    """The chance that the first does this badly or worse if both are equally good: of the questions that only one answered right, at most
    ``only_first`` are the first's. The exact form of Q. McNemar's test (Psychometrika 12 (1947) 153-157), one-sided."""
    return at_most(only_first, only_first + only_second, 0.5)


def paired_score(only_first: int, only_second: int, asked: int, margin: float) -> float:
    """How many standard errors the difference of the shares (first less second) lies above ``-margin``.

    The score statistic of T. Tango, Statistics in Medicine 17 (1998) 891-908: its standard error is that of the likeliest shares whose
    difference is ``-margin``. With ``margin`` 0 it is McNemar's statistic.
    """
    both = asked - only_first - only_second
    # The likeliest chance x of "only the first", where that of "only the second" is x + margin: the root of a x^2 + b x + c.
    a = -2 * asked
    b = only_first * (1 - 3 * margin) + only_second * (1 - margin) - 2 * both * margin
    c = only_first * margin * (1 - margin)
    x = max(0.0, (-b - math.sqrt(max(0.0, b * b - 4 * a * c))) / (2 * a))
    variance = asked * (2 * x + margin - margin * margin)
    distance = only_first - only_second + asked * margin
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def judge_paired(only_first: int, only_second: int, asked: int, margin: float, alpha: float = ALPHA) -> Verdict:
    """Whether the first is no worse than the second: fail where it is worse beyond chance, pass where it is shown not to be worse by
    ``margin`` or more."""
    if mcnemar(only_first, only_second) <= alpha:
        return Verdict.FAIL
    enough = paired_score(only_first, only_second, asked, margin) >= NormalDist().inv_cdf(1 - alpha)
    return Verdict.PASS if enough else Verdict.CANNOT_TELL


# Measurements


@dataclass(frozen=True)
class Change:
    """A relative change (0.05: five per cent more) and its bounds."""

    value: float
    interval: Interval


def change(pairs: Sequence[tuple[float, float]], alpha: float = ALPHA) -> Change:
    """The change from the second of each pair to the first: from the mean of the logarithms of the ratios, with Student's t.

    A pair is measured side by side, so what drifts hits both. A bootstrap of so few pairs would give bounds that are too narrow: three
    values have ten different resamples. Raises ValueError for fewer than two pairs or a value that is not above zero.
    """
    if len(pairs) < 2 or not all(value > 0 and math.isfinite(value) for pair in pairs for value in pair):
        raise ValueError("a change needs two pairs of positive numbers or more")
    logs = [math.log(first / second) for first, second in pairs]
    middle = fmean(logs)
    half = student_t(1 - alpha, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return Change(math.expm1(middle), Interval(math.expm1(middle - half), math.expm1(middle + half)))


def student_t(chance: float, freedom: int) -> float:
    """The value below which a Student's t with ``freedom`` degrees lies with the chance ``chance`` (from 0.5 up)."""
    # t = sqrt(freedom) tan(angle); the density of the angle is cos^(freedom - 1), so its share is a sum over powers of the cosine.
    angle = _crossing(lambda part: _angle_share(part * math.pi / 2, freedom) - (2 * chance - 1)) * math.pi / 2
    return math.sqrt(freedom) * math.tan(angle)


def _angle_share(angle: float, freedom: int) -> float:
    """The chance that |t| < sqrt(freedom) tan(angle): M. Abramowitz and I. A. Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom == 1:
        return 2 * angle / math.pi
    term = total = 1.0 if freedom % 2 == 0 else cosine
    for k in range(2 + freedom % 2, freedom, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    return sine * total if freedom % 2 == 0 else 2 / math.pi * (angle + sine * total)


def _crossing(rising: Callable[[float], float]) -> float:
    """Where a rising function crosses zero between 0 and 1, to the last bit that halving finds."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
