"""The statements that only the demo needs: its history lies in the past."""

from datetime import datetime
from typing import Final

from pilot_grpc.db.connection import Connection
from pilot_grpc.domain.ids import ProjectId

# All of it sees the project as it was, so that agents keep their distance to it.
MOVE_BACK: Final = """
WITH moved AS (
    UPDATE projects
       SET created_at = $2::timestamptz,
           updated_at = $2::timestamptz
     WHERE id = $1::text
    RETURNING id, user_id
),
moved_user AS (
    UPDATE users
       SET created_at = $2::timestamptz
     WHERE id IN (SELECT user_id FROM moved)
),
moved_agents AS (
    UPDATE agents
       SET created_at = agents.created_at - (projects.created_at - $2::timestamptz),
           updated_at = agents.updated_at - (projects.created_at - $2::timestamptz)
      FROM projects
     WHERE projects.id = $1::text
       AND agents.project_id = projects.id
)
UPDATE vaults
   SET created_at = $2::timestamptz,
       last_change_at = $2::timestamptz
 WHERE project_id IN (SELECT id FROM moved)
"""


async def move_back(conn: Connection, project_id: ProjectId, moment: datetime) -> None:
    """Let a new project, its user and its agents have been made in the past."""
    await conn.execute(MOVE_BACK, project_id, moment)
