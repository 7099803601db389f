"""The ids that keep one noun from being taken for another. All are CUIDs."""

from typing import NewType

UserId = NewType("UserId", str)
SessionId = NewType("SessionId", str)
ApiKeyId = NewType("ApiKeyId", str)
ProjectId = NewType("ProjectId", str)
VaultId = NewType("VaultId", str)
AgentId = NewType("AgentId", str)
EventId = NewType("EventId", str)
