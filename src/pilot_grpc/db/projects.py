"""The statements of projects."""

from datetime import datetime
from typing import Final

from pilot_grpc.db.connection import Connection, Record
from pilot_grpc.domain.ids import ProjectId, UserId
from pilot_grpc.domain.projects import Project, ProjectStatus

INSERT_PROJECT: Final = """
INSERT INTO projects (id, name, description, user_id)
VALUES ($1::text, $2::text, $3::text, $4::text)
"""

COUNT_PROJECTS: Final = """
SELECT count(*)
  FROM projects
 WHERE user_id = $1::text
"""

SELECT_PROJECT: Final = """
SELECT projects.id, projects.name, projects.description, projects.status,
       vaults.id AS vault_id, projects.created_at, projects.updated_at
  FROM projects
  JOIN vaults ON vaults.project_id = projects.id
 WHERE projects.id = $1::text
   AND projects.user_id = $2::text
"""

SELECT_PROJECTS: Final = """
SELECT projects.id, projects.name, projects.description, projects.status,
       vaults.id AS vault_id, projects.created_at, projects.updated_at
  FROM projects
  JOIN vaults ON vaults.project_id = projects.id
 WHERE projects.user_id = $1::text
   AND (
       $2::timestamptz IS NULL
       OR (projects.created_at, projects.id) < ($2::timestamptz, $3::text)
   )
 ORDER BY projects.created_at DESC, projects.id DESC
 LIMIT $4::integer
"""

UPDATE_PROJECT: Final = """
UPDATE projects
   SET name = $2::text,
       description = $3::text,
       updated_at = clock_timestamp()
 WHERE id = $1::text
"""

UPDATE_PROJECT_STATUS: Final = """
UPDATE projects
   SET status = $2::text,
       updated_at = clock_timestamp()
 WHERE id = $1::text
"""

COUNT_PENDING: Final = """
SELECT count(*)
  FROM events
 WHERE vault_id = $1::text
   AND status = 'pending'
"""

DELETE_PROJECT: Final = """
DELETE FROM projects
 WHERE id = $1::text
"""


async def insert_project(
    conn: Connection, project_id: ProjectId, name: str, description: str | None, user_id: UserId
) -> None:
    """Add an active project."""
    await conn.execute(INSERT_PROJECT, project_id, name, description, user_id)


async def count_projects(conn: Connection, user_id: UserId) -> int:
    """Count a user's projects; lock the user first."""
    count: int = await conn.fetchval(COUNT_PROJECTS, user_id)
    return count


async def select_project(
    conn: Connection, project_id: ProjectId, user_id: UserId
) -> Project | None:
    """Read a user's project."""
    row = await conn.fetchrow(SELECT_PROJECT, project_id, user_id)
    return None if row is None else _project(row)


async def select_projects(
    conn: Connection, user_id: UserId, after: tuple[datetime, str] | None, limit: int
) -> list[Project]:
    """Read a user's projects, newest first, after a place in that order."""
    rows = await conn.fetch(SELECT_PROJECTS, user_id, *(after or (None, None)), limit)
    return [_project(row) for row in rows]


async def update_project(
    conn: Connection, project_id: ProjectId, name: str, description: str | None
) -> None:
    """Write what a user calls a project."""
    await conn.execute(UPDATE_PROJECT, project_id, name, description)


async def update_project_status(
    conn: Connection, project_id: ProjectId, status: ProjectStatus
) -> None:
    """Write a project's status; the vault must be locked."""
    await conn.execute(UPDATE_PROJECT_STATUS, project_id, status)


async def count_pending(conn: Connection, vault_id: str) -> int:
    """Count what is pending in a vault."""
    count: int = await conn.fetchval(COUNT_PENDING, vault_id)
    return count


async def delete_project(conn: Connection, project_id: ProjectId) -> None:
    """Delete a project and all that hangs on it; the vault must be locked."""
    await conn.execute(DELETE_PROJECT, project_id)


def _project(row: Record) -> Project:
    return Project(**{**row, "status": ProjectStatus(row["status"])})
