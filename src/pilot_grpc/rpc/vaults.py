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

    async def GetDepositAddress(
        self, message: pb.GetDepositAddressRequest, context: Any
    ) -> pb.GetDepositAddressResponse:
        amount = message.amount if message.HasField("amount") else None
        found = await self._vaults.deposit_address(
            auth.caller.get(), VaultId(message.vault_id), amount
        )
        return pb.GetDepositAddressResponse(**found._asdict())

    async def Withdraw(self, message: pb.WithdrawRequest, context: Any) -> pb.WithdrawResponse:
        caller = auth.caller.get()
        event = await self._vaults.withdraw(
            caller,
            wire.asked(message, "Withdraw", "vault_id"),
            VaultId(message.vault_id),
            message.amount,
            message.recipient,
            wire.text(message, "metadata"),
        )
        return pb.WithdrawResponse(event=wire.event(event, caller))

    async def Settle(self, message: pb.SettleRequest, context: Any) -> pb.SettleResponse:
        caller = auth.caller.get()
        event = await self._vaults.settle(
            caller,
            wire.asked(message, "Settle", "vault_id"),
            VaultId(message.vault_id),
            message.amount,
            message.recipient,
            wire.text(message, "metadata"),
        )
        return pb.SettleResponse(event=wire.event(event, caller))

    async def ReconcileVault(
        self, message: pb.ReconcileVaultRequest, context: Any
    ) -> pb.ReconcileVaultResponse:
        found = await self._vaults.reconcile(auth.caller.get(), VaultId(message.vault_id))
        return wire.reconciliation(found)

    async def AcknowledgeDrift(
        self, message: pb.AcknowledgeDriftRequest, context: Any
    ) -> pb.AcknowledgeDriftResponse:
        caller = auth.caller.get()
        event = await self._vaults.acknowledge_drift(
            caller,
            wire.asked(message, "AcknowledgeDrift", "vault_id"),
            VaultId(message.vault_id),
            message.drift_id,
            message.amount,
        )
        return pb.AcknowledgeDriftResponse(event=wire.event(event, caller))
