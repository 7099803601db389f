"""Budget rules and their windows: what counts, what is left, when it ends.

The day and the month are UTC calendar windows. A spend belongs to the windows in which
it was authorized, for good.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pilot_grpc.domain.ids import AgentId


@dataclass(frozen=True, slots=True)
class Window:
    """What has become of one window's limit; `spent` contains `held`."""

    limit: int | None
    spent: int
    held: int
    starts_at: datetime
    ends_at: datetime

    @property
    def remaining(self) -> int | None:
        """What may still be spent, never below 0; None without a limit."""
        return None if self.limit is None else max(0, self.limit - self.spent)


@dataclass(slots=True)
class BudgetRule:
    """An agent's limits and counters; one that is locked changes as the batch decides.

    The counters belong to the day and the month of `last_reset_at`. With `any_recipient`
    the agent may pay wallets that are not on its list.
    """

    agent_id: AgentId
    per_tx_limit: int
    daily_limit: int
    monthly_limit: int | None
    daily_spent: int
    daily_held: int
    monthly_spent: int
    monthly_held: int
    last_reset_at: datetime
    created_at: datetime
    updated_at: datetime
    any_recipient: bool = False

    def roll(self, now: datetime) -> None:
        """Open the windows of `now`, if they are later; windows only move forward."""
        if now.date() <= self.last_reset_at.date():
            return
        if month_of(now) != month_of(self.last_reset_at):
            self.monthly_spent = self.monthly_held = 0
        self.daily_spent = self.daily_held = 0
        self.last_reset_at = now

    def count(self, authorized_at: datetime, spent: int, held: int) -> None:
        """Count what changed of a spend, in the windows it belongs to that are open."""
        if authorized_at.date() == self.last_reset_at.date():
            self.daily_spent += spent
            self.daily_held += held
        if month_of(authorized_at) == month_of(self.last_reset_at):
            self.monthly_spent += spent
            self.monthly_held += held

    def at(self, now: datetime) -> "BudgetRule":
        """Return the rule as a reader at `now` sees it: never a window that is over."""
        rule = replace(self)
        rule.roll(now)
        return rule

    @property
    def day(self) -> Window:
        """The day that is open."""
        starts_at, ends_at = day_bounds(self.last_reset_at)
        return Window(self.daily_limit, self.daily_spent, self.daily_held, starts_at, ends_at)

    @property
    def month(self) -> Window:
        """The month that is open."""
        starts_at, ends_at = month_bounds(self.last_reset_at)
        return Window(self.monthly_limit, self.monthly_spent, self.monthly_held, starts_at, ends_at)


def month_of(moment: datetime) -> tuple[int, int]:
    """Return the year and the month of a moment."""
    return moment.year, moment.month


def day_bounds(moment: datetime) -> tuple[datetime, datetime]:
    """Return when the UTC day of a moment begins and when the next one does."""
    starts_at = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return starts_at, starts_at + timedelta(days=1)


def month_bounds(moment: datetime) -> tuple[datetime, datetime]:
    """Return when the UTC month of a moment begins and when the next one does."""
    starts_at = day_bounds(moment)[0].replace(day=1)
    return starts_at, (starts_at + timedelta(days=31)).replace(day=1)
