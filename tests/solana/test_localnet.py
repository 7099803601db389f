"""The embedded chain answers real clients as a node does, loses nothing, and fails on demand."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from solana.exceptions import SolanaRpcException
from solana.rpc.jsonrpc import SolanaJsonRpcError
from solana.rpc.models import TokenAccountOpts, TxOpts
from solders.hash import Hash
from solders.instruction import CompiledInstruction
from solders.keypair import Keypair
from solders.message import Message, MessageV0
from solders.pubkey import Pubkey
from solders.rpc.responses import GetTransactionResp
from solders.signature import Signature
from solders.system_program import (
    AdvanceNonceAccountParams,
    TransferParams,
    advance_nonce_account,
    transfer,
)
from solders.transaction import VersionedTransaction
from spl.token.constants import TOKEN_2022_PROGRAM_ID
from spl.token.instructions import (
    close_account,
    freeze_account,
    thaw_account,
)
from spl.token.instructions import transfer as plain_transfer
from spl.token.models import (
    CloseAccountParams,
    FreezeAccountParams,
    ThawAccountParams,
)
from spl.token.models import TransferParams as TokenTransferParams

from pilot_grpc.solana import localnet
from pilot_grpc.solana.localnet import FAUCET, FOR_EVER, GENESIS_HASH, USDC, Fault, Kind, Localnet
from pilot_grpc.solana.localnet.store import Store
from tests.solana.payments import SOL, Payer, Rpc, ata, connected, encoded, funded

PUBLIC_CLUSTERS = {
    "5eykt4UsFv8P8NJdTREpY1vzqKqZKvdpKuc147dw2N9d",  # mainnet
    "EtWTRABZaYq6iMfeYKouRu166VU2xqa1wcaWoxPkrZBG",  # devnet
    "4uhcVJyU9pJkvQyS88uRDiswHXSCkY3zQawwpjk2NsNY",  # testnet
}


def refused(error: pytest.ExceptionInfo[SolanaJsonRpcError]) -> tuple[int, str]:
    return error.value.code, error.value.message


def reason(error: pytest.ExceptionInfo[SolanaJsonRpcError]) -> Any:
    """The `err` of a preflight that failed."""
    data: Any = error.value.data
    return data["err"]


def changes(transaction: Any, mint: Pubkey = USDC) -> dict[str, int]:
    """What a transaction did to the tokens of a mint, by owner: post minus pre."""
    totals: dict[str, int] = {}
    for name, sign in (("preTokenBalances", -1), ("postTokenBalances", 1)):
        for each in transaction["meta"][name]:
            if each["mint"] == str(mint):
                units = sign * int(each["uiTokenAmount"]["amount"])
                totals[each["owner"]] = totals.get(each["owner"], 0) + units
    return totals


# What a node says of itself.


async def test_the_cluster_is_not_a_public_one(rpc: Rpc) -> None:
    assert await rpc("getGenesisHash") == GENESIS_HASH
    assert GENESIS_HASH not in PUBLIC_CLUSTERS
    assert len(bytes(Hash.from_string(GENESIS_HASH))) == 32
    assert await rpc("getHealth") == "ok"
    assert await rpc("getFirstAvailableBlock") == 0


async def test_commitments_are_slots_of_different_ages_and_heights_are_not_slots(
    net: Localnet, rpc: Rpc
) -> None:
    net.tick(3)
    levels = [{"commitment": level} for level in ("processed", "confirmed", "finalized")]

    slots = [await rpc("getSlot", level) for level in levels]
    heights = [await rpc("getBlockHeight", level) for level in levels]

    assert [slots[0] - each for each in slots] == [0, 1, 32]
    assert [heights[0] - each for each in heights] == [0, 1, 32]
    assert slots[0] != heights[0]
    assert await rpc("getSlot") == slots[2]


async def test_a_blockhash_is_good_for_150_blocks(net: Localnet, rpc: Rpc) -> None:
    latest = await rpc("getLatestBlockhash", {"commitment": "processed"})
    blockhash, last = latest["value"]["blockhash"], latest["value"]["lastValidBlockHeight"]
    processed = {"commitment": "processed"}

    assert last == await rpc("getBlockHeight", processed) + 150
    net.tick(150)
    assert (await rpc("isBlockhashValid", blockhash, processed))["value"] is True
    net.tick()
    assert (await rpc("isBlockhashValid", blockhash, processed))["value"] is False
    assert (await rpc("isBlockhashValid", blockhash))["value"] is True  # 32 slots ago it was
    unknown = str(Hash.new_unique())
    assert (await rpc("isBlockhashValid", unknown, processed))["value"] is False


async def test_typed_helpers_of_solana_py_understand_the_answers(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net)
    client = rpc.client
    latest = (await client.get_latest_blockhash()).value
    payment = payer.payment(Pubkey.new_unique(), 1, latest.blockhash)
    message = payment.message
    assert isinstance(message, MessageV0)
    options = TxOpts(skip_confirmation=True, last_valid_block_height=latest.last_valid_block_height)

    sent = (await client.send_raw_transaction(bytes(payment), options)).value
    net.finalize()

    assert sent == payment.signatures[0]
    assert (await client.get_signature_statuses([sent])).value[0] is not None
    assert (await client.get_fee_for_message(message)).value == 10_060
    assert (await client.get_balance(payer.fees.pubkey())).value < SOL
    assert (await client.get_token_account_balance(payer.account)).value.amount == "9999999"
    assert (await client.get_account_info(payer.account)).value is not None
    assert [row.signature for row in (await client.get_signatures_for_address(payer.account)).value]
    found = await client.get_transaction(sent, max_supported_transaction_version=0)
    assert found.value is not None
    assert found.value.transaction.meta is not None
    parsed = await client.get_transaction(sent, "jsonParsed", max_supported_transaction_version=0)
    assert isinstance(parsed, GetTransactionResp)
    owner, options_of_mint = payer.vault.pubkey(), TokenAccountOpts(mint=USDC)
    held = (await client.get_token_accounts_by_owner(owner, options_of_mint)).value
    in_words = await client.get_token_accounts_by_owner_json_parsed(owner, options_of_mint)
    assert [each.pubkey for each in held] == [payer.account]
    assert len(in_words.value) == 1
    assert (await client.simulate_transaction(payment)).value.logs is not None
    assert (await client.get_recent_prioritization_fees()).value
    assert (await client.get_minimum_balance_for_rent_exemption(165)).value == 2_039_280
    assert (await client.get_multiple_accounts([payer.account, USDC])).value[1] is not None
    assert (await client.get_version()).value.solana_core
    await client.request_airdrop(owner, SOL)


async def test_a_fee_is_not_told_for_a_blockhash_that_is_not_known(rpc: Rpc) -> None:
    message = Payer().payment(Pubkey.new_unique(), 1, Hash.new_unique()).message
    wire = base64.b64encode(b"\x80" + bytes(message)).decode()

    assert (await rpc("getFeeForMessage", wire))["value"] is None


# Payments.


async def test_a_payment_creates_the_account_it_pays_into_and_says_so(
    net: Localnet, rpc: Rpc
) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    payment = payer.payment(recipient, 1_250_000, await rpc.blockhash(), memo="ledger-1")

    signature = await rpc.send(payment)
    net.tick(2)
    found = await rpc.transaction(signature)

    assert signature == str(payment.signatures[0])
    assert await rpc.units(ata(recipient)) == 1_250_000
    assert changes(found) == {str(payer.vault.pubkey()): -1_250_000, str(recipient): 1_250_000}
    meta = found["meta"]
    assert (meta["err"], meta["status"], meta["fee"]) == (None, {"Ok": None}, 10_060)
    assert meta["preBalances"][0] - meta["postBalances"][0] == 2_039_280 + 10_060
    assert meta["innerInstructions"][0]["index"] == 2
    assert found["version"] == 0
    assert found["transaction"]["signatures"][0] == signature
    rows = await rpc.rows(ata(recipient))
    assert [(row["signature"], row["memo"], row["err"]) for row in rows] == [
        (signature, "[8] ledger-1", None)
    ]
    assert abs(rows[0]["blockTime"] - time.time()) < 60


async def test_an_encoding_can_be_chosen(net: Localnet, rpc: Rpc) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    payment = payer.payment(recipient, 7, await rpc.blockhash(), memo="mine")
    signature = await rpc.send(payment)
    net.tick(2)

    raw = await rpc.transaction(signature, encoding="base64")
    parsed = await rpc.transaction(signature, encoding="jsonParsed")

    assert raw["transaction"] == [encoded(payment), "base64"]
    instructions = parsed["transaction"]["message"]["instructions"]
    assert [each.get("program") for each in instructions[2:]] == [
        "spl-associated-token-account", "spl-token", "spl-memo",
    ]  # fmt: skip
    assert instructions[3]["parsed"]["info"] == {
        "authority": str(payer.vault.pubkey()),
        "destination": str(ata(recipient)),
        "mint": str(USDC),
        "source": str(payer.account),
        "tokenAmount": {
            "amount": "7", "decimals": 6, "uiAmount": 7e-06, "uiAmountString": "0.000007",
        },
    }  # fmt: skip
    assert instructions[4]["parsed"] == "mine"
    keys = parsed["transaction"]["message"]["accountKeys"]
    assert [key["pubkey"] for key in keys if key["signer"]] == [
        str(payer.fees.pubkey()), str(payer.vault.pubkey()),
    ]  # fmt: skip


async def test_a_versioned_transaction_is_only_for_those_who_can_read_it(
    net: Localnet, rpc: Rpc
) -> None:
    payer = funded(net)
    modern = await rpc.send(payer.payment(Pubkey.new_unique(), 1, await rpc.blockhash()))
    to_itself = payer.transfer(payer.vault.pubkey(), 1)
    legacy = await rpc.send(payer.signed([to_itself], await rpc.blockhash(), legacy=True))
    net.finalize()

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc("getTransaction", modern)
    assert refused(error)[0] == -32015
    assert "version" not in await rpc("getTransaction", legacy)
    assert (await rpc.transaction(legacy))["version"] == "legacy"


async def test_the_same_bytes_pay_once(net: Localnet, rpc: Rpc, other: Rpc) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    payment = payer.payment(recipient, 5, await rpc.blockhash())

    first = await rpc.send(payment)
    again = await other.send(payment)
    net.tick()
    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.send(payment)
    silent = await rpc.send(payment, skipPreflight=True)
    net.tick(100)

    assert first == again == silent
    assert refused(error) == (
        -32002, "Transaction simulation failed: This transaction has already been processed",
    )  # fmt: skip
    assert reason(error) == "AlreadyProcessed"
    assert await rpc.units(ata(recipient)) == 5


async def test_old_transactions_are_not_run_again(net: Localnet, rpc: Rpc) -> None:
    """LiteSVM remembers 32 by default, and would pay again after that."""
    payer, recipient = funded(net), Pubkey.new_unique()
    payment = payer.payment(recipient, 5, await rpc.blockhash())
    await rpc.send(payment)
    net.tick()
    for _ in range(40):
        net.airdrop(recipient, SOL)
        net.tick()

    await rpc.send(payment, skipPreflight=True)
    net.tick()

    assert await rpc.units(ata(recipient)) == 5


async def test_the_same_bytes_are_dead_when_their_blockhash_is(net: Localnet, rpc: Rpc) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    payment = payer.payment(recipient, 5, await rpc.blockhash())
    net.tick(151)

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.send(payment)
    silent = await rpc.send(payment, skipPreflight=True)
    net.finalize()

    assert refused(error) == (-32002, "Transaction simulation failed: Blockhash not found")
    assert reason(error) == "BlockhashNotFound"
    assert await rpc.status(silent) is None
    assert await rpc("getAccountInfo", str(ata(recipient))) == {
        "context": {"apiVersion": "3.0.0", "slot": net.chain.tip - 32},
        "value": None,
    }


async def test_a_payment_lands_in_the_last_block_of_its_blockhash(net: Localnet, rpc: Rpc) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    payment = payer.payment(recipient, 5, await rpc.blockhash())
    net.tick(149)

    await rpc.send(payment)
    net.tick()

    assert await rpc.units(ata(recipient)) == 5


async def test_preflight_at_an_older_commitment_does_not_know_a_newer_blockhash(
    net: Localnet, rpc: Rpc
) -> None:
    payment = funded(net).payment(Pubkey.new_unique(), 5, await rpc.blockhash("confirmed"))

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.send(payment, preflightCommitment="finalized")

    assert refused(error) == (-32002, "Transaction simulation failed: Blockhash not found")
    assert await rpc.send(payment, preflightCommitment="confirmed")


async def test_preflight_says_why(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net, units=4)
    payment = payer.payment(Pubkey.new_unique(), 5, await rpc.blockhash())

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.send(payment)
    net.tick()

    code, message = refused(error)
    assert code == -32002
    assert message.endswith("Error processing Instruction 3: custom program error: 0x1")
    data: Any = error.value.data
    assert data["err"] == {"InstructionError": [3, {"Custom": 1}]}
    assert any("insufficient funds" in line for line in data["logs"])
    assert data["unitsConsumed"] > 0
    assert await rpc.status(str(payment.signatures[0])) is None


async def test_without_preflight_a_failure_lands_and_costs_its_fee(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net, units=4)
    before = (await rpc("getBalance", str(payer.fees.pubkey())))["value"]
    payment = payer.payment(Pubkey.new_unique(), 5, await rpc.blockhash())

    signature = await rpc.send(payment, skipPreflight=True)
    net.finalize()

    failure = {"InstructionError": [3, {"Custom": 1}]}
    status = await rpc.status(signature)
    found = await rpc.transaction(signature)
    assert (status["err"], status["status"]) == (failure, {"Err": failure})
    assert (found["meta"]["err"], changes(found)) == (failure, {str(payer.vault.pubkey()): 0})
    assert (await rpc("getBalance", str(payer.fees.pubkey())))["value"] == before - 10_060
    assert (await rpc.rows(payer.account))[0]["err"] == failure


async def test_who_cannot_pay_the_fee_lands_nothing(net: Localnet, rpc: Rpc) -> None:
    payer = Payer()
    net.faucet(payer.vault.pubkey(), 100)
    net.tick()
    payment = payer.payment(Pubkey.new_unique(), 5, await rpc.blockhash())

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.send(payment)
    await rpc.send(payment, skipPreflight=True)
    net.finalize()

    assert reason(error) == "AccountNotFound"
    assert await rpc.status(str(payment.signatures[0])) is None


async def test_a_signature_is_checked(net: Localnet, rpc: Rpc) -> None:
    good = funded(net).payment(Pubkey.new_unique(), 5, await rpc.blockhash())
    forged = VersionedTransaction.populate(
        good.message, [good.signatures[0], Keypair().sign_message(b"something else")]
    )

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.send(forged)
    silent = await rpc.send(forged, skipPreflight=True)
    net.tick()

    assert refused(error) == (-32003, "Transaction signature verification failure")
    assert await rpc.status(silent) is None


async def test_a_simulation_changes_nothing(net: Localnet, rpc: Rpc) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    payment = payer.payment(recipient, 5, await rpc.blockhash())
    stale = payer.payment(recipient, 5, Hash.new_unique())
    config = {"encoding": "base64", "commitment": "processed"}

    fine = (await rpc("simulateTransaction", encoded(payment), config))["value"]
    unknown = (await rpc("simulateTransaction", encoded(stale), config))["value"]
    replaced = (
        await rpc("simulateTransaction", encoded(stale), {**config, "replaceRecentBlockhash": True})
    )["value"]

    assert (fine["err"], unknown["err"], replaced["err"]) == (None, "BlockhashNotFound", None)
    assert 0 < fine["unitsConsumed"] < 30_000
    assert replaced["replacementBlockhash"]["blockhash"] == str(await rpc.blockhash())
    assert (await rpc("getAccountInfo", str(ata(recipient)), config))["value"] is None


async def test_a_durable_nonce_is_refused_in_words(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net)
    advance = advance_nonce_account(
        AdvanceNonceAccountParams(
            nonce_pubkey=Pubkey.new_unique(), authorized_pubkey=payer.fees.pubkey()
        )
    )
    to_itself = payer.transfer(payer.vault.pubkey(), 1)

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.send(payer.signed([advance, to_itself], Hash.new_unique()))

    assert refused(error) == (-32602, "invalid transaction: a localnet has no durable nonces")


@pytest.mark.parametrize("text", ["", "!", "AAAA", "A" * 4_000])
async def test_what_is_no_transaction_is_refused(rpc: Rpc, text: str) -> None:
    for method in ("sendTransaction", "simulateTransaction"):
        with pytest.raises(SolanaJsonRpcError) as error:
            await rpc(method, text, {"encoding": "base64"})
        assert error.value.code == -32602


async def test_a_message_that_contradicts_itself_is_refused(net: Localnet, rpc: Rpc) -> None:
    """An instruction of a program that is not among the accounts."""
    message = Message.new_with_compiled_instructions(
        1, 0, 0, [FAUCET.pubkey()], await rpc.blockhash(), [CompiledInstruction(7, b"", b"")]
    )

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.send(VersionedTransaction(message, [FAUCET]))

    assert refused(error)[0] == -32602


# Commitment.


async def test_a_status_goes_from_none_to_finalized(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net)
    signature = await rpc.send(payer.payment(Pubkey.new_unique(), 5, await rpc.blockhash()))
    seen: list[Any] = [await rpc.status(signature)]
    for _ in range(33):
        net.tick()
        seen.append(await rpc.status(signature))

    assert seen[0] is None
    levels = [status["confirmationStatus"] for status in seen[1:]]
    assert levels == ["processed"] + ["confirmed"] * 31 + ["finalized"]
    assert [status["confirmations"] for status in seen[1:]] == [*range(32), None]
    assert {status["slot"] for status in seen[1:]} == {net.chain.tip - 32}


async def test_everything_is_read_as_of_a_commitment(net: Localnet, rpc: Rpc) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    signature = await rpc.send(payer.payment(recipient, 5, await rpc.blockhash()))
    net.tick()

    assert await rpc.units(payer.account, "processed") == 9_999_995
    assert await rpc.units(payer.account, "confirmed") == 10_000_000
    assert await rpc.transaction(signature) is None
    assert await rpc.rows(ata(recipient)) == []
    net.tick()
    assert await rpc.units(payer.account, "confirmed") == 9_999_995
    assert await rpc.units(payer.account, "finalized") == 10_000_000
    assert await rpc.transaction(signature) is not None
    assert await rpc.transaction(signature, commitment="finalized") is None
    assert len(await rpc.rows(ata(recipient))) == 1
    assert await rpc.rows(ata(recipient), commitment="finalized") == []


async def test_history_is_not_told_at_processed(rpc: Rpc) -> None:
    for method, what in (
        ("getSignaturesForAddress", USDC),
        ("getTransaction", Signature.default()),
    ):
        with pytest.raises(SolanaJsonRpcError) as error:
            await rpc(method, str(what), {"commitment": "processed"})
        assert refused(error)[0] == -32602


async def test_an_old_status_needs_the_history(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net)
    signature = await rpc.send(payer.payment(Pubkey.new_unique(), 5, await rpc.blockhash()))
    net.tick(400)

    assert await rpc.status(signature, history=False) is None
    assert (await rpc.status(signature))["confirmationStatus"] == "finalized"


async def test_a_node_that_has_not_come_so_far_says_so(rpc: Rpc) -> None:
    slot = await rpc("getSlot")

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc("getBalance", str(USDC), {"minContextSlot": slot + 1})

    assert refused(error)[0] == -32016
    assert error.value.data == {"contextSlot": slot}


# Pages.


@pytest.fixture
async def history(net: Localnet) -> list[str]:
    """Seven deposits for one wallet, two a slot, newest first; the last slot has one."""
    wallet = FAUCET.pubkey()
    signatures = []
    for number in range(7):
        signatures.append(net.faucet(wallet, number + 1))
        if number % 2:
            net.tick()
    net.finalize()
    return signatures[::-1]


async def test_pages_go_back_from_the_newest(rpc: Rpc, history: list[str]) -> None:
    account = ata(FAUCET.pubkey())

    async def page(**config: Any) -> list[str]:
        return [row["signature"] for row in await rpc.rows(account, **config)]

    assert await page() == history
    assert await page(limit=3) == history[:3]
    assert await page(limit=3, before=history[2]) == history[3:6]
    assert await page(before=history[6]) == []
    assert await page(until=history[4]) == history[:4]
    assert await page(before=history[0], until=history[5]) == history[1:5]
    unknown = str(Signature.new_unique())
    assert await page(until=unknown, limit=2) == history[:2]  # as a real node
    assert await page(before=unknown) == []


@pytest.mark.parametrize("limit", [-1, 0, 1_001, "ten"])
async def test_a_page_has_a_limit(rpc: Rpc, limit: Any) -> None:
    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.rows(USDC, limit=limit)
    assert refused(error) == (-32602, "Invalid limit; max 1000")


async def test_a_transfer_to_a_token_account_does_not_name_its_owner(
    net: Localnet, rpc: Rpc
) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    await rpc.send(payer.payment(recipient, 1, await rpc.blockhash()))
    plain = payer.signed([payer.transfer(recipient, 2)], await rpc.blockhash())
    await rpc.send(plain, skipPreflight=True)
    net.tick(2)

    assert len(await rpc.rows(ata(recipient))) == 2
    assert len(await rpc.rows(recipient)) == 1


# Tokens.


async def test_a_plain_transfer_shows_in_the_token_balances(net: Localnet, rpc: Rpc) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    net.faucet(recipient, 1)
    net.tick()
    unchecked = plain_transfer(
        TokenTransferParams(
            program_id=(await _owner(rpc, USDC)),
            source=payer.account,
            dest=ata(recipient),
            owner=payer.vault.pubkey(),
            amount=30,
        )
    )
    signature = await rpc.send(payer.signed([unchecked, unchecked], await rpc.blockhash()))
    net.tick(2)

    found = await rpc.transaction(signature)
    assert changes(found) == {str(payer.vault.pubkey()): -60, str(recipient): 60}
    # Its mint is no account of the transaction, and its decimals are known all the same.
    amounts = [each["uiTokenAmount"] for each in found["meta"]["postTokenBalances"]]
    assert {each["decimals"] for each in amounts} == {6}


async def test_what_a_program_does_inside_shows_in_the_token_balances(
    net: Localnet, rpc: Rpc
) -> None:
    """The ATA program makes the account by calls of its own, and closing it takes it away."""
    payer = funded(net)
    vault = payer.vault.pubkey()
    empty = payer.signed([payer.transfer(USDC_SINK, 10_000_000)], await rpc.blockhash())
    close = close_account(
        CloseAccountParams(
            program_id=await _owner(rpc, USDC), account=payer.account, dest=vault, owner=vault
        )
    )
    net.faucet(USDC_SINK, 1)
    net.tick()
    signatures = [
        await rpc.send(empty),
        await rpc.send(payer.signed([close], await rpc.blockhash()), skipPreflight=True),
    ]
    net.tick(2)

    emptied, closed = [await rpc.transaction(each) for each in signatures]
    assert changes(emptied) == {str(vault): -10_000_000, str(USDC_SINK): 10_000_000}
    assert len(closed["meta"]["preTokenBalances"]) == 1
    assert closed["meta"]["postTokenBalances"] == []
    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.units(payer.account)
    assert refused(error) == (-32602, "Invalid param: could not find account")


USDC_SINK = Pubkey.from_string("11111111111111111111111111111112")


async def _owner(rpc: Rpc, address: Pubkey) -> Pubkey:
    answer = await rpc("getAccountInfo", str(address))
    return Pubkey.from_string(answer["value"]["owner"])


async def test_other_mints_are_told_apart(net: Localnet, rpc: Rpc) -> None:
    """A fake USDC has six decimals as well, and a Token-2022 one an address of its own."""
    wallet = Pubkey.new_unique()
    fake = Pubkey.from_string(await rpc.pilot("createMint"))
    modern = Pubkey.from_string(await rpc.pilot("createMint", token2022=True, decimals=6))
    net.tick()
    signatures = [
        await rpc.pilot("faucet", address=str(wallet), amount=5, mint=str(mint))
        for mint in (fake, modern, USDC)
    ]
    net.finalize()

    found = [await rpc.transaction(each) for each in signatures]
    assert [changes(each) for each in found] == [{}, {}, {str(wallet): 5}]
    assert changes(found[0], fake) == changes(found[1], modern) == {str(wallet): 5}
    programs = [each["meta"]["postTokenBalances"][0]["programId"] for each in found]
    assert programs[1] == str(TOKEN_2022_PROGRAM_ID) != programs[0] == programs[2]
    account = ata(wallet, modern, TOKEN_2022_PROGRAM_ID)
    assert await rpc.units(account) == 5
    assert (await rpc("getAccountInfo", str(account)))["value"]["space"] == 170
    classic = await rpc("getTokenAccountsByOwner", str(wallet), {"programId": programs[0]})
    assert {each["pubkey"] for each in classic["value"]} == {
        str(ata(wallet, fake)), str(ata(wallet)),
    }  # fmt: skip
    only = await rpc("getTokenAccountsByOwner", str(wallet), {"mint": str(modern)})
    assert [each["pubkey"] for each in only["value"]] == [str(account)]


async def test_usdc_is_what_it_is_on_mainnet(rpc: Rpc) -> None:
    answer = await rpc("getAccountInfo", str(USDC), {"encoding": "jsonParsed"})

    assert str(USDC) == "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
    assert answer["value"]["data"]["parsed"] == {
        "type": "mint",
        "info": {
            "decimals": 6,
            "freezeAuthority": str(FAUCET.pubkey()),
            "isInitialized": True,
            "mintAuthority": str(FAUCET.pubkey()),
            "supply": "0",
        },
    }


async def test_an_account_can_be_frozen_and_thawed(net: Localnet, rpc: Rpc) -> None:
    payer, issuer = funded(net), Payer(FAUCET, FAUCET)
    program, authority = await _owner(rpc, USDC), FAUCET.pubkey()
    freeze = freeze_account(
        FreezeAccountParams(
            program_id=program, account=payer.account, mint=USDC, authority=authority
        )
    )
    await rpc.send(issuer.signed([freeze], await rpc.blockhash()))
    net.tick()
    payment = payer.payment(Pubkey.new_unique(), 5, await rpc.blockhash())

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.send(payment)
    thaw = thaw_account(
        ThawAccountParams(program_id=program, account=payer.account, mint=USDC, authority=authority)
    )
    await rpc.send(issuer.signed([thaw], await rpc.blockhash()))
    net.tick()

    assert reason(error) == {"InstructionError": [3, {"Custom": 17}]}
    assert await rpc.send(payment)


async def test_a_transfer_to_a_missing_account_fails(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net)
    careless = payer.signed([payer.transfer(Pubkey.new_unique(), 1)], await rpc.blockhash())

    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.send(careless)

    assert reason(error) == {"InstructionError": [0, "InvalidAccountData"]}


async def test_an_account_without_lamports_is_gone(net: Localnet, rpc: Rpc) -> None:
    payer, elsewhere = Payer(), Pubkey.new_unique()
    net.airdrop(payer.fees.pubkey(), SOL)
    net.tick()
    leave = transfer(
        TransferParams(from_pubkey=payer.fees.pubkey(), to_pubkey=elsewhere, lamports=SOL - 5_000)
    )
    await rpc.send(payer.signed([leave], await rpc.blockhash()))
    net.tick()

    processed = {"commitment": "processed"}
    assert (await rpc("getAccountInfo", str(payer.fees.pubkey()), processed))["value"] is None
    assert (await rpc("getBalance", str(elsewhere), processed))["value"] == SOL - 5_000


async def test_the_faucet_gives_to_everybody_and_twice(net: Localnet, rpc: Rpc) -> None:
    wallet = str(Pubkey.new_unique())
    await rpc.pilot("faucet", address=wallet, amount=5)
    await rpc.pilot("faucet", address=wallet, amount=5)
    await rpc("requestAirdrop", wallet, SOL)
    await rpc("requestAirdrop", wallet, SOL)
    await rpc.pilot("tick")

    assert await rpc.units(ata(Pubkey.from_string(wallet))) == 10
    assert (await rpc("getBalance", wallet, {"commitment": "processed"}))["value"] == 2 * SOL


# Faults.


async def post(url: str, body: Any, **headers: str) -> httpx2.Response:
    """Ask as no library asks."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with httpx2.AsyncClient(timeout=5) as client:
        headers = {"Content-Type": "application/json", **headers}
        return await client.post(url, content=content, headers=headers)


def call(method: str, *params: Any, number: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}


async def test_too_many_requests(net: Localnet) -> None:
    net.faults.add(Fault(Kind.RATE_LIMITED, retry_after="7"), Fault(Kind.RATE_LIMITED))

    answers = [await post(net.url, call("getSlot")) for _ in range(3)]

    assert [each.status_code for each in answers] == [429, 429, 200]
    assert [each.headers.get("retry-after") for each in answers] == ["7", None, None]


async def test_unavailable_for_one_method_until_it_is_cleared(net: Localnet, rpc: Rpc) -> None:
    await rpc.pilot("fault", kind="unavailable", method="getSlot", count=-1)

    statuses = [(await post(net.url, call("getSlot"))).status_code for _ in range(3)]
    health = await rpc("getHealth")
    await rpc.pilot("clear")

    assert (statuses, health) == ([503] * 3, "ok")
    assert await rpc("getSlot")


@pytest.mark.parametrize("kind", [Kind.DISCONNECT, Kind.HANG])
async def test_a_request_that_nobody_looked_at(net: Localnet, kind: Kind) -> None:
    payer = funded(net)
    async with connected(net.url, seconds=0.3) as rpc:
        payment = payer.payment(Pubkey.new_unique(), 5, await rpc.blockhash())
        net.faults.add(Fault(kind, method="sendTransaction"))

        with pytest.raises(SolanaRpcException):
            await rpc.send(payment)
        net.tick()

        assert await rpc.status(str(payment.signatures[0])) is None


@pytest.mark.parametrize("kind", [Kind.APPLY_THEN_DISCONNECT, Kind.APPLY_THEN_HANG])
async def test_a_request_that_was_done_and_not_answered(net: Localnet, kind: Kind) -> None:
    payer = funded(net)
    async with connected(net.url, seconds=0.3) as rpc:
        payment = payer.payment(Pubkey.new_unique(), 5, await rpc.blockhash())
        net.faults.add(Fault(kind, method="sendTransaction"))

        with pytest.raises(SolanaRpcException):
            await rpc.send(payment)
        net.tick()

        assert await rpc.status(str(payment.signatures[0])) is not None


async def test_garbage(net: Localnet) -> None:
    good = await post(net.url, call("getSlot"))
    net.faults.add(
        Fault(Kind.HTML),
        Fault(Kind.TRUNCATED),
        Fault(Kind.WRONG_ID, count=2),
        Fault(Kind.WRONG_TYPE),
    )

    html, *_ = answers = [await post(net.url, call("getSlot")) for _ in range(4)]

    assert "<html>" in html.text
    # Both of these met the second request: its answer, to another, was cut in half.
    assert good.text.startswith(answers[1].text[:20])
    with pytest.raises(json.JSONDecodeError):
        answers[1].json()
    assert answers[2].json() == {**good.json(), "id": 999_999_999}
    assert answers[3].json()["result"] == {"unexpected": True}


async def test_an_error_with_and_without_data(net: Localnet, rpc: Rpc) -> None:
    await rpc.pilot("fault", kind="error", method="getSlot")
    await rpc.pilot("fault", kind="error", code=-32429, message="slow down", data={"wait": 3})

    bare = (await post(net.url, call("getSlot"))).json()
    full = (await post(net.url, call("getHealth"))).json()

    assert bare["error"] == {"code": -32005, "message": "Node is unhealthy"}
    assert full["error"] == {"code": -32429, "message": "slow down", "data": {"wait": 3}}


async def test_dropped_transactions_never_land_but_can_be_sent_again(
    net: Localnet, rpc: Rpc
) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    payment = payer.payment(recipient, 5, await rpc.blockhash())
    net.faults.add(Fault(Kind.DROP, count=2))

    signature = await rpc.send(payment)
    await rpc.send(payment)
    net.tick(10)
    lost = await rpc.status(signature)
    await rpc.send(payment)
    net.tick()

    assert lost is None
    assert await rpc.units(ata(recipient)) == 5


async def test_held_transactions_land_when_released(net: Localnet, rpc: Rpc, other: Rpc) -> None:
    """Sending them again, also to another node, does not free them."""
    payer = funded(net)
    blockhash = await rpc.blockhash()
    payments = [payer.payment(Pubkey.new_unique(), n, blockhash) for n in (1, 2, 3)]
    await rpc.pilot("fault", kind="hold", count=2)
    await rpc.pilot("fault", kind="hold", slots=4)
    first, second, third = [await rpc.send(each) for each in payments]
    await other.send(payments[0])

    net.tick(4)
    assert [await rpc.status(each) for each in (first, second, third)] == [None] * 3
    net.tick()
    assert await rpc.status(third) is not None
    assert await rpc.pilot("release", signatures=[first]) == 1
    net.tick()
    assert await rpc.status(first) is not None
    assert await rpc.status(second) is None


async def test_held_for_too_long_is_held_for_ever(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net)
    net.faults.add(Fault(Kind.HOLD, slots=200))
    signature = await rpc.send(payer.payment(Pubkey.new_unique(), 1, await rpc.blockhash()))

    net.tick(151)
    assert await rpc.pilot("release") == 0
    net.tick(100)

    assert await rpc.status(signature) is None


async def test_rows_that_the_index_got_wrong(rpc: Rpc, net: Localnet, history: list[str]) -> None:
    account = ata(FAUCET.pubkey())

    async def page() -> list[str]:
        return [row["signature"] for row in await rpc.rows(account)]

    net.faults.add(Fault(Kind.DUPLICATE_ROWS), Fault(Kind.REORDER_ROWS), Fault(Kind.MISSING_ROWS))

    assert await page() == [each for each in history for _ in range(2)]
    assert await page() == history[::-1]
    assert await page() == history[1::2]
    assert await page() == history


async def test_a_node_that_lags_answers_as_of_then(net: Localnet, rpc: Rpc, other: Rpc) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    await other.pilot("lag", slots=40)
    signature = await rpc.send(payer.payment(recipient, 5, await rpc.blockhash()))
    net.finalize()
    at_first, behind = [await each("getSlot") for each in (rpc, other)]

    assert at_first - behind == 40
    assert await other("getBlockHeight") == await rpc("getBlockHeight") - 40
    assert (await rpc.status(signature))["confirmationStatus"] == "finalized"
    assert await other.status(signature) is None
    assert await other.transaction(signature) is None
    assert await other.rows(ata(recipient)) == []
    assert await other.units(payer.account) == 10_000_000
    with pytest.raises(SolanaJsonRpcError) as error:
        await other("getBalance", str(recipient), {"minContextSlot": at_first})
    assert refused(error)[0] == -32016
    net.tick(10)
    assert (await other.status(signature))["confirmationStatus"] == "confirmed"


async def test_what_a_lagging_node_is_sent_lands_all_the_same(
    net: Localnet, rpc: Rpc, other: Rpc
) -> None:
    payer = funded(net)
    net.endpoints[1].node.lag = 5
    payment = payer.payment(Pubkey.new_unique(), 5, await rpc.blockhash())

    with pytest.raises(SolanaJsonRpcError) as error:
        await other.send(payment)
    signature = await other.send(payment, skipPreflight=True)
    net.tick()

    assert refused(error)[1].endswith("Blockhash not found")
    assert await rpc.status(signature) is not None


async def test_a_node_far_behind_is_unhealthy(net: Localnet, rpc: Rpc, other: Rpc) -> None:
    await other.pilot("lag", slots=129)

    with pytest.raises(SolanaJsonRpcError) as error:
        await other("getHealth")

    assert refused(error) == (-32005, "Node is behind by 129 slots")
    assert error.value.data == {"numSlotsBehind": 129}
    assert await rpc("getHealth") == "ok"


async def test_faults_are_of_one_node(net: Localnet, rpc: Rpc, other: Rpc) -> None:
    net.endpoints[1].faults.add(Fault(Kind.UNAVAILABLE, count=FOR_EVER))

    with pytest.raises(SolanaRpcException):
        await other("getSlot")

    assert await rpc("getSlot")


async def test_a_fork_takes_back_what_is_not_finalized(net: Localnet, rpc: Rpc) -> None:
    payer, recipient = funded(net), Pubkey.new_unique()
    blockhash = await rpc.blockhash()
    payment = payer.payment(recipient, 5, blockhash)
    signature = await rpc.send(payment)
    net.tick(20)
    assert (await rpc.status(signature))["confirmationStatus"] == "confirmed"
    finalized = [row["signature"] for row in await rpc.rows(payer.account, commitment="finalized")]

    assert await rpc.pilot("fork") == [signature]

    assert await rpc.status(signature) is None
    assert await rpc.transaction(signature) is None
    assert [row["signature"] for row in await rpc.rows(payer.account)] == finalized
    assert await rpc.units(payer.account) == 10_000_000
    processed = {"commitment": "processed"}
    assert (await rpc("getAccountInfo", str(ata(recipient)), processed))["value"] is None
    await rpc.send(payment)
    net.tick()
    assert await rpc.units(ata(recipient)) == 5


async def test_a_fork_may_take_one_and_include_it_again(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net)
    blockhash = await rpc.blockhash()
    first, second = [
        await rpc.send(payer.payment(Pubkey.new_unique(), n, blockhash)) for n in (1, 2)
    ]
    net.tick()
    slot = (await rpc.status(second))["slot"]
    net.tick(5)

    assert await rpc.pilot("fork", signatures=[first], reinclude=True) == [first]

    assert await rpc.status(first) is None
    assert (await rpc.status(second))["slot"] == slot + 5
    assert await rpc.units(payer.account) == 10_000_000 - 2
    net.tick()
    assert (await rpc.status(first))["slot"] == slot + 6
    assert await rpc.units(payer.account) == 10_000_000 - 3


async def test_a_finalized_transaction_cannot_be_forked_away(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net)
    signature = await rpc.send(payer.payment(Pubkey.new_unique(), 5, await rpc.blockhash()))
    net.finalize()

    assert await rpc.pilot("fork") == []
    assert await rpc.status(signature) is not None


@pytest.mark.parametrize(
    "params", [{}, {"kind": "sulk"}, {"kind": "drop", "count": 0}, {"kind": "hang", "for": 3}]
)
async def test_what_is_no_fault_is_refused(rpc: Rpc, params: dict[str, Any]) -> None:
    with pytest.raises(SolanaJsonRpcError) as error:
        await rpc.pilot("fault", **params)
    assert error.value.code == -32602


# JSON-RPC and HTTP.


async def test_a_batch_is_answered_in_its_order(net: Localnet) -> None:
    batch = [
        call("getHealth", number="a"),
        call("getNonsense", number=2),
        {"jsonrpc": "2.0", "method": "getSlot"},  # a notification
        "nonsense",
    ]

    answers = (await post(net.url, batch)).json()

    assert [each["id"] for each in answers] == ["a", 2, None]
    assert answers[0]["result"] == "ok"
    assert [each["error"]["code"] for each in answers[1:]] == [-32601, -32600]


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{", -32700), (b"[]", -32600), (b"[" * 40_000, -32700), (b'{"id": 1}', -32600)],
)
async def test_what_is_no_request_is_refused(net: Localnet, body: bytes, code: int) -> None:
    answer = (await post(net.url, body)).json()
    assert (answer["error"]["code"], answer["id"]) == (code, None)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("getBalance", []),
        ("getBalance", ["not an address"]),
        ("getBalance", [str(USDC), {"commitment": "soon"}]),
        ("getBalance", [str(USDC), 7]),
        ("getSignatureStatuses", [[str(Signature.default())] * 257]),
        ("getSignatureStatuses", ["x"]),
        ("getMultipleAccounts", [[str(USDC)] * 101]),
        ("getTokenAccountBalance", [str(USDC)]),
        ("getTokenAccountsByOwner", [str(USDC), {"programId": str(USDC)}]),
        ("getTokenAccountsByOwner", [str(USDC), {"mint": str(FAUCET.pubkey())}]),
        ("requestAirdrop", [str(USDC), -1]),
        ("isBlockhashValid", ["?"]),
        ("getFeeForMessage", ["AAAA"]),
        ("pilot_lag", [{"slots": 301}]),
        ("pilot_tick", [{"slots": 10_001}]),
        ("pilot_faucet", [{"address": str(USDC), "amount": 1.5}]),
        ("pilot_faucet", [{"address": str(USDC), "amount": 1, "mint": str(FAUCET.pubkey())}]),
    ],
)
async def test_bad_parameters_are_refused(net: Localnet, method: str, params: Any) -> None:
    answer = (await post(net.url, call(method, *params))).json()
    assert answer["error"]["code"] == -32602


async def test_what_a_web_page_could_send_is_refused(net: Localnet) -> None:
    body = call("pilot_faucet", {"address": str(USDC), "amount": 1})

    statuses = [
        (await post(net.url, body, **{"Content-Type": kind})).status_code
        for kind in ("text/plain", "application/json; charset=utf-8")
    ]
    async with httpx2.AsyncClient() as client:
        statuses.append((await client.get(net.url)).status_code)

    assert statuses == [415, 200, 405]


async def test_a_request_that_is_too_large_is_refused(net: Localnet) -> None:
    assert (await post(net.url, b" " * 51_200)).status_code == 200
    assert (await post(net.url, b" " * 51_201)).status_code == 413


async def test_a_client_that_is_killed_is_no_trouble(
    net: Localnet, rpc: Rpc, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connections are reset, and nobody is told of an error."""
    host, port = net.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    await rpc("getSlot")
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    for _ in range(3):
        await rpc("getSlot")

    assert caplog.messages == []


async def test_nonsense_is_no_trouble(net: Localnet, rpc: Rpc) -> None:
    host, port = net.url.removeprefix("http://").split(":")
    for nonsense in (b"\0" * 100_000, b"GET\r\n\r\n", b"POST / HTTP/1.1\r\n" + b"A: b\r\n" * 9_000):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(nonsense)
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 4")

    assert await rpc("getHealth") == "ok"


async def test_it_listens_on_loopback_only() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):  # noqa: S104
        with pytest.raises(localnet.LocalnetError, match="loopback"):
            async with localnet.running(None, host=host):
                pass


async def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(localnet.LocalnetError, match=f"127.0.0.1:{port}"):
            async with localnet.running(None, port=port):
                pass


async def test_a_clock_makes_slots() -> None:
    clocked = localnet.running(None, slot_ms=5, finalized_slots=3)
    async with clocked as net, connected(net.url) as rpc:
        await rpc.finalized(net.airdrop(Pubkey.new_unique(), SOL))


# Restarts.


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    async with localnet.running(tmp_path, manual=True) as net, connected(net.url) as rpc:
        payer, recipient = funded(net), Pubkey.new_unique()
        blockhash = await rpc.blockhash()
        landed = await rpc.send(payer.payment(recipient, 5, blockhash))
        net.tick(2)
        waiting = await rpc.send(payer.payment(recipient, 6, blockhash))
        net.faults.add(Fault(Kind.HOLD))
        held = await rpc.send(payer.payment(recipient, 7, blockhash))
        before = await rpc.transaction(landed), await rpc.rows(payer.account), net.chain.tip

    async with localnet.running(tmp_path, manual=True) as net, connected(net.url) as rpc:
        after = await rpc.transaction(landed), await rpc.rows(payer.account), net.chain.tip
        assert after == before
        assert await rpc.units(payer.account) == 10_000_000 - 5
        net.tick()
        assert await rpc.status(waiting) is not None
        assert await rpc.status(held) is None
        await rpc.pilot("release")
        net.tick()
        assert await rpc.status(held) is not None
        assert await rpc.units(ata(recipient)) == 5 + 6 + 7
        assert await rpc.send(payer.payment(recipient, 8, blockhash))


async def test_bytes_for_one_chain_never_land_on_another(tmp_path: Path) -> None:
    """Who throws the chain away and begins anew gets blockhashes that nobody ever had."""
    async with localnet.running(tmp_path / "a", manual=True) as net:
        first = net.chain.blockhash(net.chain.tip)
    async with localnet.running(tmp_path / "b", manual=True) as net:
        assert net.chain.blockhash(net.chain.tip) != first
        assert not net.chain.is_valid(first, net.chain.tip)


async def test_a_directory_has_one_chain_at_a_time(tmp_path: Path) -> None:
    async with localnet.running(tmp_path):
        with pytest.raises(localnet.LocalnetInUse, match="another localnet"):
            async with localnet.running(tmp_path):
                pass


async def test_others_can_find_it_while_it_runs(tmp_path: Path) -> None:
    assert localnet.address(tmp_path) is None
    async with localnet.running(tmp_path, endpoints=2) as net:
        assert localnet.address(tmp_path) == net.url

    assert localnet.address(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["chain.sqlite"]


async def test_in_a_thread_it_makes_slots_and_keeps_everything(tmp_path: Path) -> None:
    """It answers while nothing else runs in the loop of whoever started it."""
    wallet = Pubkey.new_unique()
    with localnet.in_thread(tmp_path, slot_ms=5, finalized_slots=3) as url:
        assert localnet.address(tmp_path) == url
        async with connected(url) as rpc:
            await rpc.finalized(await rpc.pilot("faucet", address=str(wallet), amount=5))
            with httpx2.Client() as blocking:
                call = {"jsonrpc": "2.0", "id": 1, "method": "getHealth"}
                assert blocking.post(url, json=call).json()["result"] == "ok"

    with localnet.in_thread(tmp_path, slot_ms=5, finalized_slots=3) as url:
        async with connected(url) as rpc:
            assert await rpc.units(ata(wallet)) == 5


def test_what_goes_wrong_in_the_thread_is_raised_where_it_was_started(tmp_path: Path) -> None:
    with (
        localnet.in_thread(tmp_path, slot_ms=5, finalized_slots=3),
        pytest.raises(localnet.LocalnetInUse),
        localnet.in_thread(tmp_path, slot_ms=5, finalized_slots=3),
    ):
        pass
    (tmp_path / "chain.sqlite").write_bytes(b"noise" * 1_000)
    with (
        pytest.raises(localnet.LocalnetError, match="not a database"),
        localnet.in_thread(tmp_path, slot_ms=5, finalized_slots=3),
    ):
        pass


@pytest.mark.parametrize("damage", ["version", "noise"])
async def test_a_file_that_is_not_ours_to_read_is_told(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store._db.execute("PRAGMA user_version = 99")
    store.close()
    if damage == "noise":
        (tmp_path / "chain.sqlite").write_bytes(b"noise" * 1_000)

    with pytest.raises(localnet.LocalnetError, match=r"chain\.sqlite"):
        async with localnet.running(tmp_path):
            pass


@contextmanager
def pilot_localnet(home: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and where it answers."""
    with subprocess.Popen(
        [sys.executable, "-m", "pilot_grpc", "localnet", "--port", "0", *options],
        env={"PATH": os.defpath, "PILOT_DATA_DIR": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line
            said += line
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert found
        try:
            yield process, found.group()
        finally:
            process.kill()


@asynccontextmanager
async def started(home: Path, *options: str) -> AsyncIterator[tuple[subprocess.Popen[str], Rpc]]:
    with pilot_localnet(home, *options) as (process, url):
        async with connected(url) as rpc:
            yield process, rpc


async def test_the_command_serves_until_sigterm(tmp_path: Path) -> None:
    async with started(tmp_path, "--slot-ms", "10") as (process, rpc):
        wallet = Pubkey.new_unique()
        signature = await rpc.pilot("faucet", address=str(wallet), amount=1_000_000)
        await rpc.finalized(signature)
        assert await rpc.units(ata(wallet)) == 1_000_000
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0

    assert (tmp_path / "localnet" / "chain.sqlite").exists()


async def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Killed thrice in the middle of a stream of payments; what was answered is there again."""
    recipient, answered = Pubkey.new_unique(), list[str]()
    newest = 0
    for _ in range(3):
        async with started(tmp_path, "--slot-ms", "10") as (process, rpc):
            # Time never goes backward, whatever was lost.
            assert await rpc("getSlot") >= newest - 32
            for _ in range(50):
                answered.append(await rpc.pilot("faucet", address=str(recipient), amount=1))
            newest = await rpc("getSlot", {"commitment": "processed"})
            process.kill()
            process.wait()

    async with started(tmp_path, "--slot-ms", "10") as (_, rpc):
        for signature in answered:
            await rpc.finalized(signature)
        assert await rpc.units(ata(recipient)) == 150


async def test_what_was_seen_finalized_is_there_after_kill_9(tmp_path: Path) -> None:
    """And what was only accepted still lands."""
    async with started(tmp_path, "--manual") as (process, rpc):
        recipient = Pubkey.new_unique()
        signature = await rpc.pilot("faucet", address=str(recipient), amount=5)
        await rpc.pilot("tick", slots=33)
        before = await rpc.transaction(signature, commitment="finalized")
        assert localnet.address(tmp_path / "localnet") is not None
        accepted = await rpc.pilot("faucet", address=str(recipient), amount=6)
        process.kill()
        process.wait()
        assert localnet.address(tmp_path / "localnet") is None

    async with started(tmp_path, "--manual") as (_, rpc):
        assert await rpc.transaction(signature, commitment="finalized") == before
        assert await rpc.units(ata(recipient), "finalized") == 5
        await rpc.pilot("tick")
        assert await rpc.status(accepted) is not None
        assert await rpc.units(ata(recipient)) == 11
