"""One RPC node: a question goes out, and an answer comes back or one of the faults.

Only the connections are solana-py's. Its typed calls panic on errors without data (a
BaseException), return bare ints for codes that they do not know, and report failed transactions
as confirmed; its raw call reads bodies without an end, ignores ids, and repeats requests by
itself. Here a response is read up to a limit in bytes, is not allowed to be compressed, and must
be a JSON-RPC response to this very request before anything looks into it.
"""

import asyncio
import base64
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from random import uniform
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from urllib.parse import unquote, urlsplit

from pilot_grpc.solana.answers import (
    ERROR_CODE_MAX,
    U64_MAX,
    read_hash,
    read_integer,
    read_logs,
    read_transaction_error,
)
from pilot_grpc.solana.clusters import Genesis
from pilot_grpc.solana.faults import (
    ClusterMismatch,
    RpcBehind,
    RpcError,
    RpcGarbage,
    RpcLimited,
    RpcRejected,
    RpcUnavailable,
    TransactionError,
    clean,
)
from pilot_grpc.tls import trusted

if TYPE_CHECKING:
    from solana.rpc.async_http_provider import AsyncHTTPProvider

T = TypeVar("T")

log = logging.getLogger(__name__)
# It writes every URL at INFO, and below it the headers of answers, such as where else to ask. The
# URLs of RPC providers hold their customers' keys.
for _library in ("httpx2", "httpcore2"):
    logging.getLogger(_library).setLevel(logging.WARNING)

SMALL_BYTES_MAX: Final = 64 * 1024
RETRY_AFTER_SECONDS_MAX: Final = 60.0
# Of a node that says "less often" and not how much less.
RETRY_AFTER_SECONDS: Final = 1.0
REQUESTS_MAX: Final = 32
# Shorter parts of a URL are words such as "rpc" and "v1", not keys.
SECRET_CHARACTERS_MIN: Final = 6

HTTP_OK: Final = 200
HTTP_TOO_MANY_REQUESTS: Final = 429

NODE_UNHEALTHY: Final = -32005
MIN_CONTEXT_SLOT_NOT_REACHED: Final = -32016
# The node would answer, but not now.
_NOT_NOW: Final = frozenset(
    {
        NODE_UNHEALTHY,
        -32603,  # internal error
        -32004,  # block not available
        -32014,  # block status not yet available
        -32019,  # long-term storage unreachable
    }
)
# Of providers: there is no common code.
_TOO_OFTEN: Final = frozenset({429, -32429})

_RETRY_AFTER_DATE: Final = "%a, %d %b %Y %H:%M:%S GMT"
_RETRY_AFTER_DIGITS_MAX: Final = 9
_NOT_THE_NODES: Final = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """Where a node is. The URL and the headers may hold a key, and are never shown."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    # Pilot's own limit for this node: so many requests a second, and so many at once after a rest.
    requests_per_second: float = 20.0
    burst: int = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait, and how often to try. Seconds, where nothing else is said."""

    # One call as a whole: every try at every endpoint, and the pauses between.
    call_seconds: float = 15.0
    # One request to one endpoint.
    request_seconds: float = 5.0
    # How often the endpoints are gone through.
    rounds: int = 4
    # The pause after the first round is random up to this, and then up to twice as long each time.
    backoff_seconds: float = 0.25
    backoff_seconds_max: float = 4.0
    # After so many failures in a row an endpoint is left alone for so long.
    failures_max: int = 5
    rest_seconds: float = 10.0
    # A node that is further behind than this takes no part in decisions (about a minute).
    lag_slots_max: int = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What time is read from and spent with, so that tests need not wait."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    # A random number between two; it spreads the retries of many processes.
    between: Callable[[float, float], float] = uniform


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A method with its parameters, how its result is read, and how long it may be."""

    method: str
    params: list[Any]
    read: Callable[[Any], T]
    bytes_max: int = SMALL_BYTES_MAX


GENESIS: Final = Question("getGenesisHash", [], read_hash)


class Endpoint:
    """A node, with what is known of it: whether it may be used, and when again."""

    def __init__(
        self, settings: EndpointSettings, genesis: Genesis, patience: Patience, clock: Clock
    ) -> None:
        """Take where it is, and what its first block must be. Raises ValueError for a bad URL."""
        parts = urlsplit(settings.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("the URL of an RPC endpoint must begin with https:// or http://")
        # What logs and messages call it: keys are in user names, paths, queries and headers.
        self.name = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        self._url = settings.url
        self._secrets = _secrets(settings)
        self._headers = {
            **settings.headers,
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        self._genesis = genesis
        self._patience = patience
        self._clock = clock
        # Without http2, whose library logs paths, and without proxies out of the environment: one
        # that is meant for the world would get localhost, too.
        self._http = type(_provider().session)(
            http2=False,
            trust_env=False,
            timeout=patience.request_seconds,
            verify=trusted(),
        )
        self._turns = asyncio.Semaphore(REQUESTS_MAX)
        self._bucket = _Bucket(settings.requests_per_second, settings.burst, clock.monotonic())
        self._last_id = 0
        self._failures = 0
        self._rests_until = float("-inf")
        self._limited_until = float("-inf")
        self._checking = asyncio.Lock()
        self._checks = 0
        self._checked = False
        self._was_used = False
        self.refused = False

    async def ask(self, question: Question[T]) -> T:
        """Ask once. Raises one of the RpcErrors; `asked` says whether the question went out.

        Before the first question, and before the first after a rest, the endpoint must show that
        it belongs to the cluster.
        """
        try:
            self._must_be_ready()
            if not self._checked:
                await self._check()
            self._take_turn()
        except RpcError as fault:
            fault.asked = False
            raise
        return await self._ask(question)

    async def check(self) -> None:
        """Find out whether the endpoint belongs to the cluster, if that is not known."""
        self._must_be_ready()
        if not self._checked:
            await self._check()

    async def close(self) -> None:
        """Close the connections. Questions that are under way fail."""
        await self._http.aclose()

    def _must_be_ready(self) -> None:
        if self.refused:
            raise ClusterMismatch(f"{self.name} belongs to another cluster")
        now = self._clock.monotonic()
        if now < self._rests_until:
            wait = self._rests_until - now
            raise RpcUnavailable(f"{self.name} failed too often", retry_after=wait)
        if now < self._limited_until:
            wait = self._limited_until - now
            raise RpcLimited(f"{self.name} wants to be asked later", retry_after=wait)

    def _take_turn(self) -> None:
        wait = self._bucket.take(self._clock.monotonic())
        if wait > 0:
            raise RpcLimited(f"{self.name} is asked as often as is allowed", retry_after=wait)

    async def _check(self) -> None:
        """Ask for the first block: one caller does.

        The others wait for what comes of it; but of an endpoint that was away they do not expect
        so much, and turn to the next one.
        """
        if self._was_used and self._checking.locked():
            raise RpcUnavailable(f"{self.name} is being checked")
        checks = self._checks
        async with self._checking:
            if self._checked:
                return
            if self._checks != checks:  # Somebody tried while this one waited.
                self._must_be_ready()
                raise RpcUnavailable(f"{self.name} could not be checked")
            self._take_turn()
            try:
                found = await self._ask(GENESIS)
            finally:
                self._checks += 1
            if not self._genesis.accepts(found):
                self.refused = True
                log.error(
                    "an RPC endpoint belongs to another cluster and is not used",
                    extra={
                        "endpoint": self.name,
                        "cluster": self._genesis.cluster.name,
                        "genesis_hash": found,
                    },
                )
                raise ClusterMismatch(f"{self.name} belongs to another cluster")
            self._checked = self._was_used = True

    async def _ask(self, question: Question[T]) -> T:
        try:
            answer = await self._exchange(question)
        except (RpcRejected, RpcBehind):
            self._failures = 0  # A sound answer, if not a welcome one.
            raise
        except RpcLimited as fault:
            self._pause(fault)
            raise
        except (RpcUnavailable, RpcGarbage) as fault:
            self._pause(fault)
            self._failures += 1
            if self._failures >= self._patience.failures_max:
                self._rest()
            raise
        self._failures = 0
        return answer

    def _pause(self, fault: RpcError) -> None:
        if fault.retry_after is not None:
            self._limited_until = self._clock.monotonic() + fault.retry_after

    def _rest(self) -> None:
        """Leave the endpoint alone for a while; what comes back may be another node."""
        self._rests_until = self._clock.monotonic() + self._patience.rest_seconds
        self._checked = False
        self._failures = self._patience.failures_max - 1  # The next failure is one too many.
        log.warning("an RPC endpoint failed too often and rests", extra={"endpoint": self.name})

    async def _exchange(self, question: Question[T]) -> T:
        """Send a question and read its answer. Whatever happens, an RpcError comes of it.

        Native code can panic, and a panic is a BaseException that no `except Exception` sees; it
        would end the worker that asked.
        """
        self._last_id += 1
        number = self._last_id
        request = {"jsonrpc": "2.0", "id": number, "method": question.method}
        body = json.dumps(request | {"params": question.params}).encode()
        try:
            return question.read(self._result(await self._post(body, question), number))
        except RpcError as error:
            fault = error
        except _NOT_THE_NODES:
            raise
        except BaseException as error:  # noqa: BLE001 - see above
            kind = type(error).__name__
            fault = RpcGarbage(f"{self.name}: {question.method} cannot be read ({kind})")
        # How it came about is left behind: its variables are the URL, and what the node said.
        fault.__context__ = None
        raise fault.with_traceback(None)

    async def _post(self, body: bytes, question: Question[T]) -> bytes:
        """Return the body of a response. Everything that keeps it from coming is one fault."""
        seconds = self._patience.request_seconds
        try:
            async with asyncio.timeout(seconds), self._turns:
                return await self._receive(body, question)
        except TimeoutError:
            text = f"{self.name}: {question.method} had no answer within {seconds:g} seconds"
            raise RpcUnavailable(text) from None
        except RpcError:
            raise
        except Exception as error:  # noqa: BLE001 - the client's, h11's, ssl's, the system's
            # Only the type: the texts of some hold the URL.
            text = f"{self.name}: {question.method} had no answer ({type(error).__name__})"
            raise RpcUnavailable(text) from None

    async def _receive(self, body: bytes, question: Question[T]) -> bytes:
        post = self._http.stream("POST", self._url, content=body, headers=self._headers)
        async with post as response:
            self._http.cookies.clear()
            if response.status_code != HTTP_OK:
                raise self._refusal(response.status_code, response.headers)
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise RpcGarbage(f"{self.name}: the answer is compressed, which was not wanted")
            received = bytearray()
            async for chunk in response.aiter_raw():
                received += chunk
                if len(received) > question.bytes_max:
                    text = f"more than {question.bytes_max} bytes"
                    raise RpcGarbage(f"{self.name}: {question.method} was answered with {text}")
            return bytes(received)

    def _refusal(self, status: int, headers: Mapping[str, str]) -> RpcError:
        """Whatever else it says: a response with another status than 200 answers nothing."""
        retry_after = self._retry_after(headers.get("retry-after", ""))
        text = f"{self.name}: HTTP status {status}"
        if status == HTTP_TOO_MANY_REQUESTS:
            seconds = RETRY_AFTER_SECONDS if retry_after is None else retry_after
            return RpcLimited(text, retry_after=seconds)
        return RpcUnavailable(text, retry_after=retry_after)

    def _retry_after(self, value: str) -> float | None:
        value = value.strip()
        if value.isascii() and value.isdigit():
            digits = value.lstrip("0") or "0"
            if len(digits) > _RETRY_AFTER_DIGITS_MAX:
                return RETRY_AFTER_SECONDS_MAX
            seconds = float(digits)
        else:
            try:
                at = datetime.strptime(value, _RETRY_AFTER_DATE).replace(tzinfo=UTC)
            except ValueError:
                return None
            seconds = (at - self._clock.now()).total_seconds()
        return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)

    def _result(self, raw: bytes, number: int) -> Any:
        """Take the result out of a response, or raise what its error means."""
        response = json.loads(raw.decode())
        if not isinstance(response, dict) or response.get("jsonrpc") != "2.0":
            raise RpcGarbage(f"{self.name}: the answer is not a JSON-RPC response")
        answered = response.get("id")
        ours = type(answered) is int and answered == number
        error = response.get("error")
        if error is not None and "result" not in response and (ours or answered is None):
            raise self._error(error, ours=ours)
        if error is not None or "result" not in response or not ours:
            raise RpcGarbage(f"{self.name}: the answer is not one to this request")
        return response["result"]

    def _error(self, error: object, *, ours: bool) -> RpcError:
        """Say what an error object means. Without our id it cannot be a verdict on our request."""
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            raise RpcGarbage(f"{self.name}: the error is not a JSON-RPC error")
        code = read_integer(error.get("code"), "an error's code", ERROR_CODE_MAX, -ERROR_CODE_MAX)
        message = self._cleaned(error["message"])
        if code in _TOO_OFTEN:
            return RpcLimited(f"{self.name}: {message}", retry_after=RETRY_AFTER_SECONDS)
        if code == MIN_CONTEXT_SLOT_NOT_REACHED:
            return RpcBehind(f"{self.name} has not seen the slot that was asked for")
        if code in _NOT_NOW or not ours:
            return RpcUnavailable(f"{self.name}: {code}, {message}")
        data = error.get("data")
        found = data if isinstance(data, dict) else {}
        return RpcRejected(
            code,
            message,
            err=_or_none(self._transaction_error, found.get("err")),
            logs=tuple(map(self._cleaned, read_logs(found.get("logs")))),
            units=_or_none(
                lambda units: read_integer(units, "the units", U64_MAX), found.get("unitsConsumed")
            ),
        )

    def _transaction_error(self, value: object) -> TransactionError:
        err = read_transaction_error(value)
        return replace(err, detail=err.detail and self._cleaned(err.detail))

    def _cleaned(self, text: str) -> str:
        """Cut a node's text, and blot out our keys: some providers repeat them in errors."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return clean(text)


@cache
def _provider() -> "AsyncHTTPProvider":
    """Make one of solana-py's providers, of which only the type of its client is wanted."""
    from solana.rpc.async_http_provider import AsyncHTTPProvider  # noqa: PLC0415 - it takes 0.3 s

    return AsyncHTTPProvider("http://localhost")


class _Bucket:
    """So many a second, and so many at once after a rest."""

    def __init__(self, per_second: float, burst: int, now: float) -> None:
        if per_second <= 0 or burst < 1:
            raise ValueError("a rate must be above zero")
        self._per_second = per_second
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> float:
        """Take one and return 0, or return after how many seconds there is one."""
        earned = max(now - self._at, 0.0) * self._per_second
        self._tokens = min(self._tokens + earned, float(self._burst))
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_second
        self._tokens -= 1
        return 0.0


def _secrets(settings: EndpointSettings) -> list[str]:
    """What of the settings must never be shown: the parts of the URL and the headers' values."""
    parts = urlsplit(settings.url)
    pieces = [parts.username, parts.password, settings.url, *settings.headers.values()]
    pieces += re.split(r"[/?&=;#]", f"{parts.path}/{parts.query}")
    pieces += [word for value in settings.headers.values() for word in value.split()]
    found = {each for piece in pieces if piece for each in (piece, unquote(piece))}
    if parts.username is not None:
        # How the client sends them.
        both = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        found.add(base64.b64encode(both.encode()).decode())
    return sorted((each for each in found if len(each) >= SECRET_CHARACTERS_MIN), key=len)[::-1]


def _or_none(read: Callable[[Any], T], value: object) -> T | None:
    """Read what is only there to explain; what cannot be read explains nothing."""
    try:
        return None if value is None else read(value)
    except RpcGarbage:
        return None
