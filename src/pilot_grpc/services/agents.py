"""Agents and their keys. What a decision reads of an agent changes under the vault's lock."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pilot_grpc import errors
from pilot_grpc.db import agents as agents_db
from pilot_grpc.db import budgets as budgets_db
from pilot_grpc.db import ledger as ledger_db
from pilot_grpc.db import projects as projects_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db import webhooks as webhooks_db
from pilot_grpc.db.agents import Home
from pilot_grpc.db.connection import Connection, Database
from pilot_grpc.domain.accounts import Caller, CredentialKind
from pilot_grpc.domain.agents import (
    AGENTS_PER_PROJECT_MAX,
    RECIPIENTS_PER_AGENT_MAX,
    Agent,
    AgentStatus,
    Recipient,
    status_after_setup,
)
from pilot_grpc.domain.ids import AgentId, ProjectId, UserId
from pilot_grpc.domain.projects import ProjectStatus
from pilot_grpc.domain.vaults import Vault
from pilot_grpc.domain.webhooks import Webhook, WebhookState
from pilot_grpc.services.books import Books
from pilot_grpc.services.chain import must_be_wallet
from pilot_grpc.services.credentials import hash_secret, new_secret
from pilot_grpc.services.projects import lock_own_project
from pilot_grpc.services.requests import Once

HOMES_REMEMBERED_MAX: Final = 100_000


class Homes:
    """Where agents belong: their vault, project and user, remembered because they never move.

    A deleted agent has a home, too, and one of a deleted project may be remembered; a
    decision finds it missing under the vault's lock.
    """

    def __init__(self, database: Database) -> None:
        """Take the database to read from."""
        self._database = database
        self._known: OrderedDict[AgentId, Home] = OrderedDict()

    async def of(self, caller: Caller, agent_ids: Collection[AgentId]) -> dict[AgentId, Home]:
        """Return the homes of agents. Raises NotFound for one that is not the caller's."""
        unknown = [agent_id for agent_id in agent_ids if agent_id not in self._known]
        if unknown:
            async with self._database.transaction() as conn:
                self._known.update(await agents_db.select_homes(conn, unknown))
        homes = {}
        for agent_id in agent_ids:
            home = self._known.get(agent_id)
            if home is None or home.user_id != caller.user_id:
                raise errors.NotFound(resource="agent", id=agent_id)
            homes[agent_id] = home
        while len(self._known) > HOMES_REMEMBERED_MAX:
            self._known.popitem(last=False)
        return homes


@dataclass(frozen=True, slots=True)
class Agents:
    """What owners do with their agents.

    `must_be_callable` raises InvalidRequest for a webhook_url that deliveries would refuse.
    """

    database: Database
    books: Books
    new_id: Callable[[], str]
    must_be_callable: Callable[[str], None]

    async def create(
        self,
        once: Once,
        project_id: ProjectId,
        name: str,
        provider: str | None,
        model: str | None,
        webhook_url: str | None,
    ) -> Agent:
        """Add an agent to a project.

        Raises NotFound, ProjectArchived, QuotaExceeded, RequestIdReused, InvalidRequest.
        """
        if webhook_url is not None:
            self.must_be_callable(webhook_url)
        async with self.database.transaction() as conn:

            async def make() -> Agent:
                vault = await self._must_take_agents(conn, project_id, once.user_id)
                agent_id = AgentId(self.new_id())
                await agents_db.insert_agent(
                    conn, agent_id, project_id, name, provider, model, webhook_url
                )
                if webhook_url is not None:
                    await webhooks_db.insert_webhook(conn, agent_id, vault)
                return await own_agent(conn, agent_id, once.user_id)

            agent, _ = await once.make(conn, make, _read_agent)
        return agent

    async def _must_take_agents(
        self, conn: Connection, project_id: ProjectId, user_id: UserId
    ) -> Vault:
        project, vault = await lock_own_project(conn, project_id, user_id)
        if project.status is ProjectStatus.ARCHIVED:
            raise errors.ProjectArchived
        if await agents_db.count_agents(conn, project_id) >= AGENTS_PER_PROJECT_MAX:
            raise errors.QuotaExceeded(resource="agent", limit=AGENTS_PER_PROJECT_MAX)
        return vault

    async def get(self, caller: Caller, agent_id: AgentId) -> Agent:
        """Read an agent. Raises NotFound."""
        async with self.database.transaction() as conn:
            return await own_agent(conn, agent_id, caller.user_id)

    async def list(
        self,
        caller: Caller,
        project_id: ProjectId,
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> list[Agent]:
        """List a project's agents, newest first. Raises NotFound."""
        async with self.database.transaction() as conn:
            if await projects_db.select_project(conn, project_id, caller.user_id) is None:
                raise errors.NotFound(resource="project", id=project_id)
            return await agents_db.select_agents(conn, project_id, after, limit)

    async def update(
        self, caller: Caller, agent_id: AgentId, changes: dict[str, str | None]
    ) -> Agent:
        """Change name, provider, model or webhook_url. Raises NotFound, InvalidRequest."""
        url = changes.get("webhook_url")
        if url is not None:
            self.must_be_callable(url)
        async with self.database.transaction() as conn:
            agent, vault = await lock_agent_and_vault(conn, agent_id, caller.user_id)
            values = {
                "provider": agent.provider,
                "model": agent.model,
                "webhook_url": agent.webhook_url,
                **changes,
            }
            name = values.pop("name", None) or agent.name
            await agents_db.update_agent(conn, agent_id, name, **values)
            if values["webhook_url"] != agent.webhook_url:
                await webhooks_db.insert_webhook(conn, agent_id, vault)
                begins_at = vault if agent.webhook_url is None else None
                await webhooks_db.restart_webhook(conn, agent_id, begins_at)
            return await own_agent(conn, agent_id, caller.user_id)

    async def pause(self, caller: Caller, agent_id: AgentId) -> Agent:
        """Pause an agent; nothing is approved once this returns."""
        return await self._set_status(caller, agent_id, AgentStatus.PAUSED)

    async def flag(self, caller: Caller, agent_id: AgentId) -> Agent:
        """Mark an agent as faulty; nothing is approved once this returns."""
        return await self._set_status(caller, agent_id, AgentStatus.ERROR)

    async def _set_status(self, caller: Caller, agent_id: AgentId, status: AgentStatus) -> Agent:
        async with self.database.transaction() as conn:
            await lock_own_agent(conn, agent_id, caller.user_id)
            await agents_db.update_agent_status(conn, agent_id, status)
            return await own_agent(conn, agent_id, caller.user_id)

    async def resume(self, caller: Caller, agent_id: AgentId) -> Agent:
        """Clear a pause or an error: active with a key and a rule, else in need of setup."""
        async with self.database.transaction() as conn:
            agent = await lock_own_agent(conn, agent_id, caller.user_id)
            if agent.status in {AgentStatus.PAUSED, AgentStatus.ERROR}:
                rule = await budgets_db.select_rule(conn, agent_id, caller.user_id)
                status = status_after_setup(
                    AgentStatus.NEEDS_SETUP, has_key=agent.has_key, has_rule=rule is not None
                )
                await agents_db.update_agent_status(conn, agent_id, status)
            return await own_agent(conn, agent_id, caller.user_id)

    async def delete(self, caller: Caller, agent_id: AgentId) -> None:
        """Take an agent's key, give back its holds, and hide it. Raises NotFound."""
        async with self.database.transaction() as conn:
            agent = await own_agent(conn, agent_id, caller.user_id)
            vault = await vaults_db.lock_vault_of_project(conn, agent.project_id)
            await own_agent(conn, agent_id, caller.user_id)
            if vault is not None:
                book = await self.books.open(conn, [vault.id])
                holds = await ledger_db.select_open_holds_of_agent(conn, vault.id, agent_id)
                if agent_id not in book.spenders:
                    book.spenders |= await agents_db.select_spenders(conn, [agent_id])
                book.release_deleted(hold for hold in holds if hold.id not in book.changed)
                await self.books.write(conn, book)
                final = book.vaults[vault.id].revision
                await webhooks_db.finish_webhook(conn, agent_id, final)
            await agents_db.delete_agent(conn, agent_id)

    async def issue_key(self, caller: Caller, agent_id: AgentId) -> tuple[Agent, str]:
        """Give an agent a new key; the one before stops working. Raises NotFound."""
        secret = new_secret(CredentialKind.AGENT_KEY)
        async with self.database.transaction() as conn:
            agent = await lock_own_agent(conn, agent_id, caller.user_id)
            rule = await budgets_db.select_rule(conn, agent_id, caller.user_id)
            status = status_after_setup(agent.status, has_key=True, has_rule=rule is not None)
            await agents_db.update_agent_key(conn, agent_id, hash_secret(secret), status)
            return await own_agent(conn, agent_id, caller.user_id), secret

    async def revoke_key(self, caller: Caller, agent_id: AgentId) -> Agent:
        """Take an agent's key. Raises NotFound, AgentHasNoKey."""
        async with self.database.transaction() as conn:
            agent = await lock_own_agent(conn, agent_id, caller.user_id)
            if not agent.has_key:
                raise errors.AgentHasNoKey
            await agents_db.update_agent_key(conn, agent_id, None, agent.status)
            return await own_agent(conn, agent_id, caller.user_id)

    async def add_recipient(
        self, caller: Caller, agent_id: AgentId, address: str, label: str | None
    ) -> Recipient:
        """Let an agent pay a wallet, or call it differently.

        Raises NotFound, QuotaExceeded, and InvalidRequest for what is no wallet.
        """
        must_be_wallet(address, "address")
        async with self.database.transaction() as conn:
            await lock_own_agent(conn, agent_id, caller.user_id)
            is_listed = await agents_db.select_listed(conn, [(agent_id, address)])
            count = await agents_db.count_recipients(conn, agent_id)
            if count >= RECIPIENTS_PER_AGENT_MAX and not is_listed:
                raise errors.QuotaExceeded(resource="recipient", limit=RECIPIENTS_PER_AGENT_MAX)
            return await agents_db.upsert_recipient(conn, agent_id, address, label)

    async def remove_recipient(self, caller: Caller, agent_id: AgentId, address: str) -> None:
        """Take a wallet off an agent's list; nothing more is paid to it once this returns.

        Raises NotFound, also for a wallet that is not on the list.
        """
        async with self.database.transaction() as conn:
            await lock_own_agent(conn, agent_id, caller.user_id)
            if not await agents_db.delete_recipient(conn, agent_id, address):
                raise errors.NotFound(resource="recipient", id=address)

    async def list_recipients(
        self, caller: Caller, agent_id: AgentId, after: str, limit: int
    ) -> Sequence[Recipient]:
        """List whom an agent may pay, by address. Raises NotFound."""
        async with self.database.transaction() as conn:
            await own_agent(conn, agent_id, caller.user_id)
            return await agents_db.select_recipients(conn, agent_id, after, limit)


async def own_agent(conn: Connection, agent_id: AgentId, user_id: UserId) -> Agent:
    """Read a user's agent. Raises NotFound."""
    agent = await agents_db.select_agent(conn, agent_id, user_id)
    if agent is None:
        raise errors.NotFound(resource="agent", id=agent_id)
    return agent


async def lock_own_agent(conn: Connection, agent_id: AgentId, user_id: UserId) -> Agent:
    """Lock the vault of a user's agent, then read the agent. Raises NotFound."""
    agent, _ = await lock_agent_and_vault(conn, agent_id, user_id)
    return agent


async def lock_agent_and_vault(
    conn: Connection, agent_id: AgentId, user_id: UserId
) -> tuple[Agent, Vault]:
    """Lock the vault of a user's agent, then read both. Raises NotFound."""
    agent = await own_agent(conn, agent_id, user_id)
    vault = await vaults_db.lock_vault_of_project(conn, agent.project_id)
    if vault is None:
        raise errors.NotFound(resource="agent", id=agent_id)
    return await own_agent(conn, agent_id, user_id), vault


def _read_agent(answer: dict[str, Any]) -> Agent:
    """Read a first answer; nothing had been delivered then."""
    webhook = answer.get("webhook")
    if webhook is not None:
        webhook = Webhook(**{**webhook, "state": WebhookState(webhook["state"])})
    return Agent(
        **{
            **answer,
            "status": AgentStatus(answer["status"]),
            "created_at": datetime.fromisoformat(answer["created_at"]),
            "updated_at": datetime.fromisoformat(answer["updated_at"]),
            "webhook": webhook,
        }
    )
