"""Keys and tokens for the tests, honest and forged."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_GENERATE = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@dataclass(frozen=True)
class Key:
    key_id: str
    algorithm: str
    private: Any

    @classmethod
    def generate(cls, key_id: str, algorithm: str = "ES256") -> Key:
        return cls(key_id, algorithm, _GENERATE[algorithm]())

    @property
    def jwk(self) -> dict[str, Any]:
        text = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.private.public_key())
        value: dict[str, Any] = json.loads(text)
        return {**value, "kid": self.key_id, "use": "sig", "alg": self.algorithm}

    @property
    def pem(self) -> bytes:
        """The public half, as everybody has it."""
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def sign(self, payload: dict[str, Any], **header: Any) -> str:
        headers = {name: value for name, value in {"kid": self.key_id, **header}.items() if value is not None}
        # Whatever it says, as an issuer that lost its mind could.
        return jwt.PyJWS().encode(json.dumps(payload).encode(), self.private, self.algorithm, headers=headers)


def payload(issuer: str, **claims: Any) -> dict[str, Any]:
    now = int(time.time())
    usual = {"iss": issuer, "aud": "registry", "sub": "bob", "iat": now, "exp": now + 300}
    return {name: value for name, value in {**usual, **claims}.items() if value is not None}


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned(claims: dict[str, Any], **header: Any) -> str:
    return f"{part({'typ': 'JWT', 'alg': 'none', **header})}.{part(claims)}."


def signed_with_the_public_key(claims: dict[str, Any], public: bytes, **header: Any) -> str:
    text = f"{part({'typ': 'JWT', 'alg': 'HS256', **header})}.{part(claims)}"
    signature = base64.urlsafe_b64encode(hmac.digest(public, text.encode(), hashlib.sha256)).rstrip(b"=")
    return f"{text}.{signature.decode()}"


def forgeries(key: Key, claims: dict[str, Any]) -> dict[str, str]:
    """Tokens that say `claims`, none of them by `key`, made with all that an attacker has."""
    good = key.sign(claims)
    head, body, signature = good.split(".")
    stranger = Key.generate(key.key_id, key.algorithm)
    raw = base64.urlsafe_b64decode(part(key.jwk) + "==")
    return {
        "none": unsigned(claims, kid=key.key_id),
        "None": unsigned(claims, kid=key.key_id, alg="None"),
        "none with a signature": f"{unsigned(claims, kid=key.key_id)}{signature}",
        "no algorithm": unsigned(claims, kid=key.key_id, alg=None),
        "an odd algorithm": unsigned(claims, kid=key.key_id, alg=["ES256"]),
        "the public key as PEM": signed_with_the_public_key(claims, key.pem, kid=key.key_id),
        "the public key as JWK": signed_with_the_public_key(claims, raw, kid=key.key_id),
        "an empty secret": signed_with_the_public_key(claims, b"", kid=key.key_id),
        "a stranger's key": stranger.sign(claims),
        "a stranger's key, brought along": stranger.sign(claims, jwk=stranger.jwk),
        "a stranger's key, elsewhere": stranger.sign(claims, jku="http://127.0.0.1:9/keys"),
        "another key's id": Key.generate("other", key.algorithm).sign(claims),
        "a path as a key's id": stranger.sign(claims, kid="../../../../dev/null"),
        "another body": f"{head}.{part({**claims, 'sub': 'root'})}.{signature}",
        "another head": f"{part({'alg': key.algorithm, 'kid': key.key_id, 'x': 1})}.{body}.{signature}",
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "five parts": f"{good}.{head}.{body}",
        "half a signature": good[: -len(signature) // 2],
        "critical": key.sign(claims, crit=["exp2"], exp2=1),
        "not JSON": f"{head}.{base64.urlsafe_b64encode(b'[' * 4000).decode()}.{signature}",
        "nothing": "",
        "dots": "..",
    }
