"""Who calls, as the mesh's certificates prove it.

No header of a client can change it: the sidecar writes the last element of
x-forwarded-client-cert, and the gateway's claims are taken from the gateway only.
"""

import base64
import json
import re

HEADER_CLIENT_CERT = "x-forwarded-client-cert"
HEADER_CLAIMS = "x-lambdamesh-claims"
HEADER_API_CLIENT = "x-api-client"
MESH_PREFIX = "x-lambdamesh-"  # of headers that are the mesh's own

_WORKLOAD = re.compile(r"([^/]+)/sa/([^/]+)", re.DOTALL)
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


class Caller(dict):
    """kind, namespace, name and identity, as attributes and, to be returned as
    JSON, as keys. What is not proven is empty."""

    def __init__(self, kind="other", namespace="", name="", identity=""):
        super().__init__(kind=kind, namespace=namespace, name=name, identity=identity)
        self.__dict__ = self


def caller_of(config, values):
    """Finds out who calls. Without a sidecar nobody is known."""
    identity = client_identity(values) if config.sidecar else None
    if identity is None:
        return Caller()
    prefix = f"spiffe://{config.trust_domain}/ns/"
    found = _WORKLOAD.fullmatch(identity[len(prefix) :]) if identity.startswith(prefix) else None
    if not found:
        return Caller(identity=identity)
    return Caller(_kind(config, *found.groups()), *found.groups(), identity)


def _kind(config, namespace, name):
    if f"{namespace}/{name}" in config.gateways:
        return "gateway"
    if namespace != config.system_namespace:
        return "lambda"  # every lambda runs as the service account of its name
    return name if name in ("eventbus", "connector") else "other"


def claims_of(caller, values):
    """The verified claims of the token that let the request in, else None."""
    if caller.kind != "gateway" or len(values) != 1 or not _BASE64URL.fullmatch(values[0]):
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(values[0] + "=" * (-len(values[0]) % 4)))
    except (ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def hide_identity(caller, headers):
    """The headers without those that are meant for the runtime: a handler would
    take for proven what is not, or pass a token on. The name of an API key's
    client is the gateway's to tell."""
    hidden = {HEADER_CLIENT_CERT} if caller.kind == "gateway" else {HEADER_CLIENT_CERT, HEADER_API_CLIENT}
    return {name: value for name, value in headers.items() if name not in hidden and not name.startswith(MESH_PREFIX)}


def client_identity(values):
    """The SPIFFE ID in the last element of x-forwarded-client-cert, the one that
    the nearest proxy has added: elements are separated by commas, pairs by
    semicolons; a value with one of , ; = in it is quoted, and a quote in it
    escaped. None when there is none, or not exactly one, or anything is not in
    that form: half understood is not understood."""
    rest, uris = ",".join(values), []
    while True:
        key, found, rest = rest.partition("=")
        if not found or not key or any(c in key for c in ',;"'):
            return None
        value, rest = _cut_value(rest)
        if value is None:
            return None
        if key.strip(" \t").lower() == "uri":
            uris.append(value)
        if not rest:
            return uris[0] if len(uris) == 1 and uris[0].startswith("spiffe://") else None
        if rest[0] == ",":
            uris = []
        rest = rest[1:]


def _cut_value(text):
    """The value at the beginning, unquoted, and what follows it: nothing, or a
    separator first. (None, "") when it is malformed."""
    if not text.startswith('"'):
        value = re.match(r"[^,;]*", text).group()
        return (None, "") if '"' in value else (value, text[len(value) :])
    value, i = [], 1
    while i < len(text):
        if text[i] == '"':
            rest = text[i + 1 :]
            return ("".join(value), rest) if rest[:1] in ("", ",", ";") else (None, "")
        if text[i] == "\\":
            i += 1
            if i == len(text):
                return None, ""
        value.append(text[i])
        i += 1
    return None, ""
