"""The keys of vaults: sealed with one of several wrapping keys, and never told."""

import ast
import base64
import copy
import gc
import inspect
import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from solders.keypair import Keypair
from solders.signature import Signature

import pilot_grpc
from pilot_grpc import sealing
from pilot_grpc.sealing import SealBroken, Sealed, Sealer, Secret, WrappingKeyUnknown
from pilot_grpc.settings import WrappingKey
from pilot_grpc.solana import custody as custody_module
from pilot_grpc.solana.custody import PURPOSE, Custody, SealedKey, Wallet
from pilot_grpc.solana.signing import VaultSigner
from tests import canary

NEW: Final = WrappingKey(id="2026-12", secret=bytes(range(1, 33)))
OLD: Final = WrappingKey(id="2026-11", secret=bytes(range(2, 34)))
OLDEST: Final = WrappingKey(id="2026-10", secret=bytes(range(3, 35)))

SOURCES: Final = Path(pilot_grpc.__file__).parent


@pytest.fixture
def known_wallet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wallet that is made is the canary's."""

    class Known:
        from_bytes = Keypair.from_bytes

        def __call__(self) -> Keypair:
            return canary.KEYPAIR

    monkeypatch.setattr(custody_module, "Keypair", Known())


def sealed_for(key: SealedKey) -> Sealed:
    return Sealed(key.version, key.wrapping_key_id, key.wrapped_data_key, key.sealed_secret)


# --- wrapping keys --------------------------------------------------------------------


@pytest.mark.usefixtures("known_wallet")
def test_a_key_opens_with_the_wrapping_key_that_it_names() -> None:
    """The current one seals; older ones open what they sealed, whichever comes first."""
    keys = [Custody(Sealer(wrapping)).create("vault") for wrapping in (OLDEST, OLD, NEW)]
    custody = Custody(Sealer(NEW, (OLD, OLDEST)))

    signatures = {custody.sign(key, b"message") for key in keys}

    assert [key.wrapping_key_id for key in keys] == ["2026-10", "2026-11", "2026-12"]
    assert custody.create("vault").wrapping_key_id == "2026-12"
    (signature,) = signatures
    assert Signature.from_bytes(signature).verify(canary.KEYPAIR.pubkey(), b"message")


def test_a_wrapping_key_that_is_missing_is_named_and_nothing_else_is() -> None:
    key = Custody(Sealer(OLD)).create("vault")

    with pytest.raises(WrappingKeyUnknown) as refusal:
        Custody(Sealer(NEW, (OLDEST,))).sign(key, b"message")

    assert str(refusal.value) == "the wrapping key '2026-11' is not configured"


@pytest.mark.parametrize(
    "change",
    [
        {"vault_id": "another"},
        {"address": str(Keypair().pubkey())},
        {"version": 2},
        {"wrapping_key_id": NEW.id},
        {"wrapped_data_key": b""},
        {"wrapped_data_key": b"short"},
        {"sealed_secret": b""},
        {"sealed_secret": bytes(92)},
    ],
    ids=" ".join,
)
def test_a_seal_opens_for_its_owner_only_and_unchanged(change: dict[str, Any]) -> None:
    """Rows that are swapped, changed or cut short do not open, and say why in one way."""
    custody = Custody(Sealer(NEW, (OLD,)))
    key = replace(Custody(Sealer(OLD)).create("vault"), **change)

    with pytest.raises(SealBroken, match="changed, or made for another"):
        custody.sign(key, b"message")


def test_the_parts_of_two_seals_do_not_go_together() -> None:
    """Neither data keys nor secrets can be moved from one row to another."""
    custody = Custody(Sealer(NEW))
    one, two = custody.create("vault"), custody.create("vault")
    mixed = [
        replace(one, wrapped_data_key=two.wrapped_data_key),
        replace(one, sealed_secret=two.sealed_secret),
        replace(two, address=one.address),
    ]

    for key in mixed:
        with pytest.raises(SealBroken):
            custody.sign(key, b"message")


def test_every_byte_of_a_seal_counts() -> None:
    custody = Custody(Sealer(NEW))
    key = custody.create("vault")

    for name in ("wrapped_data_key", "sealed_secret"):
        value = getattr(key, name)
        for place in range(len(value)):
            flipped = bytearray(value)
            flipped[place] ^= 1
            changed: dict[str, Any] = {name: bytes(flipped)}
            with pytest.raises(SealBroken):
                custody.sign(replace(key, **changed), b"message")


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        (b"no key", "is no key"),
        (bytes(64), "is no key"),
        (bytes(Keypair()), "is the key of another address"),
    ],
    ids=["text", "zeros", "another"],
)
def test_what_is_no_key_of_the_address_signs_nothing(secret: bytes, why: str) -> None:
    sealer = Sealer(NEW)
    sealed = sealer.seal(secret, PURPOSE, "vault", canary.ADDRESS)
    key = SealedKey(
        "vault",
        canary.ADDRESS,
        sealed.version,
        sealed.wrapping_key_id,
        sealed.wrapped_data_key,
        sealed.sealed_secret,
    )

    with pytest.raises(SealBroken, match=why):
        Custody(sealer).sign(key, b"message")


def test_a_key_that_would_not_open_is_never_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was told the address could pay to it, and nobody could ever spend that."""
    sealer = Sealer(NEW)
    wrong = sealer.seal(bytes(Keypair()), PURPOSE, "vault", canary.ADDRESS)
    monkeypatch.setattr(sealer, "seal", lambda *_: wrong)

    with pytest.raises(SealBroken):
        Custody(sealer).create("vault")


# --- another wrapping key -------------------------------------------------------------


def test_rewrapping_changes_what_wraps_the_data_key_and_nothing_else() -> None:
    key = sealed_for(Custody(Sealer(OLD)).create("vault"))
    sealer = Sealer(OLD)
    secret = b"secret"
    sealed = sealer.seal(secret, "purpose", "owner")

    rewrapped = Sealer(NEW, (OLD,)).rewrap(sealed, "purpose", "owner")

    assert rewrapped.sealed_secret == sealed.sealed_secret
    assert rewrapped.wrapping_key_id == NEW.id
    assert rewrapped.wrapped_data_key != sealed.wrapped_data_key
    assert Sealer(NEW).open(rewrapped, "purpose", "owner") == secret
    for wrong in (Sealer(OLD), Sealer(replace(OLD, id=NEW.id))):
        with pytest.raises(SealBroken):
            wrong.open(rewrapped, "purpose", "owner")
    with pytest.raises(SealBroken):
        Sealer(NEW, (OLD,)).rewrap(key, "purpose", "owner")


def test_a_seal_is_rewrapped_only_when_its_secret_opens() -> None:
    """Also where only the secret was changed, which the data key's own seal would not show."""
    sealed = Sealer(OLD).seal(b"secret", "purpose", "owner")
    last = sealed.sealed_secret[-1]
    changed = replace(sealed, sealed_secret=sealed.sealed_secret[:-1] + bytes([last ^ 1]))

    with pytest.raises(SealBroken):
        Sealer(NEW, (OLD,)).rewrap(changed, "purpose", "owner")


# --- nothing is told ------------------------------------------------------------------


def ways_to_show() -> dict[str, Callable[[Any], str]]:
    return {
        "repr": repr,
        "str": str,
        "f-string": lambda each: f"{each} {each!r} {each!s} {each!a}",
        "format": "{0} {0!r}".format,
        "percent": lambda each: "%s %r" % (each, each),  # noqa: UP031 - as logging does
        "in a list": lambda each: f"{[each]} { ({'a': each})!r}",
        "json": lambda each: json.dumps({"each": each}, default=str),
        "log": lambda each: logging.makeLogRecord({"msg": "%s", "args": (each,)}).getMessage(),
        "pickle": pickle_or_refusal,
        "copy": lambda each: f"{copy_or_refusal(each)}",
        "dir": lambda each: repr([getattr(each, "__dict__", None), getattr(each, "args", None)]),
    }


def pickle_or_refusal(each: Any) -> str:
    """Every protocol, and what it shows in whatever form."""
    text = ""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        try:
            text += repr(pickle.dumps(each, protocol))
        except TypeError as error:
            text += str(error)
    return text


def copy_or_refusal(each: Any) -> str:
    with pytest.raises(TypeError, match="stays where it is"):
        copy.copy(each)
    with pytest.raises(TypeError, match="stays where it is"):
        copy.deepcopy(each)
    return ""


@pytest.mark.parametrize("way", ways_to_show())
def test_neither_a_wallet_nor_a_secret_shows_itself(way: str) -> None:
    show = ways_to_show()[way]
    wallet = Wallet(canary.KEYPAIR)

    shown = [show(wallet), show(wallet.secret())]

    assert canary.found("".join(shown), canary.traces_of_keypair(canary.KEYPAIR)) == set()


def test_the_canary_is_heard() -> None:
    """Each of these tells the secret, and each is noticed, so the tests here mean something."""
    told = canary.traces_of_keypair(canary.KEYPAIR)
    raw = bytes(canary.KEYPAIR)
    revealing = [
        str(canary.KEYPAIR),
        canary.KEYPAIR.to_json(),
        json.dumps(list(raw)),
        json.dumps(list(raw), indent=2),
        repr(raw),
        repr(raw[:32]),
        repr(bytearray(raw)),
        raw.hex(),
        f"\\x{raw.hex()}",
        base64.b64encode(raw).decode(),
        base64.b64encode(b"x" + raw).decode(),
        base64.b64encode(b"xy" + raw).decode(),
        base64.encodebytes(raw).decode(),
        repr(pickle.dumps(raw)),
        repr(pickle.dumps(canary.KEYPAIR)),
        repr(raw)[:60],
        "".join(chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03o}" for byte in raw),
    ]

    assert [text for text in revealing if not canary.found(text, told)] == []
    assert canary.found(canary.ADDRESS + repr(canary.KEYPAIR), told) == set()


class KnownDataKey:
    """AES-GCM, with the data key of the canary for whoever asks for one."""

    data_key = bytes(range(100, 132))
    __call__ = staticmethod(AESGCM)

    def generate_key(self, _: int) -> bytes:
        return self.data_key


@pytest.mark.usefixtures("known_wallet")
def test_no_error_tells_a_secret_whichever_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line that makes, opens or signs fails once, and all variables are looked at."""
    monkeypatch.setattr(sealing, "AESGCM", KnownDataKey())
    sealer = Sealer(NEW, (OLD,))
    custody = Custody(sealer)
    key = Custody(Sealer(OLD)).create("vault")
    sealed = sealed_for(key)
    signer = VaultSigner(custody, key)
    told = canary.traces_of_keypair(canary.KEYPAIR)
    for wrapping in (NEW, OLD):
        told |= canary.traces(wrapping.secret)
    told |= canary.traces(KnownDataKey.data_key)
    files = ("/sealing.py", "/custody.py", "/signing.py")

    def sign() -> None:
        with pytest.raises(StopIteration):
            signer.sign(b"message").send(None)

    works: dict[str, Callable[[], object]] = {
        "create": lambda: custody.create("vault"),
        "sign": sign,
        "rewrap": lambda: sealer.rewrap(sealed, PURPOSE, "vault", canary.ADDRESS),
        "build": lambda: Custody(Sealer(NEW, (OLD,))),
    }
    for name, work in works.items():
        errors = list(canary.sabotaged(work, *files))
        assert len(errors) > 8, name
        for error in errors:
            text = canary.all_of(error)
            assert "Sabotage" in text
            assert canary.found(text, told) == set(), f"{name}\n{text}"


def test_no_wallet_outlives_its_signature() -> None:
    custody = Custody(Sealer(NEW))
    key = custody.create("vault")

    custody.sign(key, b"message")

    gc.collect()
    assert [each for each in gc.get_objects() if isinstance(each, Wallet | Secret)] == []


# --- the source -----------------------------------------------------------------------

# Where a solders Keypair may be named at all. That of keychain is a development backend's, and
# those of localnet belong to nobody: they hold the money of a chain in one's own memory.
KEYPAIR_MODULES: Final = {
    "solana/custody.py",
    "solana/keychain.py",
    "solana/localnet/chain.py",
    "solana/localnet/client.py",
    "solana/localnet/tokens.py",
}

SHOWING: Final = {"str", "repr", "ascii", "format", "print", "vars"}
SHOWING_METHODS: Final = {
    *("debug", "info", "warning", "error", "exception", "critical", "log"),
    *("dumps", "dump", "format", "join", "write"),
}
REVEALING_METHODS: Final = {"to_json", "to_bytes", "to_bytes_array"}


def names_keypair(node: ast.AST | None) -> bool:
    return node is not None and any(
        isinstance(each, ast.Name) and each.id == "Keypair" for each in ast.walk(node)
    )


def is_made(node: ast.AST | None) -> bool:
    """Whether an expression is `Keypair(...)` or `Keypair.from_...(...)`."""
    if not isinstance(node, ast.Call):
        return False
    made_by = node.func.value if isinstance(node.func, ast.Attribute) else node.func
    return isinstance(made_by, ast.Name) and made_by.id == "Keypair"


def name_of(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def keypairs_in(tree: ast.AST) -> set[str]:
    """The names of variables, parameters and attributes that are keypairs."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and names_keypair(node.annotation):
            names.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and (
            names_keypair(node.annotation) or is_made(node.value)
        ):
            names.add(name_of(node.target))
        elif isinstance(node, ast.Assign) and is_made(node.value):
            names |= {name_of(target) for target in node.targets}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and name_of(node.value) in names - {""}:
            names |= {name_of(target) for target in node.targets}
    return names - {""}


def shown_keypairs(source: str) -> list[int]:
    """The lines of a source that put a keypair where its secret would be told."""
    tree = ast.parse(source)
    names = keypairs_in(tree)

    def is_keypair(node: ast.AST) -> bool:
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return any(map(is_keypair, node.elts))
        if isinstance(node, ast.Starred):
            return is_keypair(node.value)
        return is_made(node) or name_of(node) in names

    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.expr) and any(map(is_keypair, shown_by(node)))
    ]


def shown_by(node: ast.expr) -> list[ast.expr]:
    """What an expression turns into text."""
    if isinstance(node, ast.FormattedValue):
        return [node.value]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return [node.right]
    if not isinstance(node, ast.Call):
        return []
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name_of(node.func) in SHOWING or method in SHOWING_METHODS:
        return [*node.args, *(keyword.value for keyword in node.keywords)]
    if method in REVEALING_METHODS and isinstance(node.func, ast.Attribute):
        return [node.func.value]
    return []


@pytest.mark.parametrize(
    "line",
    [
        'f"{k}"',
        'f"{k!r} {1}"',
        "str(k)",
        "repr(k)",
        "print('made', k)",
        "log.info('made %s', k)",
        "log.info('made', extra=k)",
        "'made %s' % k",
        "'made %s' % (k,)",
        "'{}'.format(k)",
        "json.dumps([k])",
        "pickle.dumps(k)",
        "k.to_json()",
        "str(Keypair())",
        "str(self._k)",
        "str(l)",
    ],
)
def test_the_lint_sees_a_keypair_that_is_shown(line: str) -> None:
    harmless = "k = Keypair()\nself._k: Keypair = k\nl = k\nf'{k.pubkey()}'\nstr(k.pubkey())\n"

    assert shown_keypairs(harmless) == []
    assert shown_keypairs(harmless + line) == [6]


def test_no_source_shows_a_keypair() -> None:
    """And only those that have to name one do."""
    naming = set()
    for path in sorted(SOURCES.rglob("*.py")):
        source = path.read_text()
        assert shown_keypairs(source) == [], path
        if names_keypair(ast.parse(source)):
            naming.add(str(path.relative_to(SOURCES)))

    assert naming <= KEYPAIR_MODULES
    assert inspect.getsourcefile(Custody) == str(SOURCES / "solana/custody.py")
