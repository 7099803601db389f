"""ProjectService on the wire."""

from typing import Any

from pilot_grpc.domain.ids import ProjectId
from pilot_grpc.gen.pilot.v1 import projects_pb2 as pb
from pilot_grpc.gen.pilot.v1 import projects_pb2_grpc
from pilot_grpc.rpc import auth, paging, wire
from pilot_grpc.services.projects import Projects


class ProjectServicer(projects_pb2_grpc.ProjectServiceServicer):
    def __init__(self, projects: Projects) -> None:
        self._projects = projects

    async def CreateProject(
        self, message: pb.CreateProjectRequest, context: Any
    ) -> pb.CreateProjectResponse:
        once = wire.once(message, "CreateProject", auth.caller.get())
        description = wire.text(message, "description")
        project = await self._projects.create(once, message.name, description)
        return pb.CreateProjectResponse(project=wire.project(project))

    async def GetProject(
        self, message: pb.GetProjectRequest, context: Any
    ) -> pb.GetProjectResponse:
        project = await self._projects.get(auth.caller.get(), ProjectId(message.project_id))
        return pb.GetProjectResponse(project=wire.project(project))

    async def ListProjects(
        self, message: pb.ListProjectsRequest, context: Any
    ) -> pb.ListProjectsResponse:
        after, limit = paging.time_and_id(message), paging.size(message) + 1
        rows = await self._projects.list(auth.caller.get(), after, limit)
        page, token = paging.cut(message, rows, paging.by_time_and_id)
        return pb.ListProjectsResponse(
            projects=[wire.project(row) for row in page], next_page_token=token
        )

    async def UpdateProject(
        self, message: pb.UpdateProjectRequest, context: Any
    ) -> pb.UpdateProjectResponse:
        project = await self._projects.update(
            auth.caller.get(), ProjectId(message.project_id), wire.changes(message)
        )
        return pb.UpdateProjectResponse(project=wire.project(project))

    async def PauseProject(
        self, message: pb.PauseProjectRequest, context: Any
    ) -> pb.PauseProjectResponse:
        project = await self._projects.pause(auth.caller.get(), ProjectId(message.project_id))
        return pb.PauseProjectResponse(project=wire.project(project))

    async def ResumeProject(
        self, message: pb.ResumeProjectRequest, context: Any
    ) -> pb.ResumeProjectResponse:
        project = await self._projects.resume(auth.caller.get(), ProjectId(message.project_id))
        return pb.ResumeProjectResponse(project=wire.project(project))

    async def ArchiveProject(
        self, message: pb.ArchiveProjectRequest, context: Any
    ) -> pb.ArchiveProjectResponse:
        project = await self._projects.archive(auth.caller.get(), ProjectId(message.project_id))
        return pb.ArchiveProjectResponse(project=wire.project(project))

    async def DeleteProject(
        self, message: pb.DeleteProjectRequest, context: Any
    ) -> pb.DeleteProjectResponse:
        await self._projects.delete(auth.caller.get(), ProjectId(message.project_id))
        return pb.DeleteProjectResponse()
