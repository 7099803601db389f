"""Budget rules on the wire: what is left, until when, and how a spend would be decided."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from google.protobuf.message import Message

from pilot_grpc.domain.ids import VaultId
from pilot_grpc.gen.pilot.v1 import agents_pb2, projects_pb2
from pilot_grpc.gen.pilot.v1 import budgets_pb2 as pb
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as ledger
from pilot_grpc.solana import addresses
from tests import make
from tests.rpc.serving import Client, Pilot, Tenant, code, fresh, refusal, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOON = datetime(2032, 2, 29, 12, tzinfo=UTC)


async def test_a_rule_shows_what_is_left_and_until_when(shared_database: str) -> None:
    """Spent, held and remaining of the day and the month, and the moment at which each ends."""
    clock = make.HandClock(NOON)
    async with serving(shared_database, clock) as later:
        tenant = await later.tenant(per_tx_limit=50, daily_limit=100, monthly_limit=150)
        await tenant.spend(30)
        await tenant.hold(20)
        today = (await tenant.agent(pb.GetBudgetRuleRequest())).budget_rule
        clock.move(days=1)
        tomorrow = (await tenant.agent(pb.GetBudgetRuleRequest())).budget_rule

    assert (today.per_tx_limit, today.daily_limit, today.monthly_limit) == (50, 100, 150)
    assert figures(today.day) == (100, 50, 20, 50)
    assert figures(today.month) == (150, 50, 20, 100)
    assert bounds(today.day) == (
        datetime(2032, 2, 29, tzinfo=UTC),
        datetime(2032, 3, 1, tzinfo=UTC),
    )
    assert bounds(today.month) == (
        datetime(2032, 2, 1, tzinfo=UTC),
        datetime(2032, 3, 1, tzinfo=UTC),
    )
    assert figures(tomorrow.day) == (100, 0, 0, 100)
    assert figures(tomorrow.month) == (150, 0, 0, 150)
    assert bounds(tomorrow.month) == (
        datetime(2032, 3, 1, tzinfo=UTC),
        datetime(2032, 4, 1, tzinfo=UTC),
    )


def figures(window: pb.BudgetWindow) -> tuple[int, int, int, int]:
    return window.limit, window.spent, window.held, window.remaining


def bounds(window: pb.BudgetWindow) -> tuple[datetime, datetime]:
    return window.start_time.ToDatetime(UTC), window.end_time.ToDatetime(UTC)


async def test_a_zero_shows_and_what_is_absent_does_not(shared: Pilot) -> None:
    """A limit below what is spent leaves 0; without a monthly limit nothing is said of one."""
    tenant = await shared.tenant()
    await tenant.spend(30)
    lower = pb.SetBudgetRuleRequest(agent_id=tenant.agent_id, per_tx_limit=1, daily_limit=1)

    rule = (await tenant.owner(lower)).budget_rule

    assert rule.day.HasField("remaining")
    assert rule.day.remaining == 0
    assert rule.month.spent == 30
    assert not rule.HasField("monthly_limit")
    assert not rule.month.HasField("limit")
    assert not rule.month.HasField("remaining")


async def test_a_rule_that_is_removed_and_set_again_counts_what_was_spent(shared: Pilot) -> None:
    tenant = await shared.tenant()
    await tenant.spend(30)
    setting = pb.SetBudgetRuleRequest(agent_id=tenant.agent_id, per_tx_limit=50, daily_limit=60)

    await tenant.owner(pb.RemoveBudgetRuleRequest(agent_id=tenant.agent_id))
    without = await code(tenant.owner(pb.GetBudgetRuleRequest(agent_id=tenant.agent_id)))
    declined = await tenant.spend(1)
    again = (await tenant.owner(setting)).budget_rule

    assert without == "NOT_FOUND"
    assert declined.failure_reason == ledger.FAILURE_REASON_NO_BUDGET_RULE
    assert figures(again.day) == (60, 30, 0, 30)


RULES = (
    *("PROJECT_NOT_ACTIVE", "NO_BUDGET_RULE", "AGENT_NOT_ACTIVE", "PER_TX_LIMIT"),
    *("DAILY_LIMIT", "MONTHLY_LIMIT", "INSUFFICIENT_BALANCE"),
)
RULES_OF_PAYMENTS = (
    *("PROJECT_NOT_ACTIVE", "VAULT_STOPPED", "NO_BUDGET_RULE", "AGENT_NOT_ACTIVE"),
    *("RECIPIENT_NOT_ALLOWED", "PER_TX_LIMIT", "DAILY_LIMIT", "MONTHLY_LIMIT"),
    *("INSUFFICIENT_BALANCE", "INSUFFICIENT_CHAIN_BALANCE"),
)


async def check(
    caller: Client, tenant: Tenant, amount: int, recipient: str | None = None
) -> tuple[str, dict[str, bool]]:
    """How a spend would be decided, and the answer of every rule, in their order."""
    request = pb.CheckSpendRequest(agent_id=tenant.agent_id, amount=amount, recipient=recipient)
    answer = await caller(request)
    assert answer.approved != answer.HasField("decline")
    reason = ledger.FailureReason.Name(answer.decline.reason).removeprefix("FAILURE_REASON_")
    rules = {
        ledger.FailureReason.Name(rule.rule).removeprefix("FAILURE_REASON_"): rule.passed
        for rule in answer.rules
    }
    order = RULES if recipient is None else RULES_OF_PAYMENTS
    assert [rule for rule in order if rule in rules] == list(rules)
    return "" if answer.approved else reason, rules


async def test_a_check_explains_every_rule_and_holds_nothing(shared: Pilot) -> None:
    """The first that fails is the decline that Spend would give; all are answered for."""
    tenant = await shared.tenant(balance=90, per_tx_limit=50, daily_limit=60, monthly_limit=70)
    await tenant.spend(25)
    before = await shared.dump()

    fits = await check(tenant.owner, tenant, 35)
    too_much = await check(tenant.owner, tenant, 66)

    assert fits == ("", dict.fromkeys(RULES, True))
    assert too_much == ("PER_TX_LIMIT", {rule: RULES.index(rule) < 3 for rule in RULES})
    assert await shared.dump() == before


async def test_a_check_and_a_spend_agree(shared: Pilot) -> None:
    """In every state that declines, and on both sides of every limit."""
    tenant = await shared.tenant(balance=55, per_tx_limit=50, daily_limit=60, monthly_limit=1_000)

    async def agree(*amounts: int) -> None:
        for amount in amounts:
            for caller in (tenant.owner, tenant.agent):
                expected, _ = await check(caller, tenant, amount)
                event = await tenant.hold(amount)
                name = ledger.FailureReason.Name(event.failure_reason)
                assert name.removeprefix("FAILURE_REASON_") == (expected or "UNSPECIFIED")
                if not expected:
                    await tenant.agent(
                        ledger.ReleaseSpendRequest(event_id=event.id, request_id=fresh())
                    )

    await agree(50, 51)
    await tenant.spend(20)
    await agree(35, 36, 40, 41)
    await tenant.owner(agents_pb2.PauseAgentRequest(agent_id=tenant.agent_id))
    await agree(1, 51)
    await tenant.owner(pb.RemoveBudgetRuleRequest(agent_id=tenant.agent_id))
    await agree(1)
    await tenant.owner(projects_pb2.PauseProjectRequest(project_id=tenant.project_id))
    await agree(1)


async def test_an_agent_cannot_probe_the_balance_beyond_its_limits(shared: Pilot) -> None:
    """It is told about the vault only what a spend of its own would tell."""
    tenant = await shared.tenant(balance=10, per_tx_limit=5)

    within = await check(tenant.agent, tenant, 5)
    beyond = [await check(tenant.agent, tenant, amount) for amount in (6, 10, 11)]
    by_owner = await check(tenant.owner, tenant, 11)

    assert within[1]["INSUFFICIENT_BALANCE"]
    assert all(answer == beyond[0] for answer in beyond)
    assert "INSUFFICIENT_BALANCE" not in beyond[0][1]
    assert by_owner[1]["INSUFFICIENT_BALANCE"] is False


async def test_a_check_looks_through_holds_that_are_overdue(shared_database: str) -> None:
    """As a decision would settle them first."""
    clock = make.HandClock(NOON + timedelta(days=40))
    async with serving(shared_database, clock) as later:
        tenant = await later.tenant(balance=100, daily_limit=100)
        await tenant.hold(100)
        before = await check(tenant.owner, tenant, 1)
        clock.move(minutes=11)
        after = await check(tenant.owner, tenant, 100)
        spent = await tenant.spend(100)

    assert before[0] == "DAILY_LIMIT"
    assert after[0] == ""
    assert spent.status == ledger.EVENT_STATUS_CONFIRMED


# --- payments on chain ------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_chain(shared_database: str) -> AsyncIterator[Pilot]:
    """A server with a chain, which none of this asks."""
    async with serving(shared_database, solana_rpc_urls=make.NOWHERE) as running:
        yield running


async def payer(pilot: Pilot, chain_balance: int, credit: int = 0, **limits: int) -> Tenant:
    """A tenant whose agent may pay one wallet, out of so much on chain and so much besides."""
    tenant = await pilot.tenant(balance=credit, **limits)
    await make.deposit(pilot.app, VaultId(tenant.vault_id), chain_balance, fresh("deposit"))
    await tenant.owner(
        agents_pb2.AddRecipientRequest(agent_id=tenant.agent_id, address=make.WALLET)
    )
    return tenant


async def test_a_rule_says_whether_an_agent_may_pay_anybody(shared: Pilot) -> None:
    """Not unless it is said each time: setting a rule without it takes it back."""
    tenant = await shared.tenant(balance=0)

    async def set_rule(**fields: bool) -> bool:
        request = pb.SetBudgetRuleRequest(
            agent_id=tenant.agent_id, per_tx_limit=1, daily_limit=1, **fields
        )
        told: bool = (await tenant.owner(request)).budget_rule.any_recipient
        read = (await tenant.agent(pb.GetBudgetRuleRequest())).budget_rule
        assert read.any_recipient == told
        return told

    first = (await tenant.owner(pb.GetBudgetRuleRequest(agent_id=tenant.agent_id))).budget_rule

    assert not first.any_recipient
    assert await set_rule(any_recipient=True)
    assert not await set_rule()


async def test_a_check_of_a_payment_explains_every_rule_and_holds_nothing(
    on_chain: Pilot,
) -> None:
    """Those about the chain, too, each where it is decided."""
    tenant = await payer(on_chain, 80, 10, per_tx_limit=50, daily_limit=60, monthly_limit=70)
    before = await on_chain.dump()

    fits = await check(tenant.owner, tenant, 50, make.WALLET)
    stranger = await check(tenant.owner, tenant, 50, make.OTHER_WALLET)
    too_much = await check(tenant.owner, tenant, 91, make.WALLET)

    assert fits == ("", dict.fromkeys(RULES_OF_PAYMENTS, True))
    not_listed = fits[1] | {"RECIPIENT_NOT_ALLOWED": False}
    assert stranger == ("RECIPIENT_NOT_ALLOWED", not_listed)
    first_failed = RULES_OF_PAYMENTS.index("PER_TX_LIMIT")
    assert too_much == (
        "PER_TX_LIMIT",
        {rule: RULES_OF_PAYMENTS.index(rule) < first_failed for rule in RULES_OF_PAYMENTS},
    )
    assert await on_chain.dump() == before


async def test_a_check_and_a_payment_agree(on_chain: Pilot) -> None:
    """In every state that declines payments, and on both sides of what is on chain."""
    tenant = await payer(on_chain, 40, 15, per_tx_limit=1_000, daily_limit=1_000)
    vault_id = VaultId(tenant.vault_id)

    async def agree(expected: str, amount: int, recipient: str = make.WALLET) -> None:
        for caller in (tenant.owner, tenant.agent):
            checked, _ = await check(caller, tenant, amount, recipient)
            assert checked == expected
        event = await tenant.spend(amount, recipient=recipient)
        name = ledger.FailureReason.Name(event.failure_reason)
        assert name.removeprefix("FAILURE_REASON_") == (expected or "UNSPECIFIED")

    await agree("INSUFFICIENT_BALANCE", 56)
    await agree("INSUFFICIENT_CHAIN_BALANCE", 55)
    await agree("INSUFFICIENT_CHAIN_BALANCE", 41)
    await agree("", 30)
    await agree("INSUFFICIENT_CHAIN_BALANCE", 11)
    await agree("", 10)
    await agree("RECIPIENT_NOT_ALLOWED", 10**12, make.OTHER_WALLET)
    await tenant.owner(agents_pb2.PauseAgentRequest(agent_id=tenant.agent_id))
    await agree("AGENT_NOT_ACTIVE", 1, make.OTHER_WALLET)
    await tenant.owner(pb.RemoveBudgetRuleRequest(agent_id=tenant.agent_id))
    await agree("NO_BUDGET_RULE", 1)
    await make.stop(on_chain.app, vault_id, -5)
    await agree("VAULT_STOPPED", 1)
    await tenant.owner(projects_pb2.PauseProjectRequest(project_id=tenant.project_id))
    await agree("PROJECT_NOT_ACTIVE", 1)


async def test_an_agent_may_pay_anybody_that_its_rule_lets_it(on_chain: Pilot) -> None:
    tenant = await payer(on_chain, 40)
    anybody = pb.SetBudgetRuleRequest(
        agent_id=tenant.agent_id, per_tx_limit=50, daily_limit=50, any_recipient=True
    )

    before = await check(tenant.agent, tenant, 5, make.OTHER_WALLET)
    await tenant.owner(anybody)
    after = await check(tenant.agent, tenant, 5, make.OTHER_WALLET)

    assert (before[0], after[0]) == ("RECIPIENT_NOT_ALLOWED", "")
    paid = await tenant.spend(5, recipient=make.OTHER_WALLET)
    assert paid.status == ledger.EVENT_STATUS_PENDING


async def test_an_agent_cannot_probe_what_is_on_chain_beyond_its_limits(
    on_chain: Pilot,
) -> None:
    """It is told only what a payment would tell it, and never a figure of the vault."""
    tenant = await payer(on_chain, 10, 30, per_tx_limit=20)

    async def asked(caller: Client, amount: int) -> pb.CheckSpendResponse:
        answer: pb.CheckSpendResponse = await caller(
            pb.CheckSpendRequest(agent_id=tenant.agent_id, amount=amount, recipient=make.WALLET)
        )
        return answer

    def told(answer: pb.CheckSpendResponse) -> set[str]:
        names = {ledger.FailureReason.Name(rule.rule) for rule in answer.rules}
        return {name.removeprefix("FAILURE_REASON_") for name in names}

    beyond = [await asked(tenant.agent, amount) for amount in (21, 30, 31, 10**9)]
    within = await asked(tenant.agent, 11)
    by_owner = await asked(tenant.owner, 11)

    assert all(answer == beyond[0] for answer in beyond)
    assert told(beyond[0]).isdisjoint({"INSUFFICIENT_BALANCE", "INSUFFICIENT_CHAIN_BALANCE"})
    assert within.decline == ledger.Decline(reason=ledger.FAILURE_REASON_INSUFFICIENT_CHAIN_BALANCE)
    assert all(
        not rule.HasField("remaining") and not rule.HasField("held")
        for rule in within.rules
        if ledger.FailureReason.Name(rule.rule).endswith("_BALANCE")
    )
    assert by_owner.decline.remaining == 10
    assert told(by_owner) == {*RULES_OF_PAYMENTS} - {"MONTHLY_LIMIT"}


async def test_a_check_of_a_payment_is_refused_as_the_payment_would_be(
    shared: Pilot, on_chain: Pilot
) -> None:
    """Without a chain, and for what is no wallet: its answer would be about nothing."""
    tenant = await shared.tenant()
    here = on_chain.nobody.with_credential(tenant.owner.credential)
    account = addresses.token_account(make.WALLET, make.OTHER_WALLET)

    def requests(recipient: str) -> list[Message]:
        agent_id = tenant.agent_id
        return [
            pb.CheckSpendRequest(agent_id=agent_id, amount=1, recipient=recipient),
            ledger.SpendRequest(
                agent_id=agent_id, amount=1, recipient=recipient, request_id=fresh()
            ),
        ]

    without = [await refusal(tenant.owner(each)) for each in requests(make.WALLET)]
    no_wallet = [await refusal(here(each)) for each in requests(account)]

    assert [each.reason for each in without] == ["RECIPIENT_UNSUPPORTED"] * 2
    assert [each.fields for each in no_wallet] == [["recipient"]] * 2
