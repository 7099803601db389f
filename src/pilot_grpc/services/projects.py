"""Projects, each with the vault that is made with it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pilot_grpc import errors
from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db import deposits as deposits_db
from pilot_grpc.db import projects as projects_db
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.connection import Connection, Database, plan_foreign_keys_once
from pilot_grpc.domain.accounts import Caller
from pilot_grpc.domain.ids import ProjectId, UserId, VaultId
from pilot_grpc.domain.projects import PROJECTS_PER_USER_MAX, Project, ProjectStatus
from pilot_grpc.domain.vaults import Vault
from pilot_grpc.services.lanes import Lanes
from pilot_grpc.services.requests import Once
from pilot_grpc.solana.custody import Custody, SealedKey


@dataclass(frozen=True, slots=True)
class Projects:
    """What owners do with their projects."""

    database: Database
    custody: Custody
    lanes: Lanes
    new_id: Callable[[], str]

    async def create(self, once: Once, name: str, description: str | None) -> Project:
        """Make a project, its vault and the vault's key, all or nothing.

        Raises QuotaExceeded, RequestIdReused.
        """
        async with self.database.transaction() as conn:

            async def make() -> Project:
                return await self.insert(conn, once.user_id, name, description)

            project, _ = await once.make(conn, make, _read_project)
        return project

    async def insert(
        self, conn: Connection, user_id: UserId, name: str, description: str | None
    ) -> Project:
        """Add a project with its vault. Raises QuotaExceeded."""
        await accounts_db.lock_user(conn, user_id)
        if await projects_db.count_projects(conn, user_id) >= PROJECTS_PER_USER_MAX:
            raise errors.QuotaExceeded(resource="project", limit=PROJECTS_PER_USER_MAX)
        project_id, vault_id = ProjectId(self.new_id()), VaultId(self.new_id())
        await projects_db.insert_project(conn, project_id, name, description, user_id)
        await insert_sealed_vault(conn, self.custody.create(vault_id), project_id)
        return await _own_project(conn, project_id, user_id)

    async def get(self, caller: Caller, project_id: ProjectId) -> Project:
        """Read a project. Raises NotFound."""
        async with self.database.transaction() as conn:
            return await _own_project(conn, project_id, caller.user_id)

    async def list(
        self, caller: Caller, after: tuple[datetime, str] | None, limit: int
    ) -> list[Project]:
        """List the caller's projects, newest first."""
        async with self.database.transaction() as conn:
            return await projects_db.select_projects(conn, caller.user_id, after, limit)

    async def update(
        self, caller: Caller, project_id: ProjectId, changes: dict[str, str | None]
    ) -> Project:
        """Change the name or the description. Raises NotFound."""
        async with self.database.transaction() as conn:
            project, _ = await lock_own_project(conn, project_id, caller.user_id)
            values = {"name": project.name, "description": project.description, **changes}
            await projects_db.update_project(
                conn, project_id, values["name"] or project.name, values["description"]
            )
            return await _own_project(conn, project_id, caller.user_id)

    async def pause(self, caller: Caller, project_id: ProjectId) -> Project:
        """Pause a project; nothing is approved once this returns. Raises ProjectArchived."""
        async with self.database.transaction() as conn:
            project, _ = await lock_own_project(conn, project_id, caller.user_id)
            if project.status is ProjectStatus.ARCHIVED:
                raise errors.ProjectArchived
            await projects_db.update_project_status(conn, project_id, ProjectStatus.PAUSED)
            return await _own_project(conn, project_id, caller.user_id)

    async def resume(self, caller: Caller, project_id: ProjectId) -> Project:
        """Make a paused or archived project active."""
        return await self._set_status(caller, project_id, ProjectStatus.ACTIVE)

    async def archive(self, caller: Caller, project_id: ProjectId) -> Project:
        """Retire a project; nothing is approved once this returns."""
        return await self._set_status(caller, project_id, ProjectStatus.ARCHIVED)

    async def _set_status(
        self, caller: Caller, project_id: ProjectId, status: ProjectStatus
    ) -> Project:
        async with self.database.transaction() as conn:
            await lock_own_project(conn, project_id, caller.user_id)
            await projects_db.update_project_status(conn, project_id, status)
            return await _own_project(conn, project_id, caller.user_id)

    async def delete(self, caller: Caller, project_id: ProjectId) -> None:
        """Delete an archived project without money, with all that hangs on it.

        The sealed key of its vault stays. Raises ProjectNotArchived, ProjectNotEmpty.
        """
        project = await self.get(caller, project_id)
        await self.lanes.settle(project.vault_id)
        async with self.database.transaction() as conn:
            project, vault = await lock_own_project(conn, project_id, caller.user_id)
            if project.status is not ProjectStatus.ARCHIVED:
                raise errors.ProjectNotArchived(status=project.status)
            pending = await projects_db.count_pending(conn, vault.id)
            if pending or vault.balance or vault.chain_balance:
                raise errors.ProjectNotEmpty(
                    balance=vault.balance, chain_balance=vault.chain_balance, pending=pending
                )
            await plan_foreign_keys_once(conn)
            await projects_db.delete_project(conn, project_id)


async def insert_sealed_vault(conn: Connection, sealed: SealedKey, project_id: ProjectId) -> None:
    """Add the vault of a new project, and its key."""
    vault_id = VaultId(sealed.vault_id)
    await vaults_db.insert_vault(conn, vault_id, sealed.address, project_id)
    await vaults_db.insert_vault_key(
        conn,
        vault_id,
        sealed.address,
        sealed.version,
        sealed.wrapping_key_id,
        sealed.wrapped_data_key,
        sealed.sealed_secret,
    )
    await deposits_db.insert_scan(conn, vault_id)


async def _own_project(conn: Connection, project_id: ProjectId, user_id: UserId) -> Project:
    project = await projects_db.select_project(conn, project_id, user_id)
    if project is None:
        raise errors.NotFound(resource="project", id=project_id)
    return project


async def lock_own_project(
    conn: Connection, project_id: ProjectId, user_id: UserId
) -> tuple[Project, Vault]:
    """Lock a project's vault, then read the project: what decides changes under that lock."""
    await _own_project(conn, project_id, user_id)
    vault = await vaults_db.lock_vault_of_project(conn, project_id)
    if vault is None:
        raise errors.NotFound(resource="project", id=project_id)
    return await _own_project(conn, project_id, user_id), vault


def _read_project(answer: dict[str, Any]) -> Project:
    return Project(
        **{
            **answer,
            "status": ProjectStatus(answer["status"]),
            "created_at": datetime.fromisoformat(answer["created_at"]),
            "updated_at": datetime.fromisoformat(answer["updated_at"]),
        }
    )
