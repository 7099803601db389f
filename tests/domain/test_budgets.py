"""Windows: what counts in them, what is left, when they end, and when they turn."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_grpc.domain.budgets import BudgetRule, day_bounds, month_bounds
from pilot_grpc.domain.ids import AgentId

LAST_MOMENT: Final = timedelta(microseconds=1)


def utc(year: int, month: int, day: int, hour: int = 0) -> datetime:
    return datetime(year, month, day, hour, tzinfo=UTC)


def a_rule(now: datetime, **changes: int | None) -> BudgetRule:
    """A rule with a day of 100 and a month of 1000, of which 30 and 70 are spent."""
    rule = BudgetRule(AgentId("a"), 10, 100, 1_000, 30, 20, 70, 40, now, now, now)
    return replace(rule, **changes)  # type: ignore[arg-type]


def counters(rule: BudgetRule) -> tuple[int, int, int, int]:
    return rule.daily_spent, rule.daily_held, rule.monthly_spent, rule.monthly_held


TURNS: Final = [
    # A midnight, and whether a month ends with it.
    (utc(2028, 2, 29), False),
    (utc(2028, 3, 1), True),
    (utc(2027, 3, 1), True),
    (utc(2100, 3, 1), True),
    (utc(2028, 1, 1), True),
    (utc(2028, 12, 31), False),
    (utc(2028, 5, 1), True),
    (utc(2028, 7, 15), False),
]


@pytest.mark.parametrize(("midnight", "month_ends"), TURNS)
def test_windows_turn_at_midnight(midnight: datetime, month_ends: bool) -> None:
    """Not a microsecond before; the month goes on unless it ends with the day."""
    rule = a_rule(midnight - timedelta(hours=3))

    rule.roll(midnight - LAST_MOMENT)
    assert counters(rule) == (30, 20, 70, 40)

    rule.roll(midnight)
    assert counters(rule) == ((0, 0, 0, 0) if month_ends else (0, 0, 70, 40))
    assert rule.last_reset_at == midnight


def test_the_same_month_of_another_year_is_another_month() -> None:
    rule = a_rule(utc(2027, 5, 10))

    rule.roll(utc(2028, 5, 10))

    assert counters(rule) == (0, 0, 0, 0)


def test_the_same_day_of_another_month_is_another_day() -> None:
    rule = a_rule(utc(2028, 5, 10))

    rule.roll(utc(2028, 6, 10))

    assert counters(rule) == (0, 0, 0, 0)


@pytest.mark.parametrize("back", [timedelta(hours=2), timedelta(days=1), timedelta(days=400)])
def test_windows_never_turn_back(back: timedelta) -> None:
    """A clock that steps back leaves the window that is open as it is."""
    rule = a_rule(utc(2028, 3, 1, 1))

    rule.roll(utc(2028, 3, 1, 1) - back)

    assert counters(rule) == (30, 20, 70, 40)
    assert rule.last_reset_at == utc(2028, 3, 1, 1)


def test_a_spend_of_a_day_that_is_over_counts_in_its_month_only() -> None:
    """A hold of 20 from the 28th is captured on the 29th with 5: the month gets 15 back."""
    rule = a_rule(utc(2028, 2, 29))

    rule.count(utc(2028, 2, 28), -15, -20)

    assert counters(rule) == (30, 20, 55, 20)


def test_a_spend_of_a_month_that_is_over_counts_nowhere() -> None:
    rule = a_rule(utc(2028, 3, 1))

    rule.count(utc(2028, 2, 29), -15, -20)

    assert counters(rule) == (30, 20, 70, 40)


def test_a_reader_never_sees_a_window_that_is_over() -> None:
    """It sees the next one, and what is stored stays as it is."""
    rule = a_rule(utc(2028, 2, 28, 23))

    seen = rule.at(utc(2028, 2, 29, 1))

    assert (seen.day.spent, seen.day.held, seen.day.remaining) == (0, 0, 100)
    assert (seen.month.spent, seen.month.held, seen.month.remaining) == (70, 40, 930)
    assert (seen.day.starts_at, seen.day.ends_at) == (utc(2028, 2, 29), utc(2028, 3, 1))
    assert counters(rule) == (30, 20, 70, 40)


def test_a_window_without_a_limit_is_counted_and_has_nothing_that_remains() -> None:
    month = a_rule(utc(2028, 2, 29), monthly_limit=None).month

    assert (month.limit, month.spent, month.held, month.remaining) == (None, 70, 40, None)


def test_a_limit_below_what_is_spent_leaves_0() -> None:
    assert a_rule(utc(2028, 2, 29), daily_limit=10).day.remaining == 0


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9998, 1, 1)))  # noqa: DTZ001 - hypothesis adds the zone
def test_bounds_hold_their_moment_and_are_those_of_the_calendar(naive: datetime) -> None:
    """Days are 24 hours of UTC; a month begins on its first and ends where the next begins."""
    moment = naive.replace(tzinfo=UTC)

    day_start, day_end = day_bounds(moment)
    month_start, month_end = month_bounds(moment)

    assert day_start <= moment < day_end == day_start + timedelta(days=1)
    assert (day_start.date(), day_start.time()) == (moment.date(), datetime.min.time())
    assert month_start <= day_start < day_end <= month_end
    assert month_start.date() == date(moment.year, moment.month, 1)
    assert month_end.date() == date(moment.year + moment.month // 12, moment.month % 12 + 1, 1)


def test_bounds_are_those_of_utc_wherever_a_moment_was_read() -> None:
    """One in the morning of the 1st in Berlin is still the last day of February."""
    berlin = datetime(2028, 3, 1, 0, 30, tzinfo=timezone(timedelta(hours=1)))

    assert day_bounds(berlin)[0] == utc(2028, 2, 29)
    assert month_bounds(berlin) == (utc(2028, 2, 1), utc(2028, 3, 1))


def test_february_has_a_29th_every_fourth_year_but_not_in_2100() -> None:
    assert day_bounds(utc(2028, 2, 28, 9))[1] == utc(2028, 2, 29)
    assert day_bounds(utc(2100, 2, 28, 9))[1] == utc(2100, 3, 1)
    assert month_bounds(utc(2028, 2, 29))[1] == month_bounds(utc(2028, 2, 1))[1]


steps = st.lists(
    st.tuples(
        st.sampled_from([timedelta(hours=h) for h in (-30, -5, 0, 1, 7, 25, 24 * 20, 24 * 366)]),
        st.integers(min_value=1, max_value=9),
        st.integers(min_value=0, max_value=9),
    ),
    max_size=30,
)


@given(steps)
def test_rolled_counters_are_the_sums_of_their_windows(
    steps: Sequence[tuple[timedelta, int, int]],
) -> None:
    """Holds, and captures of one that was made earlier, over a clock that jumps about."""
    clock = latest = utc(2028, 2, 20)
    rule = a_rule(clock, daily_spent=0, daily_held=0, monthly_spent=0, monthly_held=0)
    holds: list[tuple[datetime, int]] = []
    captured: list[tuple[datetime, int]] = []
    for step, amount, which in steps:
        clock += step
        latest = max(latest, clock)
        rule.roll(latest)
        rule.count(latest, amount, amount)
        holds.append((latest, amount))
        if which < len(holds) - 1:
            made_at, held = holds.pop(which)
            rule.count(made_at, 1 - held, -held)
            captured.append((made_at, 1))

    def total(spends: Sequence[tuple[datetime, int]], shape: str) -> int:
        return sum(n for at, n in spends if at.strftime(shape) == latest.strftime(shape))

    day, month = "%Y-%m-%d", "%Y-%m"
    assert counters(rule) == (
        total(holds + captured, day),
        total(holds, day),
        total(holds + captured, month),
        total(holds, month),
    )
