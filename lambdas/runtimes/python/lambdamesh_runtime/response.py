"""Turns what a handler returned into the answer."""

import base64
import dataclasses
import json
from http import HTTPStatus

from .context import Context, encode_body
from .event import Event

_RESPONSE_KEYS = {"status", "headers", "body"}
_EVENT_KEYS = ("id", "source", "subject", "time", "datacontenttype", "dataschema")


def problem(status, detail, invocation):
    """(status, headers, body) of application/problem+json (RFC 9457)."""
    title = HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "invocation": invocation}
    return status, {"content-type": "application/problem+json"}, json.dumps(body).encode("utf-8")


def _is_response(value):
    return isinstance(value, dict) and isinstance(value.get("status"), int) and not isinstance(value["status"], bool) and set(value) <= _RESPONSE_KEYS


def render(result, context):
    """(status, headers, body) of a handler's result; an event is published first."""
    if result is None:
        return 204, {}, b""
    if isinstance(result, Event):
        result = {k: v for k, v in dataclasses.asdict(result).items() if k in (*_EVENT_KEYS, "type", "data") and v is not None} | {"specversion": "1.0", **result.extensions}
    if isinstance(result, dict) and result.get("specversion") == "1.0" and isinstance(result.get("type"), str):
        fields = dict(result)
        fields.pop("specversion")
        data = fields.pop("data", None)
        if "data_base64" in fields:
            data = base64.b64decode(fields.pop("data_base64"))
        known = {key: fields.pop(key) for key in _EVENT_KEYS if key in fields}
        # The plain method: an async handler's context only wraps it.
        Context.publish(context, fields.pop("type"), data, extensions=fields, **known)
        return 202, {}, b""
    status, headers = 200, {}
    if _is_response(result):
        status, headers, result = result["status"], dict(result.get("headers") or {}), result.get("body")
        if not 200 <= status <= 999:
            raise ValueError(f"response status {status}: want 200 to 599")
    body, content_type = encode_body(result)
    if content_type and not any(name.lower() == "content-type" for name in headers):
        headers["content-type"] = content_type
    return status, headers, body or b""
