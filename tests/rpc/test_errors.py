"""Every error as its caller reads it: the status, the metadata, and when to try again."""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from pilot_grpc.domain.ids import VaultId
from pilot_grpc.domain.vaults import Drift
from pilot_grpc.gen.pilot.v1 import accounts_pb2, agents_pb2, projects_pb2, vaults_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from tests import make
from tests.rpc.protos import told_of_errors
from tests.rpc.serving import Pilot, Refusal, Tenant, fresh, refusal, serving

Provoke = Callable[[Pilot, Tenant], Awaitable[object]]

# Under which settings an error comes; without them under any.
SETTINGS: dict[str, dict[str, Any]] = {
    "SIGN_UP_DISABLED": {"sign_up_enabled": False},
    "CREDITS_DISABLED": {"allow_credits": False},
    "OPEN_HOLDS_LIMIT": {"open_holds_limit": 1},
    "DECLINES_LIMITED": {"declines_per_minute": 1},
    "CHANGES_TRIMMED": {"changes_kept_count": 1},
    "VAULT_STOPPED": {"solana_rpc_urls": make.NOWHERE},
    "EXCEEDS_VAULT": {"solana_rpc_urls": make.NOWHERE},
    "TRANSFERS_PENDING": {"solana_rpc_urls": make.NOWHERE},
    "CHAIN_UNAVAILABLE": {"solana_rpc_urls": make.NOWHERE},
}

# What a failure of the server itself looks like is proven in test_calls.py and test_server.py,
# and how a stream ends in test_stream.py.
FAILURES = {
    *("OVERLOADED", "DEADLINE_EXCEEDED", "DATABASE_UNAVAILABLE", "SERVER_DRAINING", "INTERNAL"),
    *("STREAM_TOO_OLD", "SUBSCRIBER_STALLED"),
}


async def invalid_request(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.owner(pb.GetEventRequest(event_id="?"))


async def credential_missing(pilot: Pilot, tenant: Tenant) -> None:
    await pilot.nobody(accounts_pb2.WhoAmIRequest())


async def credential_invalid(pilot: Pilot, tenant: Tenant) -> None:
    await pilot.nobody.with_credential("ps_none")(accounts_pb2.WhoAmIRequest())


async def sign_in_failed(pilot: Pilot, tenant: Tenant) -> None:
    await pilot.nobody(accounts_pb2.SignInRequest(email=f"{fresh()}@b.de", password="wrong"))


async def permission_denied(pilot: Pilot, tenant: Tenant) -> None:
    await (await tenant.api_key("read"))(projects_pb2.CreateProjectRequest(name="Project"))


async def not_found(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.owner(pb.GetEventRequest(event_id="cmissing"))


async def request_id_reused(pilot: Pilot, tenant: Tenant) -> None:
    for amount in (1, 2):
        await tenant.spend(amount, request_id="same")


async def email_taken(pilot: Pilot, tenant: Tenant) -> None:
    request = accounts_pb2.SignUpRequest(
        email=f"{fresh()}@example.com", password="long enough", name="Ann"
    )
    for _ in range(2):
        await pilot.nobody(request)


async def tx_hash_taken(pilot: Pilot, tenant: Tenant) -> None:
    for _ in range(2):
        await tenant.owner(
            pb.RecordFundingRequest(
                vault_id=tenant.vault_id, amount=1, request_id=fresh(), tx_hash="9" * 64
            )
        )


async def sign_up_disabled(pilot: Pilot, tenant: Tenant) -> None:
    await pilot.nobody(
        accounts_pb2.SignUpRequest(email="a@example.com", password="long enough", name="Ann")
    )


async def password_wrong(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.owner(
        accounts_pb2.ChangePasswordRequest(current_password="wrong", new_password="long enough")
    )


async def project_archived(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.owner(projects_pb2.ArchiveProjectRequest(project_id=tenant.project_id))
    await tenant.owner(agents_pb2.CreateAgentRequest(project_id=tenant.project_id, name="Agent"))


async def project_not_archived(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.owner(projects_pb2.DeleteProjectRequest(project_id=tenant.project_id))


async def project_not_empty(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.owner(projects_pb2.ArchiveProjectRequest(project_id=tenant.project_id))
    await tenant.owner(projects_pb2.DeleteProjectRequest(project_id=tenant.project_id))


async def agent_has_no_key(pilot: Pilot, tenant: Tenant) -> None:
    for _ in range(2):
        await tenant.owner(agents_pb2.RevokeAgentKeyRequest(agent_id=tenant.agent_id))


async def hold_not_open(pilot: Pilot, tenant: Tenant) -> None:
    spend = await tenant.spend(1)
    await tenant.agent(pb.ReleaseSpendRequest(event_id=spend.id, request_id=fresh()))


async def capture_exceeds_hold(pilot: Pilot, tenant: Tenant) -> None:
    hold = await tenant.hold(1)
    await tenant.agent(pb.CaptureSpendRequest(event_id=hold.id, amount=2, request_id=fresh()))


async def open_holds_limit(pilot: Pilot, tenant: Tenant) -> None:
    for _ in range(2):
        await tenant.hold(1)


async def spend_not_refundable(pilot: Pilot, tenant: Tenant) -> None:
    hold = await tenant.hold(1)
    await tenant.owner(pb.RefundRequest(event_id=hold.id, amount=1, request_id=fresh()))


async def refund_exceeds_spend(pilot: Pilot, tenant: Tenant) -> None:
    spend = await tenant.spend(1)
    await tenant.owner(pb.RefundRequest(event_id=spend.id, amount=2, request_id=fresh()))


async def funding_not_pending(pilot: Pilot, tenant: Tenant) -> None:
    spend = await tenant.spend(1)
    await tenant.owner(pb.ConfirmFundingRequest(event_id=spend.id, request_id=fresh()))


async def credits_disabled(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.fund(1)


async def balance_too_large(pilot: Pilot, tenant: Tenant) -> None:
    await pilot.pool.execute(
        "UPDATE vaults SET balance = 1000000000000000000 WHERE id = $1", tenant.vault_id
    )
    await tenant.fund(1)


async def recipient_unsupported(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.spend(1, recipient=make.WALLET)


def withdrawal(tenant: Tenant) -> vaults_pb2.WithdrawRequest:
    return vaults_pb2.WithdrawRequest(
        vault_id=tenant.vault_id, amount=1, recipient=make.WALLET, request_id=fresh()
    )


async def acknowledge(tenant: Tenant, drift: Drift, amount: int) -> None:
    await tenant.owner(
        vaults_pb2.AcknowledgeDriftRequest(
            vault_id=tenant.vault_id, drift_id=drift.id, amount=amount, request_id=fresh()
        )
    )


async def vault_stopped(pilot: Pilot, tenant: Tenant) -> None:
    await make.stop(pilot.app, VaultId(tenant.vault_id), -5)
    await tenant.owner(withdrawal(tenant))


async def exceeds_vault(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.owner(withdrawal(tenant))


async def drift_not_open(pilot: Pilot, tenant: Tenant) -> None:
    drift = await make.stop(pilot.app, VaultId(tenant.vault_id), -5)
    await make.stop(pilot.app, VaultId(tenant.vault_id), 0)
    await acknowledge(tenant, drift, -5)


async def drift_changed(pilot: Pilot, tenant: Tenant) -> None:
    drift = await make.stop(pilot.app, VaultId(tenant.vault_id), -5)
    await acknowledge(tenant, drift, -4)


async def transfers_pending(pilot: Pilot, tenant: Tenant) -> None:
    await make.deposit(pilot.app, VaultId(tenant.vault_id), 5, "deposit")
    await tenant.owner(withdrawal(tenant))
    drift = await make.stop(pilot.app, VaultId(tenant.vault_id), -1)
    await acknowledge(tenant, drift, -1)


async def chain_unavailable(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.owner(vaults_pb2.ReconcileVaultRequest(vault_id=tenant.vault_id))


async def declines_limited(pilot: Pilot, tenant: Tenant) -> None:
    for _ in range(2):
        await tenant.spend(10**15)


async def sign_in_limited(pilot: Pilot, tenant: Tenant) -> None:
    email = f"{fresh()}@example.com"
    for _ in range(10):
        await refusal(pilot.nobody(accounts_pb2.SignInRequest(email=email, password="wrong")))
    await pilot.nobody(accounts_pb2.SignInRequest(email=email, password="wrong"))


async def webhook_not_set(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.owner(agents_pb2.SendTestWebhookRequest(agent_id=tenant.agent_id))


async def webhook_needs_secret(pilot: Pilot, tenant: Tenant) -> None:
    request = agents_pb2.CreateAgentRequest(
        project_id=tenant.project_id, name="Agent", webhook_url="https://example.com/hook"
    )
    agent = (await tenant.owner(request)).agent
    await tenant.owner(agents_pb2.SendTestWebhookRequest(agent_id=agent.id))


async def resume_token_invalid(pilot: Pilot, tenant: Tenant) -> None:
    await tenant.owner(pb.SubscribeEventsRequest(resume_token="none"))


async def resume_token_of_another_scope(pilot: Pilot, tenant: Tenant) -> None:
    listed = await tenant.owner(pb.ListEventsRequest())
    await tenant.agent(pb.SubscribeEventsRequest(resume_token=listed.resume_token))


async def changes_trimmed(pilot: Pilot, tenant: Tenant) -> None:
    listed = await tenant.owner(pb.ListEventsRequest())
    for _ in range(3):
        await tenant.spend(1)
    await pilot.app.trimming.trim()
    await tenant.owner(pb.SubscribeEventsRequest(resume_token=listed.resume_token))


async def history_undone(pilot: Pilot, tenant: Tenant) -> None:
    listed = await tenant.owner(pb.ListEventsRequest())
    await pilot.pool.execute("UPDATE vaults SET digest = 'another'")
    await tenant.owner(pb.SubscribeEventsRequest(resume_token=listed.resume_token))


async def quota_exceeded(pilot: Pilot, tenant: Tenant) -> None:
    for _ in range(101):
        await tenant.api_key("read")


PROVOKED: list[Provoke] = [
    *(invalid_request, credential_missing, credential_invalid, sign_in_failed),
    *(permission_denied, not_found, request_id_reused, email_taken, tx_hash_taken),
    *(sign_up_disabled, password_wrong, project_archived, project_not_archived),
    *(project_not_empty, agent_has_no_key, hold_not_open, capture_exceeds_hold),
    *(open_holds_limit, spend_not_refundable, refund_exceeds_spend, funding_not_pending),
    *(credits_disabled, balance_too_large, recipient_unsupported, declines_limited),
    *(webhook_not_set, webhook_needs_secret),
    *(resume_token_invalid, resume_token_of_another_scope, changes_trimmed, history_undone),
    *(sign_in_limited, quota_exceeded),
    *(vault_stopped, exceeds_vault, drift_not_open, drift_changed, transfers_pending),
    chain_unavailable,
]


def must_be_as_documented(found: Refusal, reason: str) -> None:
    told = told_of_errors()[reason]
    _, _, metadata = told.partition("Metadata: ")
    assert (found.code, found.reason) == (told.split(":")[0], reason)
    assert set(found.metadata) == set(re.findall(r"`(\w+)`(?=[,;.])", metadata))
    assert (found.retry_seconds is not None) == ("RetryInfo" in told)
    assert bool(found.violations) == ("BadRequest" in told)
    assert found.text


def test_no_error_is_left_out() -> None:
    provoked = {provoke.__name__.upper() for provoke in PROVOKED}

    assert provoked | FAILURES | {"HOLD_EXPIRED"} == set(told_of_errors())


@pytest.mark.parametrize("provoke", PROVOKED, ids=lambda each: each.__name__)
async def test_an_error_is_as_the_protos_say(database: str, provoke: Provoke) -> None:
    """Its status, the keys of its metadata, and whether it says when to try again."""
    reason = provoke.__name__.upper()
    async with serving(database, **SETTINGS.get(reason, {})) as pilot:
        tenant = await pilot.tenant(balance=0 if reason == "CREDITS_DISABLED" else 100)

        found = await refusal(provoke(pilot, tenant))

    must_be_as_documented(found, reason)


async def test_a_hold_that_is_over_cannot_be_captured(database: str) -> None:
    """At the very moment of its expiry, swept or not."""
    clock = make.HandClock(datetime(2031, 1, 1, tzinfo=UTC))
    async with serving(database, clock) as pilot:
        tenant = await pilot.tenant(balance=100)
        hold = await tenant.hold(5)
        clock.move(minutes=10)
        capture = pb.CaptureSpendRequest(event_id=hold.id, amount=5, request_id=fresh())

        found = [await refusal(tenant.agent(capture)) for _ in range(2)]

    for each in found:
        must_be_as_documented(each, "HOLD_EXPIRED")
        assert datetime.fromisoformat(each.metadata["expire_time"]) == clock.now
