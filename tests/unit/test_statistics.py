"""The arithmetic of the gates, against published tables, against itself, and against what it must not claim."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.verify.statistics import (
    ALPHA,
    Verdict,
    at_least,
    at_most,
    between,
    change,
    judge_paired,
    judge_share,
    mcnemar,
    paired_score,
    questions_to_separate,
    share_interval,
    standard_error,
    student_t,
)

GSM8K = 1319


@pytest.mark.parametrize(
    ("truth", "chance"),
    [(0.9507, 0.91), (0.9553, 0.80), (0.94, 0.52), (0.935, 0.25), (0.93, 0.08), (0.92, 0.003)],
)
def test_the_chance_that_one_run_lands_in_the_gates_two_sides(truth: float, chance: float) -> None:
    low, high = math.ceil(0.94 * GSM8K), math.floor(0.96 * GSM8K)
    assert between(low, high, GSM8K, truth) == pytest.approx(chance, abs=0.005 if chance > 0.01 else 0.0005)


def test_the_standard_error_of_gsm8k() -> None:
    assert standard_error(round(0.95 * GSM8K), GSM8K) == pytest.approx(0.0060, abs=5e-5)


@given(asked=st.integers(1, 300), share=st.floats(0.01, 0.99), part=st.floats(0, 1))
def test_tails_are_chances_and_meet(asked: int, share: float, part: float) -> None:
    count = round(part * asked)
    below, above = at_most(count - 1, asked, share), at_least(count, asked, share)
    assert 0 <= below <= 1
    assert below + above == pytest.approx(1, abs=1e-9)
    exact = math.fsum(math.comb(asked, k) * share**k * (1 - share) ** (asked - k) for k in range(count))
    assert below == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(
    ("right", "asked", "alpha", "low", "high"),
    [
        # All right: alpha^(1/n) and 1. None right: the mirror image.
        (8, 8, 0.05, 0.05 ** (1 / 8), 1.0),
        (0, 8, 0.05, 0.0, 1 - 0.05 ** (1 / 8)),
        # Clopper and Pearson's 95 % interval of 8 of 10 and of 1 of 20, as in any table.
        (8, 10, 0.025, 0.4439, 0.9748),
        (1, 20, 0.025, 0.00127, 0.2487),
    ],
)
def test_the_exact_interval(right: int, asked: int, alpha: float, low: float, high: float) -> None:
    found = share_interval(right, asked, alpha)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(asked=st.integers(1, 400), part=st.floats(0, 1), bound=st.floats(0.05, 0.95))
def test_the_verdict_is_where_the_interval_lies(asked: int, part: float, bound: float) -> None:
    right = round(part * asked)
    interval = share_interval(right, asked)
    verdict = judge_share(right, asked, bound)
    if verdict is Verdict.PASS:
        assert interval.low >= bound - 1e-9
    elif verdict is Verdict.FAIL:
        assert interval.high <= bound + 1e-9
    else:
        assert interval.low - 1e-9 <= bound <= interval.high + 1e-9


@given(asked=st.integers(1, 400), part=st.floats(0, 1), bound=st.floats(0.05, 0.95))
def test_one_more_right_answer_never_makes_it_worse(asked: int, part: float, bound: float) -> None:
    order = [Verdict.FAIL, Verdict.CANNOT_TELL, Verdict.PASS]
    right = min(round(part * asked), asked - 1)
    better = order.index(judge_share(right + 1, asked, bound))
    assert better >= order.index(judge_share(right, asked, bound))


@pytest.mark.parametrize("truth", [0.94, 0.92, 0.9])
def test_what_is_at_or_below_the_gate_passes_seldom(truth: float) -> None:
    passing = next(k for k in range(GSM8K) if judge_share(k, GSM8K, 0.94) is Verdict.PASS)
    assert at_least(passing, GSM8K, truth) <= ALPHA


def test_one_run_of_gsm8k_cannot_tell_the_target_from_the_gate() -> None:
    passing = next(k for k in range(GSM8K) if judge_share(k, GSM8K, 0.94) is Verdict.PASS)
    assert 0.4 < at_least(passing, GSM8K, 0.95) < 0.6
    # As the fork published: 0.9507 cannot be told, 0.9515 is just above.
    assert judge_share(round(0.9507 * GSM8K), GSM8K, 0.94) is Verdict.CANNOT_TELL
    assert judge_share(round(0.9515 * GSM8K), GSM8K, 0.94) is Verdict.PASS
    assert judge_share(round(0.92 * GSM8K), GSM8K, 0.94) is Verdict.FAIL


@pytest.mark.parametrize(("bad", "good"), [(0.94, 0.95), (0.9, 0.95), (0.92, 0.94), (0.5, 0.6)])
def test_the_number_of_questions_has_the_power_that_it_promises(bad: float, good: float) -> None:
    asked = questions_to_separate(bad, good)
    # Where the exact test begins to pass: by halving, for a tail of thousands is slow.
    low, high = 0, asked
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if at_least(middle, asked, bad) <= ALPHA else (middle + 1, high)
    assert at_least(low, asked, good) == pytest.approx(0.9, abs=0.02)
    assert questions_to_separate(0.94, 0.95) == 4489


@pytest.mark.parametrize(
    ("first", "second", "chance"), [(0, 5, 1 / 32), (5, 5, 0.623), (0, 0, 1.0), (2, 12, 106 / 16384)]
)
def test_mcnemars_exact_test(first: int, second: int, chance: float) -> None:
    assert mcnemar(first, second) == pytest.approx(chance, abs=5e-4)


@given(first=st.integers(0, 60), second=st.integers(0, 60))
def test_without_a_margin_the_score_is_mcnemars(first: int, second: int) -> None:
    expected = (first - second) / math.sqrt(first + second) if first + second else 0.0
    assert paired_score(first, second, 500, 0.0) == pytest.approx(expected, abs=1e-9)


@given(first=st.integers(0, 40), second=st.integers(0, 40), margin=st.floats(0.001, 0.3))
def test_the_score_uses_the_likeliest_shares(first: int, second: int, margin: float) -> None:
    asked = 100
    both = asked - first - second

    def likelihood(x: float) -> float:
        chances = ((first, x), (second, x + margin), (both, 1 - 2 * x - margin))
        return sum(count * math.log(max(chance, 1e-300)) for count, chance in chances if count)

    # The likeliest of many, found by trying.
    end = (1 - margin) / 2
    best = max((end * step / 4000 for step in range(4001)), key=likelihood)
    expected = (first - second + asked * margin) / math.sqrt(asked * (2 * best + margin - margin**2))
    assert paired_score(first, second, asked, margin) == pytest.approx(expected, abs=0.02, rel=0.01)


@pytest.mark.parametrize(
    ("first", "second", "asked", "margin", "verdict"),
    [
        (20, 20, GSM8K, 0.01, Verdict.PASS),
        (40, 20, GSM8K, 0.01, Verdict.PASS),
        (20, 40, GSM8K, 0.01, Verdict.FAIL),
        (25, 35, GSM8K, 0.01, Verdict.CANNOT_TELL),
        (0, 0, 8, 0.4, Verdict.PASS),
        (0, 1, 8, 0.4, Verdict.CANNOT_TELL),
        (0, 0, 8, 0.01, Verdict.CANNOT_TELL),
        (0, 6, 8, 0.4, Verdict.FAIL),
    ],
)
def test_the_paired_verdict(first: int, second: int, asked: int, margin: float, verdict: Verdict) -> None:
    assert judge_paired(first, second, asked, margin) is verdict


@pytest.mark.parametrize(
    ("chance", "freedom", "value"),
    [
        (0.975, 1, 12.706),
        (0.95, 2, 2.920),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.95, 4, 2.132),
        (0.975, 10, 2.228),
        (0.99, 5, 3.365),
        (0.5, 7, 0.0),
    ],
)
def test_students_t(chance: float, freedom: int, value: float) -> None:
    assert student_t(chance, freedom) == pytest.approx(value, abs=5e-4)


def test_students_t_becomes_the_normal() -> None:
    assert student_t(0.95, 4000) == pytest.approx(NormalDist().inv_cdf(0.95), abs=1e-3)


@given(st.lists(st.floats(0.5, 2), min_size=2, max_size=6), st.floats(0.1, 1000))
def test_a_change_is_of_ratios_whatever_the_unit(ratios: list[float], unit: float) -> None:
    plain = change([(ratio, 1.0) for ratio in ratios])
    scaled = change([(ratio * unit, unit) for ratio in ratios])
    assert plain.interval.low <= plain.value <= plain.interval.high
    assert scaled.value == pytest.approx(plain.value, abs=1e-9)
    turned = change([(1.0, ratio) for ratio in ratios])
    assert (1 + turned.value) * (1 + plain.value) == pytest.approx(1)


def test_a_change_by_hand() -> None:
    found = change([(1.05, 1.0), (1.07, 1.0), (1.06, 1.0)])
    assert found.value == pytest.approx(0.05997, abs=1e-5)
    assert (found.interval.low, found.interval.high) == (
        pytest.approx(0.0433, abs=2e-4),
        pytest.approx(0.0770, abs=2e-4),
    )


@pytest.mark.parametrize("pairs", [[], [(1.0, 1.0)], [(1.0, 1.0), (0.0, 1.0)], [(1.0, math.nan), (1.0, 1.0)]])
def test_no_change_is_made_up(pairs: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="two pairs of positive numbers"):
        change(pairs)
