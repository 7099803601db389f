"""Projects."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pilot_grpc.domain.ids import ProjectId, VaultId

PROJECTS_PER_USER_MAX = 1_000


class ProjectStatus(StrEnum):
    """Whether a project's agents may spend."""

    ACTIVE = "active"
    PAUSED = "paused"
    ARCHIVED = "archived"


@dataclass(frozen=True, slots=True)
class Project:
    """A project, with the id of its vault."""

    id: ProjectId
    name: str
    description: str | None
    status: ProjectStatus
    vault_id: VaultId
    created_at: datetime
    updated_at: datetime
