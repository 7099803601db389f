"""The life of a project, as its owner sees it."""

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from pilot_grpc.gen.pilot.v1 import agents_pb2, vaults_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as ledger
from pilot_grpc.gen.pilot.v1 import projects_pb2 as pb
from tests.rpc.serving import Pilot, code, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_project_is_made_with_a_vault(shared: Pilot) -> None:
    """Empty, with an address of its own, and unchanged so far."""
    _, owner = await shared.user()

    made = (await owner(pb.CreateProjectRequest(name="First", description="It"))).project
    other = (await owner(pb.CreateProjectRequest(name="Second"))).project
    vaults = [
        (await owner(vaults_pb2.GetVaultRequest(vault_id=each.vault_id))).vault
        for each in (made, other)
    ]

    assert (await owner(pb.GetProjectRequest(project_id=made.id))).project == made
    assert (made.name, made.description, made.status) == ("First", "It", pb.PROJECT_STATUS_ACTIVE)
    assert not other.HasField("description")
    assert [vault.project_id for vault in vaults] == [made.id, other.id]
    assert vaults[0].address != vaults[1].address
    assert all(32 <= len(vault.address) <= 44 for vault in vaults)
    assert [(v.balance, v.chain_balance, v.held, v.revision) for v in vaults] == [(0,) * 4] * 2


async def test_an_update_changes_what_its_mask_names(shared: Pilot) -> None:
    """The rest stays, whatever the request carries; a description that is absent is removed."""
    _, owner = await shared.user()
    made = (await owner(pb.CreateProjectRequest(name="First", description="It"))).project

    async def update(*paths: str, **fields: str) -> pb.Project:
        answer = await owner(
            pb.UpdateProjectRequest(
                project_id=made.id, update_mask=FieldMask(paths=paths), **fields
            )
        )
        assert (await owner(pb.GetProjectRequest(project_id=made.id))).project == answer.project
        project: pb.Project = answer.project
        return project

    renamed = await update("name", name="Second", description="ignored")
    emptied = await update("description", description="")
    removed = await update("description", name="ignored")

    assert (renamed.name, renamed.description) == ("Second", "It")
    assert emptied.HasField("description")
    assert not removed.HasField("description")
    assert removed.name == "Second"
    assert removed.create_time == made.create_time
    assert removed.update_time.ToDatetime() > made.update_time.ToDatetime()


@pytest.mark.parametrize("stop", [pb.PauseProjectRequest, pb.ArchiveProjectRequest])
async def test_a_project_that_is_stopped_declines_until_it_is_resumed(
    shared: Pilot, stop: type[pb.PauseProjectRequest] | type[pb.ArchiveProjectRequest]
) -> None:
    """What was held before can be captured all the same, and money may come in."""
    tenant = await shared.tenant(balance=100)
    project_id = tenant.project_id
    hold = await tenant.hold(10)

    stopped = (await tenant.owner(stop(project_id=project_id))).project
    declined = await tenant.spend(1)
    captured = await tenant.agent(
        ledger.CaptureSpendRequest(event_id=hold.id, amount=10, request_id=fresh())
    )
    funded = await tenant.fund(5)
    resumed = (await tenant.owner(pb.ResumeProjectRequest(project_id=project_id))).project
    spent = await tenant.spend(1)

    assert stopped.status in {pb.PROJECT_STATUS_PAUSED, pb.PROJECT_STATUS_ARCHIVED}
    assert declined.failure_reason == ledger.FAILURE_REASON_PROJECT_NOT_ACTIVE
    assert captured.event.status == funded.status == ledger.EVENT_STATUS_CONFIRMED
    assert resumed.status == pb.PROJECT_STATUS_ACTIVE
    assert spent.status == ledger.EVENT_STATUS_CONFIRMED


async def test_an_archived_project_is_not_paused(shared: Pilot) -> None:
    tenant = await shared.tenant()
    await tenant.owner(pb.ArchiveProjectRequest(project_id=tenant.project_id))

    ended = await code(tenant.owner(pb.PauseProjectRequest(project_id=tenant.project_id)))

    assert ended == "FAILED_PRECONDITION"


async def test_a_project_is_deleted_once_it_is_archived_and_empty(shared: Pilot) -> None:
    """While it is active, holds money, or has something pending, nothing happens."""
    tenant = await shared.tenant(balance=10)
    delete = pb.DeleteProjectRequest(project_id=tenant.project_id)
    archive = pb.ArchiveProjectRequest(project_id=tenant.project_id)
    resume = pb.ResumeProjectRequest(project_id=tenant.project_id)

    while_active = await code(tenant.owner(delete))
    await tenant.owner(archive)
    with_money = await code(tenant.owner(delete))
    await tenant.owner(resume)
    hold = await tenant.hold(10)
    await tenant.owner(archive)
    with_a_hold = await code(tenant.owner(delete))
    await tenant.agent(ledger.CaptureSpendRequest(event_id=hold.id, amount=10, request_id=fresh()))
    once_empty = await code(tenant.owner(delete))

    assert [while_active, with_money, with_a_hold] == ["FAILED_PRECONDITION"] * 3
    assert once_empty == "OK"
    for gone in (
        pb.GetProjectRequest(project_id=tenant.project_id),
        vaults_pb2.GetVaultRequest(vault_id=tenant.vault_id),
        agents_pb2.GetAgentRequest(agent_id=tenant.agent_id),
        ledger.GetEventRequest(event_id=hold.id),
        ledger.SpendRequest(agent_id=tenant.agent_id, amount=1, request_id=fresh()),
        delete,
    ):
        assert await code(tenant.owner(gone)) == "NOT_FOUND"


async def test_the_key_of_a_deleted_vault_is_kept(shared: Pilot) -> None:
    """Money that is sent to its address later can still be moved."""
    tenant = await shared.tenant(balance=0)
    await tenant.owner(pb.ArchiveProjectRequest(project_id=tenant.project_id))

    await tenant.owner(pb.DeleteProjectRequest(project_id=tenant.project_id))

    kept = "SELECT count(*) FROM vault_keys WHERE vault_id = $1"
    assert await shared.pool.fetchval(kept, tenant.vault_id) == 1
