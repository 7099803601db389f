"""What the protos promise and what the code has are one: RPCs, errors, enums, units, statements.

The promises in the comments are read from the protos' source, as their readers do.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import asyncpg
import pytest
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

import pilot_grpc.db
from pilot_grpc import errors
from pilot_grpc.domain.accounts import Permission
from pilot_grpc.domain.agents import AgentStatus
from pilot_grpc.domain.ledger import EventKind, EventStatus, EventType, FailureReason
from pilot_grpc.domain.projects import ProjectStatus
from pilot_grpc.domain.webhooks import WebhookState
from pilot_grpc.gen.pilot.v1 import accounts_pb2, agents_pb2, errors_pb2, ledger_pb2, projects_pb2
from pilot_grpc.rpc import auth, wire
from pilot_grpc.rpc.errors import STATUS_CODES
from pilot_grpc.server import SERVICES
from tests.rpc.protos import comments, source, told_of_errors

ENUMS: list[tuple[EnumDescriptor, type[StrEnum], dict[Any, Any]]] = [
    (accounts_pb2.Permission.DESCRIPTOR, Permission, wire.PERMISSIONS),
    (projects_pb2.ProjectStatus.DESCRIPTOR, ProjectStatus, wire.PROJECT_STATUSES),
    (agents_pb2.AgentStatus.DESCRIPTOR, AgentStatus, wire.AGENT_STATUSES),
    (agents_pb2.WebhookState.DESCRIPTOR, WebhookState, wire.WEBHOOK_STATES),
    (ledger_pb2.EventType.DESCRIPTOR, EventType, wire.EVENT_TYPES),
    (ledger_pb2.EventKind.DESCRIPTOR, EventKind, wire.EVENT_KINDS),
    (ledger_pb2.EventStatus.DESCRIPTOR, EventStatus, wire.EVENT_STATUSES),
    (ledger_pb2.FailureReason.DESCRIPTOR, FailureReason, wire.FAILURE_REASONS),
]

# Every int64 is an amount of money, but for these.
NOT_MONEY = re.compile(r"(.+_)?revision|.+_count|slot")

# The tail of an RPC's comment says who may call it; so does the table in rpc/auth.py.
WHO_MAY_CALL = {
    "Needs no credential.": auth.Access(public=True),
    "Sessions only.": auth.Access(),
    "Any credential.": auth.Access(frozenset(), agents=True),
}


def rpcs() -> Iterator[tuple[str, str]]:
    """The path and the name of every RPC."""
    for descriptor, _ in SERVICES:
        for service in descriptor.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method.name


def pilot_errors() -> set[type[errors.PilotError]]:
    return {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PilotError)
    } - {errors.PilotError}


def test_every_rpc_has_its_place_in_the_table_of_permissions() -> None:
    assert {path for path, _ in rpcs()} == set(auth.ACCESS)


def test_the_server_serves_every_service_of_the_protos() -> None:
    written = {f"{file.package}.{each.name}" for file in source().file for each in file.service}

    assert written == {path.split("/")[1] for path, _ in rpcs()}


def test_every_rpc_tells_who_may_call_it() -> None:
    """What the comment says and what the table allows are the same."""
    for file in source().file:
        for s, service in enumerate(file.service):
            for m, method in enumerate(service.method):
                told = comments()[file.name, (6, s, 2, m)]
                access = auth.ACCESS[f"/{file.package}.{service.name}/{method.name}"]
                assert access == promised(told), f"{method.name}: {told}"


def promised(comment: str) -> auth.Access:
    for sentence, access in WHO_MAY_CALL.items():
        if sentence in comment:
            return access
    needs = re.search(r"Needs ([A-Z]+)(?: and ([A-Z]+))?[.;]", comment)
    assert needs is not None, comment
    return auth.Access(
        frozenset(Permission[name] for name in needs.groups() if name),
        agents=bool(re.search(r"; an agent may|; an agent sees its own", comment)),
    )


def test_every_error_has_a_status_and_a_documented_reason() -> None:
    """None is without, and none is left over."""
    reasons = set(errors_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}

    assert set(STATUS_CODES) == pilot_errors()
    assert {f"ERROR_REASON_{error.reason}" for error in pilot_errors()} == reasons
    assert len({error.reason for error in pilot_errors()}) == len(pilot_errors())


def test_every_reason_is_documented_with_the_status_that_it_comes_with() -> None:
    codes = {error.reason: code.name for error, code in STATUS_CODES.items()}

    assert {reason: told.split(":")[0] for reason, told in told_of_errors().items()} == codes


@pytest.mark.parametrize(("on_the_wire", "ours", "pairs"), ENUMS, ids=lambda each: str(each)[:20])
def test_every_enum_pairs_with_ours(
    on_the_wire: EnumDescriptor, ours: type[StrEnum], pairs: dict[Any, Any]
) -> None:
    """Value by value, in both directions; 0 is nothing."""
    prefix = f"{re.sub(r'(?<!^)(?=[A-Z])', '_', on_the_wire.name).upper()}_"
    named = {value.name.removeprefix(prefix): value.number for value in on_the_wire.values}

    assert named.pop("UNSPECIFIED") == 0
    assert {member.name: pairs[member] for member in ours} == named


def test_every_dimension_of_a_summary_can_be_asked_for() -> None:
    dimensions = set(ledger_pb2.SpendDimension.values()) - {ledger_pb2.SPEND_DIMENSION_UNSPECIFIED}

    assert set(wire.DIMENSIONS) == dimensions


def test_whatever_carries_money_says_its_unit() -> None:
    """In the comment of the field or of its message: both show where the field is used."""
    silent = []
    for file in source().file:
        for m, message in enumerate(file.message_type):
            assert not message.nested_type
            for f, field in enumerate(message.field):
                if field.type != FieldDescriptorProto.TYPE_INT64 or NOT_MONEY.fullmatch(field.name):
                    continue
                told = comments()[file.name, (4, m)] + comments()[file.name, (4, m, 2, f)]
                if "USDC minor units" not in told:
                    silent.append(f"{message.name}.{field.name}")

    assert silent == []


def test_no_number_on_the_wire_loses_a_unit() -> None:
    """Money is int64: no float, and no unsigned type that some languages lack."""
    kinds = {
        field.type
        for file in source().file
        for message in file.message_type
        for field in message.field
    }

    assert kinds.isdisjoint(
        {
            FieldDescriptorProto.TYPE_FLOAT,
            FieldDescriptorProto.TYPE_DOUBLE,
            FieldDescriptorProto.TYPE_UINT32,
            FieldDescriptorProto.TYPE_UINT64,
        }
    )


async def test_every_statement_prepares(pool: asyncpg.Pool[Any]) -> None:
    """Each constant of each module is a statement that the migrated schema knows."""
    modules = [
        importlib.import_module(f"pilot_grpc.db.{found.name}")
        for found in pkgutil.iter_modules(pilot_grpc.db.__path__)
    ]
    statements = {
        f"{module.__name__}.{name}": text
        for module in modules
        for name, text in vars(module).items()
        if name.isupper() and isinstance(text, str) and " " in text and "SET LOCAL" not in text
    }

    async with pool.acquire() as conn:
        for text in statements.values():
            await conn.prepare(text)
    assert len(statements) > 60
