"""AccountService on the wire."""

from typing import Any

from pilot_grpc.domain.accounts import ApiKey, Session
from pilot_grpc.domain.ids import ApiKeyId, SessionId
from pilot_grpc.gen.pilot.v1 import accounts_pb2 as pb
from pilot_grpc.gen.pilot.v1 import accounts_pb2_grpc
from pilot_grpc.rpc import auth, paging, wire
from pilot_grpc.services.accounts import Accounts


class AccountServicer(accounts_pb2_grpc.AccountServiceServicer):
    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def SignUp(self, message: pb.SignUpRequest, context: Any) -> pb.SignUpResponse:
        user, session, secret = await self._accounts.sign_up(
            message.email, message.password, message.name, wire.text(message, "avatar")
        )
        return pb.SignUpResponse(
            user=wire.user(user), session=wire.session(session), session_token=secret
        )

    async def SignIn(self, message: pb.SignInRequest, context: Any) -> pb.SignInResponse:
        user, session, secret = await self._accounts.sign_in(message.email, message.password)
        return pb.SignInResponse(
            user=wire.user(user), session=wire.session(session), session_token=secret
        )

    async def SignOut(self, message: pb.SignOutRequest, context: Any) -> pb.SignOutResponse:
        await self._accounts.sign_out(auth.caller.get())
        return pb.SignOutResponse()

    async def WhoAmI(self, message: pb.WhoAmIRequest, context: Any) -> pb.WhoAmIResponse:
        caller = auth.caller.get()
        user, credential = await self._accounts.who_am_i(caller)
        if caller.agent_id is not None:
            return pb.WhoAmIResponse(user=pb.User(id=user.id), agent_id=caller.agent_id)
        return pb.WhoAmIResponse(
            user=wire.user(user),
            session=wire.session(credential) if isinstance(credential, Session) else None,
            api_key=wire.api_key(credential) if isinstance(credential, ApiKey) else None,
        )

    async def ChangePassword(
        self, message: pb.ChangePasswordRequest, context: Any
    ) -> pb.ChangePasswordResponse:
        await self._accounts.change_password(
            auth.caller.get(), message.current_password, message.new_password
        )
        return pb.ChangePasswordResponse()

    async def ListSessions(
        self, message: pb.ListSessionsRequest, context: Any
    ) -> pb.ListSessionsResponse:
        caller = auth.caller.get()
        after, limit = paging.time_and_id(message), paging.size(message) + 1
        rows = await self._accounts.list_sessions(caller, after, limit)
        page, token = paging.cut(message, rows, paging.by_time_and_id)
        return pb.ListSessionsResponse(
            sessions=[wire.session(row, caller) for row in page], next_page_token=token
        )

    async def RevokeSession(
        self, message: pb.RevokeSessionRequest, context: Any
    ) -> pb.RevokeSessionResponse:
        await self._accounts.revoke_session(auth.caller.get(), SessionId(message.session_id))
        return pb.RevokeSessionResponse()

    async def CreateApiKey(
        self, message: pb.CreateApiKeyRequest, context: Any
    ) -> pb.CreateApiKeyResponse:
        once = wire.once(message, "CreateApiKey", auth.caller.get())
        permissions = wire.members(wire.PERMISSIONS, message.permissions) or []
        api_key, secret = await self._accounts.create_api_key(
            once, message.name, permissions, wire.moment(message, "expire_time")
        )
        return pb.CreateApiKeyResponse(api_key=wire.api_key(api_key), secret=secret)

    async def ListApiKeys(
        self, message: pb.ListApiKeysRequest, context: Any
    ) -> pb.ListApiKeysResponse:
        after, limit = paging.time_and_id(message), paging.size(message) + 1
        rows = await self._accounts.list_api_keys(auth.caller.get(), after, limit)
        page, token = paging.cut(message, rows, paging.by_time_and_id)
        return pb.ListApiKeysResponse(
            api_keys=[wire.api_key(row) for row in page], next_page_token=token
        )

    async def RevokeApiKey(
        self, message: pb.RevokeApiKeyRequest, context: Any
    ) -> pb.RevokeApiKeyResponse:
        await self._accounts.revoke_api_key(auth.caller.get(), ApiKeyId(message.api_key_id))
        return pb.RevokeApiKeyResponse()
