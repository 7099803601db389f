"""Budget rules: set, read, removed, and checked without spending."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pilot_grpc import errors
from pilot_grpc.db import agents as agents_db
from pilot_grpc.db import budgets as budgets_db
from pilot_grpc.db import ledger as ledger_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.clock import Clock
from pilot_grpc.db.connection import Connection, Database
from pilot_grpc.domain.accounts import Caller
from pilot_grpc.domain.agents import status_after_setup
from pilot_grpc.domain.budgets import BudgetRule, day_bounds, month_bounds
from pilot_grpc.domain.ids import AgentId
from pilot_grpc.domain.ledger import (
    FailureReason,
    Payment,
    RuleCheck,
    check_rules,
    counted_of,
    decline_reason,
)
from pilot_grpc.services.agents import Homes, lock_own_agent
from pilot_grpc.services.books import OVERDUE_PER_BATCH_MAX
from pilot_grpc.services.chain import must_be_wallet


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of a rule, in minor units; None means no monthly limit.

    With `any_recipient` the agent may pay wallets that are not on its list.
    """

    per_tx: int
    daily: int
    monthly: int | None
    any_recipient: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """How a spend would be decided, and every rule's own answer in that order."""

    declined: RuleCheck | None
    rules: list[RuleCheck]


@dataclass(frozen=True, slots=True)
class Budgets:
    """What owners set, and agents ask. Without `pays_on_chain` nobody asks about a recipient."""

    database: Database
    clock: Clock
    homes: Homes
    new_id: Callable[[], str]
    pays_on_chain: bool = False

    async def set(self, caller: Caller, agent_id: AgentId, limits: Limits) -> BudgetRule:
        """Set an agent's limits, under the vault's lock. Raises NotFound.

        A first rule counts both windows from the events; later ones keep the counters.
        """
        async with self.database.transaction() as conn:
            agent = await lock_own_agent(conn, agent_id, caller.user_id)
            vault = await vaults_db.lock_vault_of_project(conn, agent.project_id)
            if vault is None:
                raise errors.NotFound(resource="agent", id=agent_id)
            now = vault.time(await self.clock(conn))
            rule = await budgets_db.select_rule(conn, agent_id, caller.user_id)
            is_new = rule is None
            if rule is None:
                rule = await _counted_anew(conn, agent_id, now)
            rule.per_tx_limit, rule.daily_limit = limits.per_tx, limits.daily
            rule.monthly_limit, rule.updated_at = limits.monthly, now
            rule.any_recipient = limits.any_recipient
            if is_new:
                await budgets_db.insert_rule(conn, self.new_id(), rule)
                vault.last_change_at = now
                await vaults_db.update_vaults(conn, [vault])
            else:
                await budgets_db.update_limits(conn, rule)
            status = status_after_setup(agent.status, has_key=agent.has_key, has_rule=True)
            if status is not agent.status:
                await agents_db.update_agent_status(conn, agent_id, status)
        return rule.at(now)

    async def get(self, caller: Caller, agent_id: AgentId) -> BudgetRule:
        """Read an agent's rule as of now. Raises NotFound."""
        home = (await self.homes.of(caller, [agent_id]))[agent_id]
        async with self.database.snapshot() as conn:
            rule = await budgets_db.select_rule(conn, agent_id, caller.user_id)
            vault = await vaults_db.select_vault(conn, home.vault_id, caller.user_id)
            clock = await self.clock(conn)
        if rule is None or vault is None:
            raise errors.NotFound(resource="budget_rule", id=agent_id)
        return rule.at(vault.time(clock))

    async def remove(self, caller: Caller, agent_id: AgentId) -> None:
        """Remove an agent's rule, under the vault's lock. Raises NotFound."""
        async with self.database.transaction() as conn:
            agent = await lock_own_agent(conn, agent_id, caller.user_id)
            if await budgets_db.select_rule(conn, agent_id, caller.user_id) is None:
                raise errors.NotFound(resource="budget_rule", id=agent_id)
            await budgets_db.delete_rule(conn, agent_id)
            status = status_after_setup(agent.status, has_key=agent.has_key, has_rule=False)
            if status is not agent.status:
                await agents_db.update_agent_status(conn, agent_id, status)

    async def check(
        self, caller: Caller, agent_id: AgentId, amount: int, recipient: str | None = None
    ) -> Check:
        """Say how a spend would be decided now, without a lock and holding nothing.

        Holds that are overdue are looked through, as a decision would settle them first.
        Raises NotFound, RecipientUnsupported, and InvalidRequest for a recipient that is no
        wallet.
        """
        if recipient is not None:
            must_be_wallet(recipient)
        home = (await self.homes.of(caller, [agent_id]))[agent_id]
        if recipient is not None and not self.pays_on_chain:
            raise errors.RecipientUnsupported
        async with self.database.snapshot() as conn:
            vault = await vaults_db.select_vault(conn, home.vault_id, caller.user_id)
            spender = (await agents_db.select_spenders(conn, [agent_id])).get(agent_id)
            if vault is None or spender is None or spender.is_deleted:
                raise errors.NotFound(resource="agent", id=agent_id)
            now = vault.time(await self.clock(conn))
            payment = None
            if recipient is not None:
                listed = await agents_db.select_listed(conn, [(agent_id, recipient)])
                payment = Payment(vault.drift is not None, bool(listed), vault.chain_balance)
            overdue = []
            if vault.held:
                overdue = await ledger_db.select_overdue_holds(
                    conn, [vault.id], now, OVERDUE_PER_BATCH_MAX
                )
        if spender.rule is not None:
            spender.rule.roll(now)
        for hold in overdue:
            counted = counted_of(hold)
            vault.balance += counted.held
            vault.held -= counted.held
            if hold.agent_id == agent_id and spender.rule is not None:
                spender.rule.count(hold.created_at, -counted.spent, -counted.held)
        return _checked(
            check_rules(spender, vault.balance, vault.held, amount, payment),
            decline_reason(spender, vault.balance, amount, payment),
        )


def _checked(rules: list[RuleCheck], reason: FailureReason | None) -> Check:
    declined = next((rule for rule in rules if rule.figures.reason is reason), None)
    return Check(declined, rules)


async def _counted_anew(conn: Connection, agent_id: AgentId, now: datetime) -> BudgetRule:
    counters = await budgets_db.recount_windows(
        conn, agent_id, day_bounds(now)[0], month_bounds(now)
    )
    return BudgetRule(
        agent_id=agent_id,
        per_tx_limit=1,
        daily_limit=1,
        monthly_limit=None,
        daily_spent=counters["daily_spent"],
        daily_held=counters["daily_held"],
        monthly_spent=counters["monthly_spent"],
        monthly_held=counters["monthly_held"],
        last_reset_at=now,
        created_at=now,
        updated_at=now,
    )
