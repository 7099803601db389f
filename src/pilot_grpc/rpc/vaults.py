"""VaultService on the wire."""

from typing import Any

from pilot_grpc.domain.ids import VaultId
from pilot_grpc.gen.pilot.v1 import vaults_pb2 as pb
from pilot_grpc.gen.pilot.v1 import vaults_pb2_grpc
from pilot_grpc.rpc import auth, wire
from pilot_grpc.services.vaults import Vaults


class VaultServicer(vaults_pb2_grpc.VaultServiceServicer):
    def __init__(self, vaults: Vaults) -> None:
        self._vaults = vaults

    async def GetVault(self, message: pb.GetVaultRequest, context: Any) -> pb.GetVaultResponse:
        vault = await self._vaults.get(auth.caller.get(), VaultId(message.vault_id))
        return pb.GetVaultResponse(vault=wire.vault(vault))
