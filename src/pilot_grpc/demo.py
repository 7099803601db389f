"""The demo: money on Solana, walked through a server's public API and its chain's JSON-RPC.

It works in a project of its own, which it makes the first time, so that the project that the
README walks through stays as it is. It can be run again and again: each time the faucet pays
anew, and a wallet that was made just now is paid.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from pilot_grpc import seed
from pilot_grpc.client import CHANNEL_OPTIONS, follow
from pilot_grpc.gen.pilot.v1 import (
    accounts_pb2,
    accounts_pb2_grpc,
    agents_pb2,
    agents_pb2_grpc,
    budgets_pb2,
    budgets_pb2_grpc,
    ledger_pb2,
    ledger_pb2_grpc,
    projects_pb2,
    projects_pb2_grpc,
    vaults_pb2,
    vaults_pb2_grpc,
)
from pilot_grpc.probe import Target
from pilot_grpc.solana.faults import RpcError
from pilot_grpc.solana.localnet import client as localnet_client

PROJECT: Final = "Payments"
DESCRIPTION: Final = "What `pilot demo` works in."
AGENT: Final = "Payer"
CLUSTER: Final = "embedded"

USDC: Final = seed.USDC
CENT: Final = seed.CENT
DEPOSIT: Final = 25 * USDC
PAYMENT: Final = 125 * CENT
PER_TX_LIMIT: Final = 5 * USDC
DAILY_LIMIT: Final = 1_000 * USDC

CALL_SECONDS: Final = 30.0
# What the embedded chain does within two seconds.
WAIT_SECONDS: Final = 60.0
PAGE_MAX: Final = 500

Say = Callable[[str], None]


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


@dataclass(slots=True)
class Checks:
    """What must hold, and how much of it does not."""

    say: Say
    made: int = 0
    failed: int = 0

    def expect(self, what: str, found: object, expected: object) -> None:
        """Say whether something is as it must be."""
        self.made += 1
        if found == expected:
            self.say(f"  ok     {what}")
        else:
            self.failed += 1
            self.say(f"  WRONG  {what}: it is {found}, and should be {expected}")


async def walk(target: Target, chain_url: str, say: Say) -> bool:
    """Walk through all of it; say whether every check holds. Raises DemoError.

    The chain must be the one that the server works on.
    """
    checks = Checks(say)
    chain = localnet_client.Client(chain_url)
    try:
        async with _channel(target) as channel:
            say(f"The server at {target.address}, and the chain at {chain_url}.")
            owner = await _sign_in(channel)
            await _Walk(channel, owner, chain, checks).run()
    except grpc.aio.AioRpcError as error:
        raise DemoError(f"the server says {error.code().name}: {error.details()}") from None
    except RpcError as fault:
        raise DemoError(f"the chain has no answer: {fault}") from None
    finally:
        await chain.close()
    if checks.failed:
        say(f"{checks.failed} of {checks.made} checks do not hold.")
    else:
        say(f"All {checks.made} checks hold.")
    return not checks.failed


@asynccontextmanager
async def _channel(target: Target) -> AsyncIterator[grpc.aio.Channel]:
    options = [*CHANNEL_OPTIONS, *target.options]
    if target.credentials is None:
        channel = grpc.aio.insecure_channel(target.address, options=options)
    else:
        channel = grpc.aio.secure_channel(target.address, target.credentials, options=options)
    async with channel:
        yield channel


async def _sign_in(channel: grpc.aio.Channel) -> _Caller:
    """Become the demo user. Raises DemoError where there is none."""
    sign_in = accounts_pb2_grpc.AccountServiceStub(channel).SignIn
    request = accounts_pb2.SignInRequest(email=seed.EMAIL, password=seed.PASSWORD)
    try:
        answer = await sign_in(request, timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        text = f"{seed.EMAIL} cannot sign in: `pilot db reset` makes the demo user new"
        raise DemoError(text) from None
    return _Caller(answer.session_token)


@dataclass(frozen=True, slots=True)
class _Caller:
    """Calls with a credential."""

    credential: str = field(repr=False)

    async def ask(self, rpc: Callable[..., Any], request: object) -> Any:
        metadata = (("authorization", f"Bearer {self.credential}"),)
        return await rpc(request, metadata=metadata, timeout=CALL_SECONDS)


class _Stream:
    """What happens in a vault, shown as it happens."""

    def __init__(
        self, responses: AsyncIterator[ledger_pb2.SubscribeEventsResponse], say: Say
    ) -> None:
        """Take the responses of a stream of that vault."""
        self._responses = responses
        self._say = say
        self._changes: deque[ledger_pb2.Change] = deque()

    async def begin(self) -> None:
        """Wait for the first response: from then on nothing is left out."""
        await self._receive()

    async def final(self, is_wanted: Callable[[ledger_pb2.Event], bool]) -> ledger_pb2.Event:
        """Show what happens until an event is confirmed or failed. Raises DemoError."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    while self._changes:
                        change = self._changes.popleft()
                        self._say(_described(change))
                        event = change.event
                        is_final = event.status != ledger_pb2.EVENT_STATUS_PENDING
                        if is_wanted(event) and is_final:
                            return event
                    await self._receive()
        except TimeoutError:
            text = f"it did not happen within {WAIT_SECONDS:g} seconds: look at the server's log"
            raise DemoError(text) from None

    async def _receive(self) -> None:
        response = await anext(self._responses)
        self._changes.extend(response.changes)


class _Walk:
    """The steps of the demo, in their order."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        owner: _Caller,
        chain: localnet_client.Client,
        checks: Checks,
    ) -> None:
        """Take who owns the money, and the chain that it is on."""
        self._channel = channel
        self._owner = owner
        self._chain = chain
        self._checks = checks
        self._say = checks.say
        self._agents = agents_pb2_grpc.AgentServiceStub(channel)
        self._budgets = budgets_pb2_grpc.BudgetServiceStub(channel)
        self._ledger = ledger_pb2_grpc.LedgerServiceStub(channel)
        self._projects = projects_pb2_grpc.ProjectServiceStub(channel)
        self._vaults = vaults_pb2_grpc.VaultServiceStub(channel)

    async def run(self) -> None:
        """Go through all steps. Raises DemoError, RpcError and what the calls raise."""
        await self._refuse_other_clusters()
        project = await self._project()
        before = await self._vault(project.vault_id)
        address = (await self._deposit_address(project.vault_id)).address
        self._say(f"Signed in as {seed.EMAIL}. The vault of the project {PROJECT} is at {address},")
        self._say(f"and holds {money(before.balance)}.\n")
        stream = await self._stream(project.vault_id)
        await self._deposit(stream, address)
        agent_id = await self._agent(project.id)
        recipient = localnet_client.new_wallet()
        await self._pay(stream, agent_id, recipient)
        await self._look(before, recipient)

    async def _refuse_other_clusters(self) -> None:
        """Do nothing where money may be worth something."""
        try:
            cluster = (await self._deposit_address(seed.VAULT)).cluster
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise DemoError("the server works on no chain") from None
            if error.code() is grpc.StatusCode.NOT_FOUND:
                text = "the demo project has gone: `pilot db reset` makes it new"
                raise DemoError(text) from None
            raise
        if cluster != CLUSTER:
            raise DemoError(f"the server works on {cluster}: the demo is for the embedded chain")

    async def _deposit_address(self, vault_id: str) -> vaults_pb2.GetDepositAddressResponse:
        request = vaults_pb2.GetDepositAddressRequest(vault_id=vault_id)
        found: vaults_pb2.GetDepositAddressResponse = await self._owner.ask(
            self._vaults.GetDepositAddress, request
        )
        return found

    async def _project(self) -> projects_pb2.Project:
        """Find the demo's own project, or make it."""
        request = projects_pb2.ListProjectsRequest(page_size=PAGE_MAX)
        listed: projects_pb2.ListProjectsResponse = await self._owner.ask(
            self._projects.ListProjects, request
        )
        for project in listed.projects:
            if project.name == PROJECT and project.status == projects_pb2.PROJECT_STATUS_ACTIVE:
                return project
        creation = projects_pb2.CreateProjectRequest(name=PROJECT, description=DESCRIPTION)
        made: projects_pb2.CreateProjectResponse = await self._owner.ask(
            self._projects.CreateProject, creation
        )
        return made.project

    async def _vault(self, vault_id: str) -> vaults_pb2.Vault:
        request = vaults_pb2.GetVaultRequest(vault_id=vault_id)
        found: vaults_pb2.GetVaultResponse = await self._owner.ask(self._vaults.GetVault, request)
        return found.vault

    async def _stream(self, vault_id: str) -> _Stream:
        start = ledger_pb2.STREAM_START_LATEST
        request = ledger_pb2.SubscribeEventsRequest(vault_id=vault_id, start=start)
        stream = _Stream(follow(self._channel, self._owner.credential, request), self._say)
        await stream.begin()
        return stream

    async def _deposit(self, stream: _Stream, address: str) -> None:
        """The faucet pays the vault; what the chain shows becomes funding."""
        signature = await self._chain.faucet(address, DEPOSIT)
        self._say(f"The faucet sends it {money(DEPOSIT)}, with the transaction {signature}:")
        deposit = await stream.final(lambda event: event.tx_hash == signature)
        self._checks.expect("the deposit is confirmed", _outcome(deposit), "confirmed")
        self._checks.expect("its amount is what was sent", deposit.amount, DEPOSIT)

    async def _agent(self, project_id: str) -> str:
        """Find the agent that pays, or make it, and see to it that it has a rule."""
        request = agents_pb2.ListAgentsRequest(project_id=project_id, page_size=PAGE_MAX)
        listed = await self._owner.ask(self._agents.ListAgents, request)
        found = [agent.id for agent in listed.agents if agent.name == AGENT]
        if not found:
            creation = agents_pb2.CreateAgentRequest(project_id=project_id, name=AGENT)
            found = [(await self._owner.ask(self._agents.CreateAgent, creation)).agent.id]
        rule = budgets_pb2.SetBudgetRuleRequest(
            agent_id=found[0], per_tx_limit=PER_TX_LIMIT, daily_limit=DAILY_LIMIT
        )
        await self._owner.ask(self._budgets.SetBudgetRule, rule)
        return str(found[0])

    async def _pay(self, stream: _Stream, agent_id: str, recipient: str) -> None:
        """The agent pays whom it may, and is declined whom it may not."""
        issue = agents_pb2.IssueAgentKeyRequest(agent_id=agent_id)
        payer = _Caller((await self._owner.ask(self._agents.IssueAgentKey, issue)).secret)
        listing = agents_pb2.AddRecipientRequest(
            agent_id=agent_id, address=recipient, label="Made by pilot demo"
        )
        await self._owner.ask(self._agents.AddRecipient, listing)
        self._say(f"\nThe agent {AGENT} has a new key, and may pay {recipient}. It pays it:")
        paid = await self._spend(payer, stream, recipient)
        self._checks.expect("the payment is confirmed", _outcome(paid), "confirmed")
        self._say(f"         its transaction is {paid.tx_hash}")
        stranger = localnet_client.new_wallet()
        self._say(f"\nIt tries to pay a stranger, {stranger}:")
        declined = await self._spend(payer, stream, stranger)
        expected = "failed, RECIPIENT_NOT_ALLOWED"
        self._checks.expect("it is declined, and nothing moves", _outcome(declined), expected)
        # Lists are not endless, and nobody is paid here again.
        removal = agents_pb2.RemoveRecipientRequest(agent_id=agent_id, address=recipient)
        await self._owner.ask(self._agents.RemoveRecipient, removal)

    async def _spend(self, payer: _Caller, stream: _Stream, recipient: str) -> ledger_pb2.Event:
        request = ledger_pb2.SpendRequest(
            amount=PAYMENT, recipient=recipient, request_id=f"demo-{secrets.token_hex(8)}"
        )
        spend = (await payer.ask(self._ledger.Spend, request)).event
        return await stream.final(lambda event: event.id == spend.id)

    async def _look(self, before: vaults_pb2.Vault, recipient: str) -> None:
        """Ledger and chain agree, to the unit."""
        self._say("\nWhat the chain and the ledger say now:")
        received = await self._chain.units(recipient)
        self._checks.expect(f"the recipient has {money(received)}", received, PAYMENT)
        after = await self._vault(before.id)
        gained = DEPOSIT - PAYMENT
        for what, was, now in (
            ("may still be spent", before.balance, after.balance),
            ("is on chain", before.chain_balance, after.chain_balance),
        ):
            self._checks.expect(f"of the vault {money(now)} {what}", now, was + gained)
        await self._reconcile(before.id)
        await self._verify(before.id)

    async def _reconcile(self, vault_id: str) -> None:
        request = vaults_pb2.ReconcileVaultRequest(vault_id=vault_id)
        compared = await self._owner.ask(self._vaults.ReconcileVault, request)
        drift = compared.found_amount - compared.expected_amount
        text = f"at slot {compared.slot} its account holds {money(compared.found_amount)}, drift 0"
        self._checks.expect(text, (drift, compared.HasField("drift")), (0, False))

    async def _verify(self, vault_id: str) -> None:
        """Recount the vault's ledger, page by page."""
        request = ledger_pb2.VerifyLedgerRequest(vault_id=vault_id)
        rows = 0
        while True:
            page = await self._owner.ask(self._ledger.VerifyLedger, request)
            rows += page.verified_count
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        wrong = str(page.discrepancy).split() if page.HasField("discrepancy") else []
        self._checks.expect(f"VerifyLedger recounted {rows} rows, and all agree", wrong, [])


def money(units: int) -> str:
    """Write minor units as dollars, and as what they are: $1.25 (1250000)."""
    whole, part = divmod(abs(units), USDC)
    places = f"{part:06}".rstrip("0").ljust(2, "0")
    return f"{'-' if units < 0 else ''}${whole:,}.{places} ({units})"


def _described(change: ledger_pb2.Change) -> str:
    """Write a change as a line."""
    event, figures = change.event, change.vault_figures
    if not change.HasField("event"):
        return f"  #{change.revision}  drift {money(change.drift.amount)}"
    kind = ledger_pb2.EventKind.Name(event.kind).removeprefix("EVENT_KIND_").lower()
    return (
        f"  #{change.revision}  {kind} {money(event.amount)} {_outcome(event)};"
        f" vault {money(figures.balance)}"
    )


def _outcome(event: ledger_pb2.Event) -> str:
    """Write what has become of an event, and why, if it failed."""
    status = ledger_pb2.EventStatus.Name(event.status).removeprefix("EVENT_STATUS_").lower()
    if event.status != ledger_pb2.EVENT_STATUS_FAILED:
        return status
    reason = ledger_pb2.FailureReason.Name(event.failure_reason)
    return f"{status}, {reason.removeprefix('FAILURE_REASON_')}"
