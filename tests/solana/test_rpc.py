"""The port to Solana: what nodes answer, and what is made of it when they fail, lag or lie."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import logging
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from solders.rpc.responses import GetSlotResp

from pilot_grpc.solana.answers import (
    TOKEN_2022_PROGRAM,
    TOKEN_PROGRAM,
    Account,
    Blockhash,
    Commitment,
    PriorityFee,
    Seen,
    SignatureRow,
    Simulation,
    Status,
    TokenAccount,
    TokenBalance,
    TokenState,
    Transaction,
    read_slot,
)
from pilot_grpc.solana.clusters import (
    DEVNET,
    DEVNET_USDC_MINT,
    EMBEDDED,
    LOCALNET,
    MAINNET_BETA,
    TESTNET,
)
from pilot_grpc.solana.endpoint import (
    RETRY_AFTER_SECONDS_MAX,
    EndpointSettings,
    Patience,
    Question,
)
from pilot_grpc.solana.faults import (
    ClusterMismatch,
    RpcAmbiguous,
    RpcBehind,
    RpcDisagreed,
    RpcError,
    RpcGarbage,
    RpcLimited,
    RpcRejected,
    RpcUnavailable,
    TransactionError,
)
from pilot_grpc.solana.rpc import Fate, Reads, Rpc
from tests import canary
from tests.http_server import Behaviour, drip, flood, hang, hang_up, raw, reset
from tests.solana.scripted import (
    REQUEST_SECONDS,
    FakeTime,
    Step,
    behaving,
    body,
    envelope,
    error,
    http,
    hurry,
    node,
    port,
    result,
    seen,
    until,
)
from tests.solana.sound import (
    ADDRESS,
    ANSWERS,
    BLOCKHASH,
    OTHER,
    OTHER_SIGNATURE,
    OWNER,
    SIGNATURE,
    TRANSACTION,
    account,
    balance,
    row,
    send,
    status,
    token_data,
    transaction,
)

ONCE = Patience(request_seconds=REQUEST_SECONDS, call_seconds=REQUEST_SECONDS, rounds=1)


def slot_status(*statuses: object, slot: int = 100) -> Step:
    return seen(list(statuses), slot)


# -- Sound answers


async def test_sound_answers_are_read() -> None:
    """Every method, as a node of today answers it."""
    async with (
        node(**{m: [result(value)] for m, (value, _) in ANSWERS.items()}) as one,
        port(one) as rpc,
    ):
        found = {method: await ask(rpc) for method, (_, ask) in ANSWERS.items()}

    token = TokenAccount(
        TOKEN_PROGRAM, DEVNET_USDC_MINT, OWNER, 5_000_000, TokenState.INITIALIZED, None, 7, None
    )
    assert found == {
        "getGenesisHash": DEVNET.genesis_hash,
        "getSlot": 100,
        "getBlockHeight": 80,
        "getFirstAvailableBlock": 0,
        "getLatestBlockhash": Seen(100, Blockhash(BLOCKHASH, 230)),
        "getRecentPrioritizationFees": (PriorityFee(99, 0), PriorityFee(100, 1_200)),
        "getMinimumBalanceForRentExemption": 2_039_280,
        "getBalance": Seen(100, 1_000_000_000),
        "getAccountInfo": Seen(100, token),
        "getMultipleAccounts": Seen(
            100,
            (
                Account(TOKEN_PROGRAM, 2_039_280, executable=False, data_length=165, token=token),
                None,
            ),
        ),
        "getSignatureStatuses": Seen(100, (Status(90, Commitment.FINALIZED, None, None), None)),
        "getSignaturesForAddress": (
            SignatureRow(SIGNATURE, 90, None, 1_795_000_000, Commitment.FINALIZED),
            SignatureRow(OTHER_SIGNATURE, 89, None, 1_795_000_000, Commitment.FINALIZED),
        ),
        "getTransaction": Transaction(
            SIGNATURE,
            (SIGNATURE,),
            90,
            1_795_000_000,
            None,
            5_000,
            (OWNER, ADDRESS, OTHER),
            (TokenBalance(ADDRESS, DEVNET_USDC_MINT, OWNER, TOKEN_PROGRAM, 0, 6),),
            (
                TokenBalance(ADDRESS, DEVNET_USDC_MINT, OWNER, TOKEN_PROGRAM, 5_500_000, 6),
                TokenBalance(OTHER, DEVNET_USDC_MINT, OWNER, TOKEN_PROGRAM, 1, 6),
            ),
        ),
        "simulateTransaction": Seen(100, Simulation(None, 5_300, ("Program log: hello",))),
        "sendTransaction": SIGNATURE,
    }


async def test_questions_are_asked_as_nodes_want_them() -> None:
    """Commitments, the version of transactions, slots to be waited for; nothing that is null."""
    async with (
        node(**{m: [result(value)] for m, (value, _) in ANSWERS.items()}) as one,
        port(one) as rpc,
    ):
        await rpc.slot(min_context_slot=100)
        await rpc.transaction(SIGNATURE, Commitment.CONFIRMED)
        await rpc.signatures_for_address(ADDRESS, until=SIGNATURE, limit=2, min_context_slot=9)
        await rpc.token_account(ADDRESS)
        await send(rpc)

    assert one.asked[1:] == [
        ("getSlot", [{"commitment": "finalized", "minContextSlot": 100}]),
        (
            "getTransaction",
            [
                SIGNATURE,
                {
                    "commitment": "confirmed",
                    "encoding": "json",
                    "maxSupportedTransactionVersion": 1,
                },
            ],
        ),
        (
            "getSignaturesForAddress",
            [
                ADDRESS,
                {"commitment": "finalized", "until": SIGNATURE, "limit": 2, "minContextSlot": 9},
            ],
        ),
        (
            "getAccountInfo",
            [
                ADDRESS,
                {
                    "commitment": "finalized",
                    "encoding": "base64",
                    "dataSlice": {"offset": 0, "length": 166},
                },
            ],
        ),
        (
            "sendTransaction",
            [
                base64.b64encode(TRANSACTION).decode(),
                {
                    "encoding": "base64",
                    "preflightCommitment": "confirmed",
                    "skipPreflight": False,
                    "maxRetries": 0,
                },
            ],
        ),
    ]


# -- What one node can do wrong

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PREFLIGHT = {
    "err": {"InstructionError": [2, {"Custom": 1}]},
    "logs": ["Program log: Error: insufficient funds", 5],
    "accounts": None,
    "unitsConsumed": 5_300,
    "returnData": None,
}

HANGS: dict[str, Step] = {
    "hang": behaving(hang()),
    "hang in the body": behaving(raw(HEAD + b"Content-Length: 99\r\n\r\n{", close=False)),
    "dripping": behaving(drip(HEAD + b"Content-Length: 9999\r\n\r\n", b" ")),
}
# Each of these keeps an answer from coming, and may be over in a moment.
SILENCES: dict[str, Step] = {
    "503": http(503),
    "500 with an answer": http(500, data=b'{"jsonrpc":"2.0","id":2,"result":5}'),
    "401": http(401),
    "redirect": http(307, {"Location": "http://127.0.0.1:1/"}),
    "204": http(204),
    **HANGS,
    "dropped": behaving(hang_up()),
    "reset": behaving(reset()),
    "reset in the body": behaving(raw(HEAD + b"Content-Length: 99\r\n\r\n{")),
    "not HTTP": behaving(raw(b"SSH-2.0-OpenSSH\r\n")),
    "endless head": behaving(flood(b"HTTP/1.1 200 OK\r\nA: ")),
    "chunks that are none": behaving(raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n")),
    "-32005 without data": error(-32005, "Node is behind"),
    "-32005 with data": error(-32005, "Node is behind", data={"numSlotsBehind": 42}),
    "-32603": error(-32603, "Internal error"),
    "an error that is not ours": envelope(
        jsonrpc="2.0", id=None, error={"code": -32602, "message": "no"}
    ),
}
BEHIND: dict[str, Step] = {
    "-32016 without data": error(-32016, "Minimum context slot has not been reached"),
    "-32016 with data": error(-32016, "Minimum context slot", data={"contextSlot": 5}),
}
LIMITS: dict[str, Step] = {
    "429": http(429),
    "429 with an answer": http(429, data=b'{"jsonrpc":"2.0","id":2,"result":5}'),
    "code 429": error(429, "Too many requests for a specific RPC call"),
    "code -32429": error(-32429, "rate limited"),
    "code 429 without our id": envelope(jsonrpc="2.0", error={"code": 429, "message": "no"}),
}
REJECTIONS: dict[str, Step] = {
    "-32002 with data": error(-32002, "Transaction simulation failed", data=PREFLIGHT),
    "-32002 without data": error(-32002, "This transaction has already been processed"),
    "-32602": error(-32602, "could not find account"),
    "-32015": error(-32015, "Transaction version (0) is not supported"),
    "an unknown code": error(-32000, "what now"),
    "data of another kind": error(-32001, "no", data=[1, {"err": 2}]),
}
GARBAGE: dict[str, Step] = {
    "HTML": body(b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>"),
    "nothing": body(b""),
    "truncated": body(b'{"jsonrpc":"2.0","id":2,"resu'),
    "not UTF-8": body(b'{"jsonrpc":"2.0","id":2,"result":"\xff\xfe"}'),
    "UTF-16": body('{"jsonrpc":"2.0","id":2,"result":5}'.encode("utf-16")),
    "deep": body(b"[" * 60_000),
    "a number of 5,000 digits": body(b'{"jsonrpc":"2.0","id":2,"result":' + b"9" * 5_000 + b"}"),
    "a list": body(b'[{"jsonrpc":"2.0","id":2,"result":5}]'),
    "a number": body(b"5"),
    "null": body(b"null"),
    "another id": envelope(jsonrpc="2.0", id=77, result=5),
    "an id as text": envelope(jsonrpc="2.0", id="2", result=5),
    "an id as a float": envelope(jsonrpc="2.0", id=2.0, result=5),
    "no id": envelope(jsonrpc="2.0", result=5),
    "an error with another id": envelope(
        jsonrpc="2.0", id=77, error={"code": -32602, "message": "no"}
    ),
    "another version": envelope(jsonrpc="1.0", id=2, result=5),
    "no version": envelope(id=2, result=5),
    "neither": envelope(jsonrpc="2.0", id=2),
    "both": envelope(jsonrpc="2.0", id=2, result=5, error={"code": -32602, "message": "no"}),
    "an error that is null": envelope(jsonrpc="2.0", id=2, error=None),
    "an error as text": envelope(jsonrpc="2.0", id=2, error="no"),
    "an error without a code": envelope(jsonrpc="2.0", id=2, error={"message": "no"}),
    "a code as text": error("-32602"),
    "a code that is true": error(code=True),
    "a code that is huge": error(10**30),
    "a message that is none": error(-32602, {"text": "no"}),
    "compressed": lambda _: raw(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"),
    "huge": body(b'{"jsonrpc":"2.0","id":2,"result":5' + b" " * 200_000 + b"}"),
    "endless": behaving(flood(HEAD + b"Connection: close\r\n\r\n", b" " * 10_000)),
}


def hangs(*steps: Step) -> bool:
    return any(step in HANGS.values() for step in steps)


def each(*tables: dict[str, Step]) -> pytest.MarkDecorator:
    steps = {name: step for table in tables for name, step in table.items()}
    return pytest.mark.parametrize("step", steps.values(), ids=steps.keys())


async def fault_of(*steps: Step, patience: Patience = ONCE) -> RpcError:
    """What a read of the slot fails with when the one node answers so."""
    async with (
        node(getSlot=list(steps)) as one,
        port(one, patience=patience, hurried=hangs(*steps)) as rpc,
    ):
        with pytest.raises(RpcError) as found:
            await rpc.slot()
    return found.value


@each(SILENCES)
async def test_a_node_that_does_not_answer_is_unavailable(step: Step) -> None:
    assert type(await fault_of(step)) is RpcUnavailable


@each(BEHIND)
async def test_a_node_that_has_not_seen_the_slot_is_behind(step: Step) -> None:
    assert type(await fault_of(step)) is RpcBehind


@each(LIMITS)
async def test_a_node_that_is_asked_too_often_says_when_again(step: Step) -> None:
    fault = await fault_of(step)

    assert type(fault) is RpcLimited
    assert fault.retry_after == 1.0


@each(REJECTIONS)
async def test_a_node_that_says_no_is_believed(step: Step) -> None:
    assert type(await fault_of(step)) is RpcRejected


@each(GARBAGE)
async def test_garbage_is_called_garbage(step: Step) -> None:
    assert type(await fault_of(step)) is RpcGarbage


@each(SILENCES, BEHIND, LIMITS, GARBAGE)
async def test_a_node_is_asked_again_after_any_of_these(step: Step) -> None:
    """What was wrong may be over in a moment, and 5 was never the answer."""
    async with node(getSlot=[step, result(100)]) as one, port(one, hurried=hangs(step)) as rpc:
        assert await rpc.slot() == 100


async def test_nobody_listens() -> None:
    async with node() as gone:
        pass

    async with port(gone) as rpc:
        with pytest.raises(RpcUnavailable):
            await rpc.slot()


async def test_a_rejection_has_what_the_preflight_found() -> None:
    fault = await fault_of(REJECTIONS["-32002 with data"])

    assert isinstance(fault, RpcRejected)
    assert fault.code == -32002
    assert fault.message == "Transaction simulation failed"
    assert fault.err == TransactionError("InstructionError", 2, "Custom", custom=1)
    assert fault.logs == ("Program log: Error: insufficient funds",)
    assert fault.units == 5_300
    assert not fault.already_processed


@pytest.mark.parametrize(
    "step",
    [
        REJECTIONS["-32002 without data"],
        error(-32002, "Transaction simulation failed", data={"err": "AlreadyProcessed"}),
    ],
)
async def test_a_transaction_that_was_executed_before_is_recognised(step: Step) -> None:
    fault = await fault_of(step)

    assert isinstance(fault, RpcRejected)
    assert fault.already_processed


async def test_texts_of_nodes_are_cut_and_cleaned() -> None:
    fault = await fault_of(error(-32602, "a\x00b\n\ud800\u202e" + "x" * 10_000))

    assert isinstance(fault, RpcRejected)
    assert fault.message == "a b   " + "x" * 194
    fault.message.encode()


BASIC: Final = base64.b64encode(b"userkey111:passkey222").decode()
KEYS: Final = ["userkey111", "passkey222", "path-key-333", "querykey444", "headerkey555", BASIC]
SAID: Final = f"unknown keys {' '.join(KEYS)}"


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (error(-32602, SAID), RpcRejected),
        (error(-32002, SAID, data={"err": {"E": SAID}, "logs": [SAID]}), RpcRejected),
        (error(-32005, SAID), RpcUnavailable),
        (error(429, SAID), RpcLimited),
        (error(SAID, SAID), RpcGarbage),
        (http(401, {"WWW-Authenticate": SAID}, SAID.encode()), RpcUnavailable),
        (http(307, {"Location": f"/{KEYS[2]}"}), RpcUnavailable),
        (result(SAID), RpcGarbage),
        (body(SAID.encode()), RpcGarbage),
        (behaving(hang_up(SAID.encode())), RpcUnavailable),
        (behaving(hang()), RpcUnavailable),
    ],
)
async def test_no_key_gets_into_errors_and_logs(
    caplog: pytest.LogCaptureFixture, step: Step, kind: type[RpcError]
) -> None:
    """Neither when the node repeats it, nor by way of what its client writes or raises.

    Nor is it in the variables of any frame, nor in what the error was raised in spite of.
    """
    caplog.set_level(logging.DEBUG)
    question = Question("getSlot", [], read_slot)
    texts = []
    async with node(getSlot=[step]) as one:
        url = (
            f"http://userkey111:passkey222@127.0.0.1:{one.server.port}"
            "/v2/path-key-333/?api-key=querykey444"
        )
        place = EndpointSettings(url=url, headers={"X-Token": "Bearer headerkey555"})
        for through_port in (True, False):
            rpc = Rpc(DEVNET, [place], ONCE)
            await rpc.start()
            if kind is RpcUnavailable:
                hurry(rpc)
            with pytest.raises(kind) as found:
                await (rpc.slot() if through_port else rpc._endpoints[0].ask(question))
            texts += [canary.all_of(found.value), repr(place), repr(rpc)]
            await rpc.close()

    request = one.server.requests[0]
    assert request.target == "/v2/path-key-333/?api-key=querykey444"
    assert request.headers["x-token"] == "Bearer headerkey555"
    assert request.headers["authorization"] == f"Basic {BASIC}"
    texts += [record.getMessage() + str(vars(record)) for record in caplog.records]
    assert not [key for key in KEYS for text in texts if key in text]
    assert kind is not RpcRejected or "unknown keys *** *** *** *** *** ***" in texts[0]


async def test_a_panic_of_native_code_is_garbage() -> None:
    """A real one: solders panics on errors without data, with what no `except Exception` sees."""

    def read(_: object) -> object:
        text = '{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"behind"}}'
        return GetSlotResp.from_json(text)

    async with node(getSlot=[result(5)]) as one, port(one, patience=ONCE) as rpc:
        with pytest.raises(RpcGarbage, match="PanicException"):
            await rpc._ask(Question("getSlot", [], read))


@pytest.mark.parametrize("stop", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
async def test_what_is_not_the_nodes_doing_goes_through(stop: type[BaseException]) -> None:
    """An endpoint catches everything but what is meant to end the task or the process."""

    async def exchange(*_: object) -> bytes:
        raise stop

    async with node() as one, port(one) as rpc:
        endpoint = rpc._endpoints[0]
        vars_of: Any = endpoint
        vars_of._post = exchange
        coroutine = endpoint.ask(Question("getSlot", [], int))
        with pytest.raises(stop):
            coroutine.send(None)


async def test_a_call_that_is_cancelled_ends_at_once() -> None:
    """And leaves the endpoint as it was."""
    async with (
        node(getSlot=[behaving(hang())]) as one,
        port(one, patience=Patience(request_seconds=60, call_seconds=60)) as rpc,
    ):
        call = asyncio.create_task(rpc.slot())
        await until(lambda: one.count("getSlot"))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        one.then(getSlot=[result(100)])
        assert await rpc.slot() == 100


async def test_a_call_has_a_deadline_of_its_own() -> None:
    """However long each request may take, and however many tries are left."""
    patience = Patience(request_seconds=60, call_seconds=0.2)
    assert type(await fault_of(behaving(hang()), patience=patience)) is RpcUnavailable


async def test_cookies_are_not_kept() -> None:
    async with node(getSlot=[result(100)]) as one:
        steps = [lambda q: _with_cookie(result(100)(q))]
        one.then(getSlot=[*steps, result(100)])
        async with port(one) as rpc:
            await rpc.slot()
            await rpc.slot()

    assert "cookie" not in one.server.requests[-1].headers


def _with_cookie(behave: Behaviour) -> Behaviour:
    async def behaving_so(request: Any, writer: Any) -> None:
        real = writer.write
        writer.write = lambda data: real(data.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n"))
        await behave(request, writer)

    return behaving_so


# -- Shapes

WRONG: list[Any] = [
    None,
    True,
    -1,
    5.0,
    float("inf"),
    "5",
    "",
    "x" * 5_000,
    [],
    {},
    [None],
    {"a": {}},
    2**64,
    10**30,
]


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something is in a JSON value."""
    found = [at]
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, each_ in inner:
        found += paths(each_, (*at, key))
    return found


def replaced(value: Any, at: tuple[Any, ...], by: Any) -> Any:
    if not at:
        return by
    changed = copy.deepcopy(value)
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = by
    return changed


# What Pilot does not look at, and what may be missing or null.
IGNORED = {
    "apiVersion", "rentEpoch", "status", "memo", "version", "preBalances", "postBalances",
    "logMessages", "recentBlockhash", "uiAmount", "uiAmountString", "logs",
}  # fmt: skip
NULLABLE = {
    "blockTime", "confirmationStatus", "owner", "programId", "unitsConsumed", "err",
    "loadedAddresses", "confirmations",
}  # fmt: skip


@pytest.mark.parametrize("method", ANSWERS)
async def test_every_field_is_checked(method: str) -> None:
    """Each field that is read, replaced by each of many wrong values and left out, is garbage."""
    sound, ask = ANSWERS[method]
    expected = RpcAmbiguous if method == "sendTransaction" else RpcGarbage
    patience = Patience(failures_max=10**9, rounds=1)
    accepted = []
    async with (
        node(**{method: [result(sound)]}) as one,
        port(one, patience=patience, burst=10**6) as rpc,
    ):
        await ask(rpc)
        for at in paths(sound):
            if at and IGNORED & {key for key in at if isinstance(key, str)}:
                continue
            for wrong in WRONG:
                one.then(**{method: [result(replaced(sound, at, wrong))]})
                try:
                    await ask(rpc)
                    accepted.append((at, wrong))
                except expected:
                    pass

    assert [(at, wrong) for at, wrong in accepted if not _fine(at, wrong)] == []


def _fine(at: tuple[Any, ...], wrong: Any) -> bool:
    """Whether a value that looks wrong is none: null for nothing, an empty list of rows."""
    name = at[-1] if at else None
    if wrong is None:
        return name in NULLABLE or name in {"value", 0, 1} or not at
    if name in {"executable", "amount"}:
        return bool(wrong == {"executable": True, "amount": "5"}[name])
    return wrong == [] and name in {None, "preTokenBalances", "postTokenBalances", "readonly"}


@pytest.mark.parametrize("method", ANSWERS)
async def test_no_field_may_be_missing(method: str) -> None:
    """But for those that nodes leave out themselves."""
    sound, ask = ANSWERS[method]
    accepted = []
    patience = Patience(failures_max=10**9, rounds=1)
    async with (
        node(**{method: [result(sound)]}) as one,
        port(one, patience=patience, burst=10**6) as rpc,
    ):
        for at in paths(sound):
            if not at or not isinstance(at[-1], str) or IGNORED & set(at):
                continue
            changed = copy.deepcopy(sound)
            inner = changed
            for key in at[:-1]:
                inner = inner[key]
            del inner[at[-1]]
            one.then(**{method: [result(changed)]})
            try:
                await ask(rpc)
                accepted.append(at[-1])
            except RpcGarbage:
                pass

    required = {"err", "confirmations", "confirmationStatus", "owner"}
    allowed = NULLABLE - required
    if method == "getSignaturesForAddress":
        allowed |= {"confirmationStatus"}
    if method == "getTransaction":
        allowed |= {"owner"}
    assert set(accepted) <= allowed


@pytest.mark.parametrize(
    ("err", "expected"),
    [
        ("BlockhashNotFound", TransactionError("BlockhashNotFound")),
        (
            {"InstructionError": [3, "InvalidAccountData"]},
            TransactionError("InstructionError", 3, "InvalidAccountData"),
        ),
        (
            {"InstructionError": [0, {"Custom": 17}]},
            TransactionError("InstructionError", 0, "Custom", custom=17),
        ),
        (
            {"InstructionError": [0, {"BorshIoError": "Unknown"}]},
            TransactionError("InstructionError", 0, "BorshIoError", detail='"Unknown"'),
        ),
        (
            {"InsufficientFundsForRent": {"account_index": 1}},
            TransactionError("InsufficientFundsForRent", detail='{"account_index": 1}'),
        ),
        ({"OfTheFuture": [1, 2]}, TransactionError("OfTheFuture", detail="[1, 2]")),
    ],
)
async def test_reasons_of_failures_are_read(err: object, expected: TransactionError) -> None:
    steps: dict[str, list[Step]] = {
        "getSignatureStatuses": [slot_status(status("confirmed", err))],
        "getTransaction": [result(replaced(transaction(), ("meta", "err"), err))],
        "getSignaturesForAddress": [result([row() | {"err": err}])],
        "simulateTransaction": [seen({"err": err, "logs": None})],
    }
    async with node(**steps) as one, port(one) as rpc:
        (found,) = (await rpc.signature_statuses([SIGNATURE])).value
        landed = await rpc.transaction(SIGNATURE)
        (listed,) = await rpc.signatures_for_address(ADDRESS)
        simulated = await rpc.simulate(TRANSACTION)

    assert found is not None
    assert landed is not None
    assert {found.err, landed.err, listed.err, simulated.value.err} == {expected}
    assert not found.finalized


@pytest.mark.parametrize(
    "err",
    [
        {"InstructionError": [3]},
        {"InstructionError": [3, {"Custom": "17"}]},
        {"InstructionError": [3, {"Custom": -1}]},
        {"InstructionError": [300, {"Custom": 1}]},
        {"InstructionError": ["3", {"Custom": 1}]},
        {"InstructionError": [3, {"Custom": 1, "Other": 1}]},
        {"Two": 1, "Names": 2},
        "a sentence",
    ],
)
async def test_a_reason_that_cannot_be_one_is_garbage(err: object) -> None:
    """It must not be read as success, nor as a failure that money is given back for."""
    async with (
        node(getSignatureStatuses=[slot_status(status("finalized", err))]) as one,
        port(one, patience=ONCE) as rpc,
    ):
        with pytest.raises(RpcGarbage):
            await rpc.signature_statuses([SIGNATURE])


@pytest.mark.parametrize(
    "changes",
    [
        {"meta": None},
        {"meta": transaction()["meta"] | {"postTokenBalances": None}},
        {"meta": transaction()["meta"] | {"postTokenBalances": [balance(3, "1")]}},
        {"meta": transaction()["meta"] | {"postTokenBalances": [balance(1, "1")] * 2}},
        {"meta": transaction()["meta"] | {"loadedAddresses": {"writable": [OTHER] * 300}}},
        {"transaction": transaction()["transaction"] | {"signatures": [OTHER_SIGNATURE]}},
        {"transaction": transaction()["transaction"] | {"signatures": []}},
    ],
)
async def test_a_transaction_that_cannot_be_judged_is_garbage(changes: dict[str, Any]) -> None:
    async with (
        node(getTransaction=[result(transaction() | changes)]) as one,
        port(one, patience=ONCE) as rpc,
    ):
        with pytest.raises(RpcGarbage):
            await rpc.transaction(SIGNATURE)


async def test_what_is_not_there_is_none() -> None:
    async with (
        node(getTransaction=[result(None)], getAccountInfo=[seen(None)]) as one,
        port(one) as rpc,
    ):
        assert await rpc.transaction(SIGNATURE) is None
        assert await rpc.account_info(ADDRESS) == Seen(100, None)
        assert await rpc.token_account(ADDRESS) == Seen(100, None)


async def token(found: dict[str, Any]) -> TokenAccount | None:
    async with node(getAccountInfo=[seen(found)]) as one, port(one, patience=ONCE) as rpc:
        return (await rpc.token_account(ADDRESS)).value


async def test_a_token_account_tells_who_may_move_its_tokens() -> None:
    found = await token(account(token_data(2**64 - 1, state=2, delegate=OTHER, close=ADDRESS)))

    assert found == TokenAccount(
        TOKEN_PROGRAM,
        DEVNET_USDC_MINT,
        OWNER,
        2**64 - 1,
        TokenState.FROZEN,
        delegate=OTHER,
        delegated_amount=7,
        close_authority=ADDRESS,
    )


async def test_a_token_2022_account_may_have_more_behind_it() -> None:
    """Nodes cut the data where they were told to, or do not; `space` says how much there is."""
    whole = token_data(extra=b"\x02" + bytes(4))
    for data in (whole, whole[:166]):
        found = await token(account(data, TOKEN_2022_PROGRAM, space=len(whole)))
        assert found is not None
        assert (found.program, found.amount) == (TOKEN_2022_PROGRAM, 5_000_000)


@pytest.mark.parametrize(
    "found",
    [
        account(b"", "11111111111111111111111111111111"),  # a wallet
        account(token_data(), OTHER),  # another program's, made to look like one
        account(bytes(82)),  # a mint
        account(bytes(355)),  # a multisig
        account(bytes(355), TOKEN_2022_PROGRAM),
        account(token_data(state=0)),  # not initialised
        account(token_data(extra=b"\x01" + bytes(80)), TOKEN_2022_PROGRAM),  # a mint
        account(token_data(extra=b"\x02" + bytes(80))),  # no extensions in the old program
    ],
)
async def test_what_is_no_token_account_is_not_taken_for_one(found: dict[str, Any]) -> None:
    assert await token(found) is None


@pytest.mark.parametrize(
    "found",
    [
        account(token_data()[:100], space=165),
        account(token_data(state=3)),
        account(token_data()[:72] + b"\x02" + token_data()[73:]),
        account(token_data(), data=["not base64!", "base64"]),
        account(token_data(), data=["", "base58"]),
        account(token_data(), data=["", "base64", 1]),
        account(token_data(), space=None),
    ],
)
async def test_a_token_account_that_cannot_be_one_is_garbage(found: dict[str, Any]) -> None:
    with pytest.raises(RpcGarbage):
        await token(found)


async def test_an_answer_from_before_the_slot_that_was_asked_for_is_not_taken() -> None:
    """Not every node minds minContextSlot, and getSignatureStatuses does not even have it."""
    behind = node(
        getSlot=[result(99)],
        getSignatureStatuses=[slot_status(None, slot=99)],
        getAccountInfo=[seen(None, 99)],
        getBalance=[seen(5, 99)],
    )
    async with behind as one, port(one, patience=ONCE) as rpc:
        for question in (
            rpc.slot(min_context_slot=100),
            rpc.signature_statuses([SIGNATURE], min_context_slot=100),
            rpc.token_account(ADDRESS, min_context_slot=100),
            rpc.balance(ADDRESS, min_context_slot=100),
        ):
            with pytest.raises(RpcBehind):
                await question


async def test_rows_that_were_not_asked_for_are_garbage() -> None:
    async with (
        node(getSignaturesForAddress=[result([row(), row()])]) as one,
        port(one, patience=ONCE) as rpc,
    ):
        with pytest.raises(RpcGarbage):
            await rpc.signatures_for_address(ADDRESS, limit=1)


async def test_a_full_page_of_the_longest_memos_is_read() -> None:
    """Strangers choose the memos, and must not be able to keep Pilot from reading a history."""
    longest = [row(slot=1_000 - n) | {"memo": "\x01" * 1_100} for n in range(1_000)]
    async with (
        node(getSignaturesForAddress=[result(longest)]) as one,
        port(one, patience=Patience(rounds=1)) as rpc,
    ):
        assert len(await rpc.signatures_for_address(ADDRESS)) == 1_000


async def test_questions_that_no_node_would_answer_are_not_asked() -> None:
    async with node() as one, port(one) as rpc:
        for wrong in (
            lambda: rpc.signature_statuses([SIGNATURE] * 257),
            lambda: rpc.multiple_accounts([ADDRESS] * 101),
            lambda: rpc.recent_prioritization_fees([ADDRESS] * 129),
            lambda: rpc.signatures_for_address(ADDRESS, limit=0),
            lambda: rpc.signatures_for_address(ADDRESS, limit=1_001),
            lambda: rpc.minimum_rent(-1),
            lambda: rpc.simulate(b""),
            lambda: rpc.simulate(b"\x01" + bytes(1_232)),
            lambda: rpc.send(b"\x00" + bytes(100), preflight_commitment=Commitment.CONFIRMED),
        ):
            with pytest.raises(ValueError, match=r"."):
                await wrong()

    assert one.asked == []


# -- Anything at all

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=90)
    | st.sampled_from([ADDRESS, SIGNATURE, "finalized", "base64", "InstructionError", 0, 1, 100]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "context",
                    "slot",
                    "value",
                    "err",
                    "data",
                    "meta",
                    "message",
                    "code",
                    "result",
                    "Custom",
                    "InstructionError",
                    "signature",
                    "confirmationStatus",
                    "x",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@st.composite
def responses(draw: st.DrawFn, method: str) -> bytes:
    """Bytes; a response with some result or error; or a sound one, with one part replaced."""
    kind = draw(st.sampled_from(["bytes", "json", "result", "error", "mutant", "mutant", "mutant"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "json":
        return json.dumps(draw(JSON)).encode()
    members: dict[str, Any] = {"jsonrpc": "2.0", "id": "ID"}
    if kind == "result":
        members["result"] = draw(JSON)
    elif kind == "error":
        members["error"] = {"code": draw(JSON | st.integers(-33_000, -32_000)), "message": "no"}
        members["error"] |= draw(st.fixed_dictionaries({"data": JSON}) | st.just({}))
    else:
        sound, _ = ANSWERS[method]
        members["result"] = replaced(sound, draw(st.sampled_from(paths(sound))), draw(JSON))
    return json.dumps(members).encode()


def test_whatever_nodes_answer_only_rpc_errors_come_out() -> None:
    """Random bytes and shapes for every method. What is read all the same has the right types."""
    answer = b""

    def step(question: dict[str, Any]) -> Behaviour:
        return body(answer.replace(b'"ID"', str(question["id"]).encode()))(question)

    async def ask(rpc: Rpc, method: str) -> None:
        try:
            _must_be_typed(await ANSWERS[method][1](rpc))
        except RpcError as fault:
            str(fault).encode()

    with asyncio.Runner() as runner:
        patience = Patience(rounds=1, failures_max=10**9)
        steps: dict[str, list[Step]] = {method: [step] for method in ANSWERS}
        nodes = node(**(steps | {"getGenesisHash": [result(DEVNET.genesis_hash)]}))
        one = runner.run(nodes.__aenter__())
        ports = port(one, patience=patience, burst=10**9)
        rpc = runner.run(ports.__aenter__())
        runner.run(rpc.start())
        one.then(getGenesisHash=[step])

        @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.data())
        def anything(data: st.DataObject) -> None:
            nonlocal answer
            method = data.draw(st.sampled_from(sorted(ANSWERS)))
            answer = data.draw(responses(method))
            rpc._endpoints[0]._limited_until = 0.0  # Some answers are well-formed 429s.
            runner.run(ask(rpc, method))

        anything()
        runner.run(ports.__aexit__(None, None, None))
        runner.run(nodes.__aexit__(None, None, None))


def _must_be_typed(value: object) -> None:
    """No dict, list or float out of JSON is in what the port returns, and no number is too big."""
    if isinstance(value, tuple):
        for inner in value:
            _must_be_typed(inner)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            _must_be_typed(getattr(value, name))
    else:
        assert value is None or isinstance(value, int | str)
        assert not isinstance(value, int) or 0 <= value < 2**64


# -- Several nodes, and time


async def test_reads_go_to_the_first_node_that_answers() -> None:
    """In the configured order, and back to the first as soon as it answers again."""
    first = node(getSlot=[http(503), result(1)])
    async with first as a, node(getSlot=[result(2)]) as b, port(a, b) as rpc:
        assert await rpc.slot() == 2
        assert await rpc.slot() == 1

    assert (a.count("getSlot"), b.count("getSlot")) == (2, 1)


async def test_a_rejection_is_final_only_when_nobody_answers() -> None:
    """Nodes differ in what they have: one that has less must not hide one that has more."""
    async with node(getSlot=[error(-32601)]) as a, node(getSlot=[result(2)]) as b:
        async with port(a, b) as rpc:
            assert await rpc.slot() == 2
        b.then(getSlot=[error(-32602), http(503), result(3)])
        async with port(a, b) as rpc:
            with pytest.raises(RpcRejected):
                await rpc.slot()
            assert await rpc.slot() == 3

    assert b.count("getSlot") == 4


async def test_pauses_between_rounds_grow_at_random() -> None:
    time = FakeTime()
    patience = Patience(rounds=6, backoff_seconds=0.5, backoff_seconds_max=3, failures_max=99)
    async with node(getSlot=[http(503)]) as one, port(one, time=time, patience=patience) as rpc:
        with pytest.raises(RpcUnavailable):
            await rpc.slot()

    assert time.slept == [0.5, 1, 2, 3, 3]
    assert one.count("getSlot") == 6


async def test_no_round_begins_after_the_deadline() -> None:
    time = FakeTime()
    patience = Patience(rounds=99, call_seconds=10, backoff_seconds=4, failures_max=99)
    async with node(getSlot=[http(503)]) as one, port(one, time=time, patience=patience) as rpc:
        with pytest.raises(RpcUnavailable):
            await rpc.slot()

    assert time.slept == [4, 4]


@pytest.mark.parametrize("status_code", [429, 503])
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        (" 0003 ", 3.0),
        ("Mon, 23 Nov 2026 00:16:44 GMT", 4.0),  # FakeTime begins at 00:16:40.
    ],
)
async def test_a_node_is_asked_again_when_it_wants_to_be(
    status_code: int, value: str, seconds: float
) -> None:
    time = FakeTime()
    steps = [http(status_code, {"Retry-After": value}), result(1)]
    async with node(getSlot=steps) as one, port(one, time=time) as rpc:
        assert await rpc.slot() == 1

    assert time.slept == [seconds]


@pytest.mark.parametrize("value", ["99999999", "9" * 3_000, "Fri, 31 Dec 9999 23:59:59 GMT", "61"])
async def test_an_absurd_wait_is_cut_and_left_to_the_caller(value: str) -> None:
    """No worker is put to sleep for a year by one header."""
    time = FakeTime()
    async with (
        node(getSlot=[http(429, {"Retry-After": value})]) as one,
        port(one, time=time) as rpc,
    ):
        for _ in range(2):
            with pytest.raises(RpcLimited) as found:
                await rpc.slot()
            assert found.value.retry_after == RETRY_AFTER_SECONDS_MAX

    assert time.slept == []
    assert one.count("getSlot") == 1  # The second call knew.


@pytest.mark.parametrize(
    "value", ["", "-5", "soon", "1.5", "1e9", "Mon, 32 Nov 2026 00:16:44 GMT", "\u00b2", "0"]
)
async def test_a_wait_that_is_none_is_the_usual_one(value: str) -> None:
    time = FakeTime()
    steps = [http(429, {"Retry-After": value}), result(1)]
    async with node(getSlot=steps) as one, port(one, time=time) as rpc:
        assert await rpc.slot() == 1

    assert time.slept == [0.25 if value == "0" else 1.0]


async def test_while_one_node_is_limited_the_next_one_answers() -> None:
    time = FakeTime()
    first = node(getSlot=[http(429, {"Retry-After": "30"}), result(1)])
    async with first as a, node(getSlot=[result(2)]) as b, port(a, b, time=time) as rpc:
        assert [await rpc.slot() for _ in range(3)] == [2, 2, 2]
        assert a.count("getSlot") == 1

        time.seconds += 30
        assert await rpc.slot() == 1

    assert time.slept == []


async def test_a_node_that_fails_too_often_rests_and_then_shows_who_it_is() -> None:
    """Five failures open the breaker; ten seconds later a question for the genesis hash decides."""
    time = FakeTime()
    first = node(getSlot=[http(503)] * 5 + [result(1)])
    async with first as a, node(getSlot=[result(2)]) as b, port(a, b, time=time) as rpc:
        assert [await rpc.slot() for _ in range(9)] == [2] * 9
        assert a.count("getSlot") == 5

        a.then(getGenesisHash=[http(503), result(DEVNET.genesis_hash)])
        time.seconds += 10
        assert [await rpc.slot() for _ in range(3)] == [2] * 3
        assert (a.count("getSlot"), a.count("getGenesisHash")) == (5, 2)

        time.seconds += 10
        assert [await rpc.slot() for _ in range(3)] == [1] * 3
        assert (a.count("getSlot"), a.count("getGenesisHash")) == (8, 3)

    assert time.slept == []


async def test_one_probe_at_a_time_is_sent_to_a_node_that_is_back() -> None:
    """And nobody else waits for what comes of it."""
    time = FakeTime()
    async with (
        node(getSlot=[http(503)]) as a,
        node(getSlot=[result(2)]) as b,
        port(a, b, time=time) as rpc,
    ):
        for _ in range(5):
            await rpc.slot()
        a.then(getGenesisHash=[behaving(hang())])
        time.seconds += 10
        probing = asyncio.create_task(rpc.slot())
        await until(lambda: a.count("getGenesisHash") == 2)

        assert [await rpc.slot() for _ in range(20)] == [2] * 20
        assert not probing.done()
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)

    assert a.count("getGenesisHash") == 2


async def test_calls_that_begin_together_ask_for_the_cluster_once() -> None:
    """Those that wait for it get what comes of it, be it good or bad."""
    async with (
        node(getGenesisHash=[behaving(hang_up())], getSlot=[result(1)]) as one,
        port(one, patience=ONCE) as rpc,
    ):
        faults = await asyncio.gather(*(rpc.slot() for _ in range(9)), return_exceptions=True)
        assert {type(fault) for fault in faults} == {RpcUnavailable}
        assert one.count("getGenesisHash") == 1

        one.then(getGenesisHash=[result(DEVNET.genesis_hash)])
        assert await asyncio.gather(*(rpc.slot() for _ in range(9))) == [1] * 9

    assert one.count("getGenesisHash") == 2


async def test_only_failures_in_a_row_count_and_rejections_are_none() -> None:
    steps = ([http(503)] * 4 + [error(-32602)]) * 3 + [result(1)]
    async with node(getSlot=steps) as a, node(getSlot=[result(2)]) as b, port(a, b) as rpc:
        assert [await rpc.slot() for _ in range(16)] == [2] * 15 + [1]


async def test_a_lone_node_that_rests_is_waited_for() -> None:
    time = FakeTime()
    steps = [http(503)] * 5 + [result(1)]
    async with node(getSlot=steps) as one, port(one, time=time, patience=Patience(rounds=9)) as rpc:
        assert await rpc.slot() == 1

    assert time.slept == [0.25, 0.5, 1, 2, 4, 6]


async def test_pilots_own_limit_for_a_node() -> None:
    """Two at once, then one in half a second; the genesis hash is a question like any other."""
    time = FakeTime()
    async with (
        node(getSlot=[result(1)]) as one,
        port(one, time=time, requests_per_second=2, burst=2) as rpc,
    ):
        for _ in range(4):
            await rpc.slot()

    assert time.slept == [0.5, 0.5, 0.5]


async def test_a_limit_of_our_own_moves_reads_to_the_next_node() -> None:
    time = FakeTime()
    async with (
        node(getSlot=[result(1)]) as a,
        node(getSlot=[result(2)]) as b,
        port(a, b, time=time, requests_per_second=1, burst=3) as rpc,
    ):
        assert [await rpc.slot() for _ in range(4)] == [1, 1, 2, 2]

    assert time.slept == []


async def test_what_several_nodes_did_is_told_together() -> None:
    async with (
        node(getSlot=[http(503)]) as a,
        node(getSlot=[body(b"<html>")]) as b,
        port(a, b, patience=ONCE) as rpc,
    ):
        with pytest.raises(RpcUnavailable) as found:
            await rpc.slot()

    assert str(found.value) == (
        f"getSlot: {a.name}: HTTP status 503; {b.name}: getSlot cannot be read (JSONDecodeError)"
    )


# -- The cluster


async def test_a_node_of_another_cluster_is_never_used(caplog: pytest.LogCaptureFixture) -> None:
    wrong = node(
        getGenesisHash=[result(MAINNET_BETA.genesis_hash)],
        getSlot=[result(1)],
        sendTransaction=[result(SIGNATURE)],
    )
    sound = node(getSlot=[result(2)], sendTransaction=[result(SIGNATURE)])
    async with wrong as a, sound as b, port(a, b) as rpc:
        await rpc.start()
        assert await rpc.slot() == 2
        await send(rpc)

    assert [method for method, _ in a.asked] == ["getGenesisHash"]
    (record,) = caplog.records
    assert (record.levelname, vars(record)["endpoint"]) == ("ERROR", a.name)


async def test_where_every_node_belongs_to_another_cluster_nothing_starts() -> None:
    wrong = {"getGenesisHash": [result(TESTNET.genesis_hash)], "sendTransaction": [result("")]}
    async with node(**wrong) as a, node(**wrong) as b, port(a, b) as rpc:
        for ask in (rpc.start, rpc.slot, lambda: send(rpc)):
            with pytest.raises(ClusterMismatch):
                await ask()

    assert {method for method, _ in a.asked + b.asked} == {"getGenesisHash"}


async def test_nodes_that_are_away_keep_nobody_from_starting() -> None:
    """They are checked when they are back, before anything else is asked."""
    away = [http(503)] * 4 + [result(DEVNET.genesis_hash)]
    async with (
        node(getGenesisHash=away, getSlot=[result(1)]) as one,
        port(one, patience=ONCE) as rpc,
    ):
        await rpc.start()
        for _ in range(3):
            with pytest.raises(RpcUnavailable):
                await rpc.slot()
        assert await rpc.slot() == 1

    assert one.count("getSlot") == 1


async def test_another_cluster_behind_the_same_name_is_noticed() -> None:
    """After a rest the endpoint may lead elsewhere: a proxy that was set up anew, a wrong DNS."""
    time = FakeTime()
    async with node(getSlot=[http(503)]) as one, port(one, time=time, patience=ONCE) as rpc:
        for _ in range(5):
            with pytest.raises(RpcUnavailable):
                await rpc.slot()
        one.then(getSlot=[result(1)], getGenesisHash=[result(MAINNET_BETA.genesis_hash)])
        time.seconds += 10
        for _ in range(2):
            with pytest.raises(ClusterMismatch):
                await rpc.slot()

    assert one.count("getGenesisHash") == 2


async def test_a_localnet_is_the_first_one_seen_and_none_that_is_known() -> None:
    def of(genesis_hash: str | None) -> Any:
        return node(getGenesisHash=[result(genesis_hash)], getSlot=[result(1)])

    async with of(BLOCKHASH) as mine, of(OWNER) as other, of(MAINNET_BETA.genesis_hash) as main:
        async with port(main, mine, other, cluster=LOCALNET) as rpc:
            assert await rpc.slot() == 1
            await rpc.start()
        async with port(main, of_embedded := mine, cluster=LOCALNET) as rpc:
            assert await rpc.slot() == 1
        async with port(main, cluster=LOCALNET) as rpc:
            with pytest.raises(ClusterMismatch):
                await rpc.start()
        async with port(mine, cluster=EMBEDDED) as rpc:
            with pytest.raises(ClusterMismatch):
                await rpc.start()

    assert main.count("getSlot") == other.count("getSlot") == 0
    assert of_embedded.count("getSlot") == 2


@pytest.mark.parametrize(
    "urls",
    [
        [],
        ["http://127.0.0.1:1/", "http://127.0.0.1:1"],
        ["ws://127.0.0.1:1"],
        ["http://"],
        ["localhost:8899"],
        ["http://localhost:123456"],
    ],
)
async def test_endpoints_that_cannot_be_are_refused(urls: list[str]) -> None:
    """The same one twice would agree with itself."""
    with pytest.raises(ValueError, match=r"."):
        Rpc(DEVNET, [EndpointSettings(url=url) for url in urls])


# -- Sending

ACCEPTED = result(SIGNATURE)
REJECTED = error(-32002, "Transaction simulation failed", data=PREFLIGHT)


def sends(*steps: Step) -> Any:
    return node(sendTransaction=list(steps))


async def test_a_transaction_goes_to_every_node() -> None:
    async with (
        sends(ACCEPTED) as a,
        sends(ACCEPTED) as b,
        sends(ACCEPTED) as c,
        port(a, b, c) as rpc,
    ):
        assert await send(rpc) == SIGNATURE
        await until(lambda: not rpc._sending)

    assert len({json.dumps(each.asked[-1]) for each in (a, b, c)}) == 1
    assert [each.count("sendTransaction") for each in (a, b, c)] == [1, 1, 1]


@each(SILENCES, BEHIND, LIMITS, REJECTIONS, GARBAGE, {"another signature": result(OTHER_SIGNATURE)})
async def test_one_success_is_success(step: Step) -> None:
    """Whatever the other node says, or does not say."""
    async with sends(step) as a, sends(ACCEPTED) as b, port(a, b) as rpc:
        assert await send(rpc) == SIGNATURE  # Which does not wait for one that hangs.


@each(SILENCES, BEHIND, LIMITS, GARBAGE, {"another signature": result(OTHER_SIGNATURE)})
async def test_a_send_without_a_clear_answer_is_ambiguous(step: Step) -> None:
    """Even when another node rejects it: this one may have passed it on. It is sent once."""
    async with sends(step) as a, sends(REJECTED) as b:
        async with port(a, hurried=hangs(step)) as rpc:
            with pytest.raises(RpcAmbiguous):
                await send(rpc)
        async with port(a, b, hurried=hangs(step)) as rpc:
            with pytest.raises(RpcAmbiguous):
                await send(rpc)

    assert a.count("sendTransaction") == 2


@pytest.mark.parametrize("code", [-32000, -32001, -32011, -32099, 1, 0])
async def test_a_code_that_pilot_does_not_know_is_no_rejection_of_a_send(code: int) -> None:
    async with sends(error(code)) as one, port(one) as rpc:
        with pytest.raises(RpcAmbiguous):
            await send(rpc)


@pytest.mark.parametrize("code", [-32002, -32003, -32006, -32013, -32600, -32601, -32602])
async def test_a_send_is_rejected_when_every_node_says_so(code: int) -> None:
    async with sends(error(code)) as a, sends(REJECTED) as b, port(a, b) as rpc:
        with pytest.raises(RpcRejected) as found:
            await send(rpc)

    assert found.value.err == TransactionError("InstructionError", 2, "Custom", custom=1)


async def test_that_it_was_executed_is_the_rejection_that_counts() -> None:
    async with (
        sends(REJECTED) as a,
        sends(REJECTIONS["-32002 without data"]) as b,
        port(a, b) as rpc,
    ):
        with pytest.raises(RpcRejected) as found:
            await send(rpc)

    assert found.value.already_processed


async def test_what_was_sent_to_nobody_is_not_ambiguous() -> None:
    """Nothing can have happened when every node rests, or is not to be asked yet."""
    time = FakeTime()
    async with node(sendTransaction=[http(429)]) as one, port(one, time=time) as rpc:
        with pytest.raises(RpcAmbiguous):
            await send(rpc)
        with pytest.raises(RpcLimited) as limited:
            await send(rpc)
        time.seconds += 1
        one.then(sendTransaction=[http(503)])
        for _ in range(5):
            with pytest.raises(RpcAmbiguous):
                await send(rpc)
        with pytest.raises(RpcUnavailable) as resting:
            await send(rpc)
        one.then(getGenesisHash=[http(503)])
        time.seconds += 10
        with pytest.raises(RpcUnavailable) as unchecked:
            await send(rpc)

    faults = [found.value for found in (limited, resting, unchecked)]
    assert [fault.asked for fault in faults] == [False] * 3
    assert [fault.retry_after for fault in faults] == [1.0, 10.0, None]
    assert one.count("sendTransaction") == 6


async def test_the_first_success_does_not_wait_for_a_node_that_hangs() -> None:
    patience = Patience(request_seconds=60)
    async with sends(behaving(hang())) as a, sends(ACCEPTED) as b:
        async with port(a, b, patience=patience) as rpc:
            assert await send(rpc) == SIGNATURE
            assert len(rpc._sending) == 1
        assert not rpc._sending  # Closing gave it up.


async def test_a_send_that_is_cancelled_leaves_nothing_behind() -> None:
    patience = Patience(request_seconds=60)
    async with sends(behaving(hang())) as one, port(one, patience=patience) as rpc:
        sending = asyncio.create_task(send(rpc))
        await until(lambda: one.count("sendTransaction"))
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await until(lambda: not rpc._sending)


# -- What two must agree on


async def look(rpc: Rpc, *, min_context_slot: int = 0) -> Status | None:
    """Ask for a status, of which only `nothing` needs two."""

    async def ask(reads: Reads, slot: int) -> Status | None:
        found = await reads.signature_statuses([SIGNATURE], min_context_slot=slot)
        return found.value[0]

    return await rpc.agreed(
        ask,
        lambda found: "absent" if found is None else None,
        min_context_slot=min_context_slot,
    )


def at(slot: int, *statuses: object, height: int = 300, **steps: list[Step]) -> Any:
    """A node whose newest slot is this, and whose statuses are these, one for each question."""
    return node(
        getSlot=[result(slot)],
        getBlockHeight=[result(height)],
        getSignatureStatuses=[slot_status(each_, slot=slot) for each_ in statuses],
        getFirstAvailableBlock=[result(0)],
        **steps,
    )


LANDED = Status(90, Commitment.FINALIZED, None, None)
CONFIRMED = Status(90, Commitment.CONFIRMED, 3, None)


@pytest.mark.parametrize("steps", range(8))
async def test_what_is_cancelled_while_all_are_asked_leaves_no_question_unasked(steps: int) -> None:
    """Also before the first of them has begun; Python warns of one that was only made."""
    async with at(1_000, None) as a, at(990, None) as b, port(a, b) as rpc:
        for asked in (rpc.fate(SIGNATURE, 299), rpc.statuses([SIGNATURE], search_history=True)):
            asking = asyncio.create_task(asked)
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking


async def test_a_lone_node_decides_alone() -> None:
    async with at(1_000, None) as one, port(one) as rpc:
        assert await look(rpc) is None


async def test_two_nodes_must_agree_that_nothing_is_there() -> None:
    async with at(1_000, None) as a, at(990, None) as b, port(a, b) as rpc:
        assert await look(rpc) is None

    assert a.count("getSignatureStatuses") == b.count("getSignatureStatuses") == 1


async def test_one_that_has_seen_it_is_believed() -> None:
    """A node that lies, or has lost its history, makes nobody pay twice."""
    liars = at(1_000, None), at(1_000, None)
    async with liars[0] as a, liars[1] as b, at(1_000, status()) as c, port(a, b, c) as rpc:
        assert await look(rpc) == LANDED


@each(SILENCES, BEHIND, LIMITS, REJECTIONS, GARBAGE)
async def test_one_that_fails_leaves_a_lone_word_which_is_not_enough(step: Step) -> None:
    async with at(1_000, None) as a, at(1_000, None) as b, at(1_000, None) as c:
        a.then(getSignatureStatuses=[step])
        async with port(a, b, hurried=hangs(step)) as rpc:
            with pytest.raises(RpcUnavailable, match="1 of 2"):
                await look(rpc)
        async with port(a, b, c, hurried=hangs(step)) as rpc:
            assert await look(rpc) is None


async def test_a_node_that_lags_decides_nothing() -> None:
    """Neither does it count as the second one, nor does it hold up two that are not behind."""
    async with at(1_000, None) as a, at(849, None) as slow, at(1_000, None) as c:
        async with port(a, slow) as rpc:
            with pytest.raises(RpcUnavailable, match="1 of 2"):
                await look(rpc, min_context_slot=900)
        slow.then(getSignatureStatuses=[slot_status(status("processed"), slot=849)])
        async with port(a, slow, c) as rpc:
            assert await look(rpc) is None

    assert slow.count("getSignatureStatuses") == 0


async def test_a_node_that_pretends_to_be_ahead_outvotes_nobody() -> None:
    """Its slot would make all the others laggards, if the newest were what counts."""
    async with at(2**62, None) as liar, at(1_000, status()) as b, at(1_000, status()) as c:
        async with port(liar, b, c) as rpc:
            assert await look(rpc) == LANDED
        async with port(liar, b) as rpc:
            assert await look(rpc) == LANDED


async def test_a_node_that_answers_from_before_its_own_slot_is_not_counted() -> None:
    """Many nodes can stand behind one URL, and the next question may reach one that is behind."""
    behind = {"getSignatureStatuses": [slot_status(None, slot=999)]}
    async with at(1_000, None) as a, at(1_000, None) as b:
        b.then(**behind)
        async with port(a, b) as rpc:
            with pytest.raises(RpcUnavailable, match="1 of 2"):
                await look(rpc)


async def test_nobody_answers_at_all() -> None:
    async with node(getSlot=[http(503)]) as a, node(getSlot=[http(503)]) as b, port(a, b) as rpc:
        with pytest.raises(RpcUnavailable, match="0 of 2"):
            await look(rpc)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (status(), status(), Fate(LANDED, expired=False)),
        (status("confirmed"), status("confirmed"), Fate(CONFIRMED, expired=False)),
        (status("confirmed"), status(), Fate(CONFIRMED, expired=False)),
        (None, status("confirmed"), Fate(CONFIRMED, expired=False)),
        (None, None, Fate(None, expired=True)),
        (None, status(), RpcDisagreed),
        (status(), status(err="AccountNotFound"), RpcDisagreed),
        (status(err="AccountNotFound"), None, RpcDisagreed),
    ],
)
async def test_the_fate_of_a_transaction(one: Any, other: Any, expected: Any) -> None:
    """The height is past the last valid one. What is final needs two, what is not needs none."""
    async with at(1_000, one) as a, at(1_000, other) as b, port(a, b) as rpc:
        if isinstance(expected, Fate):
            assert await rpc.fate(SIGNATURE, 299) == expected
        else:
            with pytest.raises(expected):
                await rpc.fate(SIGNATURE, 299)


async def test_a_failure_is_final_when_two_say_so() -> None:
    failed = status(err={"InstructionError": [2, {"Custom": 17}]})
    async with at(1_000, failed) as a, at(1_000, failed) as b:
        async with port(a, b) as rpc:
            fate = await rpc.fate(SIGNATURE, 299)
        b.then(getSlot=[http(503)])
        async with port(a, b) as rpc:
            with pytest.raises(RpcUnavailable):
                await rpc.fate(SIGNATURE, 299)

    assert fate.status is not None
    assert fate.status.err == TransactionError("InstructionError", 2, "Custom", custom=17)


async def test_nothing_has_expired_at_its_last_valid_height() -> None:
    """Not there, but it could still come: nobody may sign it anew."""
    async with at(1_000, None, height=299) as a, at(1_000, None, height=300) as b:
        async with port(a) as rpc:
            assert await rpc.fate(SIGNATURE, 299) == Fate(None, expired=False)
        async with port(a, b) as rpc:
            assert await rpc.fate(SIGNATURE, 299) == Fate(None, expired=False)


async def test_the_last_look_comes_after_the_height() -> None:
    """A status from before the block that made the height pass would miss a late landing."""
    async with at(1_000, None) as one, port(one) as rpc:
        one.then(getSlot=[result(1_000), result(1_005)])
        with pytest.raises(RpcUnavailable, match="0 of 1"):
            await rpc.fate(SIGNATURE, 299)
        one.then(
            getSlot=[result(1_000), result(1_005)],
            getSignatureStatuses=[slot_status(None, slot=1_005)],
        )
        assert await rpc.fate(SIGNATURE, 299) == Fate(None, expired=True)

    methods = [method for method, _ in one.asked[-4:]]
    assert methods == ["getSlot", "getBlockHeight", "getSlot", "getSignatureStatuses"]
    assert one.asked[-3][1] == [{"commitment": "finalized", "minContextSlot": 1_000}]
    assert one.asked[-1][1] == [[SIGNATURE], {"searchTransactionHistory": True}]


async def test_a_node_that_has_forgotten_does_not_know_that_nothing_landed() -> None:
    """Pilot was away for a week; the transaction landed, and this node keeps two days."""
    async with at(1_000, None) as a, at(1_000, None) as b, port(a, b) as rpc:
        b.then(getFirstAvailableBlock=[result(901)])
        with pytest.raises(RpcUnavailable, match="1 of 2"):
            await rpc.fate(SIGNATURE, 299, since_slot=900)

        b.then(getFirstAvailableBlock=[result(900)])
        assert await rpc.fate(SIGNATURE, 299, since_slot=900) == Fate(None, expired=True)
