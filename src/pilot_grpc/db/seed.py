"""The statements that only the demo needs: its history lies in the past."""

from datetime import datetime
from typing import Final

from pilot_grpc.db.connection import Connection
from pilot_grpc.domain.ids import ProjectId

MOVE_BACK: Final = """
WITH moved AS (
    UPDATE projects
       SET created_at = $2::timestamptz
     WHERE id = $1::text
    RETURNING id
)
UPDATE vaults
   SET created_at = $2::timestamptz,
       last_change_at = $2::timestamptz
 WHERE project_id IN (SELECT id FROM moved)
"""


async def move_back(conn: Connection, project_id: ProjectId, moment: datetime) -> None:
    """Let a new project have been made in the past."""
    await conn.execute(MOVE_BACK, project_id, moment)
