"""What a receiver of webhooks makes of the requests that it got, by the public library."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from tests.http_server import HttpServer, Request


@dataclass(frozen=True)
class Message:
    """A message whose signature is right."""

    id: str
    body: dict[str, Any]

    @property
    def revision(self) -> int:
        return int(self.body["data"]["revision"])


def message(request: Request, secret: str) -> Message:
    """Verify a request. Raises WebhookVerificationError."""
    body = Webhook(secret).verify(request.body, request.headers)
    assert body == json.loads(request.body)
    return Message(request.headers["webhook-id"], body)


def verifies(request: Request, secret: str) -> bool:
    """Say whether a receiver that has this secret takes the request."""
    try:
        message(request, secret)
    except WebhookVerificationError:
        return False
    return True


def messages(requests: Sequence[Request], secret: str) -> list[Message]:
    """Verify requests."""
    return [message(request, secret) for request in requests]


def revisions(server: HttpServer, secret: str) -> list[int]:
    """The changes that a server got, each once, in the order in which they came first."""
    first: dict[str, int] = {}
    for each in messages(server.requests, secret):
        assert first.setdefault(each.id, each.revision) == each.revision
    return list(first.values())
