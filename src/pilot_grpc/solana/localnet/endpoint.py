"""JSON-RPC 2.0 between HTTP and a node, and the place where faults strike."""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from pilot_grpc.solana.localnet.faults import AFTER, BEFORE, Fault, Kind
from pilot_grpc.solana.localnet.rpc import INTERNAL_ERROR, Node, RpcError
from pilot_grpc.solana.localnet.server import End, Reply

BATCH_MAX: Final = 100
OWN_PREFIX: Final = "pilot_"
WRONG_ID: Final = 999_999_999

log = logging.getLogger(__name__)


def handle(node: Node, body: bytes) -> Reply:
    """Answer the calls of one request."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return _reply(_failure(None, RpcError(-32700, "Parse error")))
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not 1 <= len(calls) <= BATCH_MAX:
        return _reply(_failure(None, RpcError(-32600, f"A batch has 1 to {BATCH_MAX} calls")))
    methods = [call["method"] for call in calls if _is_call(call) and _can_fail(call["method"])]
    if fault := node.faults.take(BEFORE, methods):
        return _broken(fault)
    after = node.faults.take(AFTER, methods)
    answers = [answer for call in calls if (answer := _answer(node, call)) is not None]
    if not answers:
        return Reply()
    reply = _reply(answers if isinstance(parsed, list) else answers[0])
    return _broken_after(after, reply) if after else reply


def _answer(node: Node, call: Any) -> dict[str, Any] | None:
    """Answer one call; None to a notification."""
    if not _is_call(call) or call.get("jsonrpc") != "2.0":
        return _failure(None, RpcError(-32600, "Invalid request"))
    id_ = call.get("id")
    if not isinstance(id_, str | int | None):
        return _failure(None, RpcError(-32600, "Invalid request"))
    method = call["method"]
    kinds = (Kind.ERROR, Kind.WRONG_ID, Kind.WRONG_TYPE)
    fault = node.faults.take(kinds, (method,)) if _can_fail(method) else None
    if fault and fault.kind is Kind.ERROR:
        return _failure(id_, RpcError(fault.code, fault.message, fault.data))
    try:
        result = node.call(method, call.get("params") or [])
    except RpcError as error:
        answer = _failure(id_, error)
    except Exception:
        log.exception("%s failed", method)
        answer = _failure(id_, RpcError(INTERNAL_ERROR, "Internal error"))
    else:
        answer = {"jsonrpc": "2.0", "result": result, "id": id_}
    if fault and fault.kind is Kind.WRONG_ID:
        answer["id"] = WRONG_ID
    if fault and fault.kind is Kind.WRONG_TYPE:
        wrong = "unexpected" if isinstance(answer.get("result"), dict) else {"unexpected": True}
        answer = {"jsonrpc": "2.0", "result": wrong, "id": id_}
    return answer if "id" in call else None


def _is_call(call: Any) -> bool:
    return isinstance(call, dict) and isinstance(call.get("method"), str)


def _can_fail(method: str) -> bool:
    return not method.startswith(OWN_PREFIX)


def _failure(id_: str | int | None, error: RpcError) -> dict[str, Any]:
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return {"jsonrpc": "2.0", "error": body, "id": id_}


def _reply(answer: Any) -> Reply:
    return Reply(json.dumps(answer, separators=(",", ":")).encode())


def _broken(fault: Fault) -> Reply:
    """What a request gets that nobody looked at."""
    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    match fault.kind:
        case Kind.RATE_LIMITED:
            return Reply(b"Too many requests", 429, "text/plain", headers)
        case Kind.UNAVAILABLE:
            return Reply(b"Service unavailable", 503, "text/plain", headers)
        case Kind.HTML:
            return Reply(b"<html><body>502 Bad Gateway</body></html>", 200, "text/html")
        case Kind.HANG:
            return Reply(end=End.HANG)
        case _:
            return Reply(end=End.CLOSE_UNANSWERED)


def _broken_after(fault: Fault, reply: Reply) -> Reply:
    """What a request gets that was done all the same."""
    match fault.kind:
        case Kind.TRUNCATED:
            return Reply(reply.body[: len(reply.body) // 2])
        case Kind.APPLY_THEN_HANG:
            return Reply(end=End.HANG)
        case _:
            return Reply(end=End.CLOSE_UNANSWERED)
