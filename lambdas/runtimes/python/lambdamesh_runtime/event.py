"""What a handler is called with."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

# What json.loads raises; RecursionError at more than about a thousand levels.
_NO_JSON = (ValueError, RecursionError)
_ATTRIBUTES = {"id", "source", "type", "subject", "time", "specversion", "datacontenttype", "dataschema"}


class RequestError(Exception):
    """A request that never reaches the handler."""

    def __init__(self, status, detail):
        super().__init__(detail)
        self.status = status


@dataclass
class Event:
    """One HTTP request, and when the event bus sent it, its CloudEvents attributes.

    data is the payload: parsed when it is JSON, str when it is text, bytes
    otherwise, None when there is none. query maps a name to a str, or to a
    list of them when the name occurs more than once; headers have lower-case
    names.
    """

    data: Any = None
    isEvent: bool = False  # noqa: N815 - the name is the same in every language
    type: str = None
    source: str = None
    id: str = None
    subject: str = None
    time: str = None
    specversion: str = None
    datacontenttype: str = None
    dataschema: str = None
    extensions: dict = field(default_factory=dict)
    method: str = ""
    path: str = ""
    query: dict = field(default_factory=dict)
    headers: dict = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_event(self):
        return self.isEvent

    def _set(self, name, value):
        if name in _ATTRIBUTES:
            setattr(self, name, value)
        else:
            self.extensions[name] = value


def _media_type(content_type):
    return (content_type or "").split(";")[0].strip().lower()


def _decode(payload, content_type, is_event):
    if not payload:
        return None
    kind = _media_type(content_type)
    try:
        if kind == "application/json" or kind.endswith("+json"):
            return json.loads(payload)
        if kind == "" and is_event:
            try:
                return json.loads(payload)
            except _NO_JSON:
                return payload
    except _NO_JSON:
        raise RequestError(400, "the body says it is JSON and is not") from None
    if kind.startswith("text/") or kind in ("application/x-www-form-urlencoded", "application/xml") or kind.endswith("+xml"):
        try:
            return payload.decode("utf-8")
        except UnicodeDecodeError:
            return payload
    return payload


def _unquote(value):
    # Header values are percent-encoded, CloudEvents HTTP binding 3.1.3.2.
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        return value


def parse_event(method, target, headers, body, from_event_bus):
    """The event a handler gets. Only a call of the event bus is a CloudEvent
    (binary or structured) or a legacy event; anybody else's is a plain request,
    whatever its headers or body say."""
    url = urlsplit(target)
    query = {k: v[0] if len(v) == 1 else v for k, v in parse_qs(url.query, keep_blank_values=True).items()}
    event = Event(method=method, path=_unquote(url.path), query=query, headers=headers, body=body)
    content_type = headers.get("content-type")
    if not from_event_bus:
        event.data = _decode(body, content_type, False)
        return event
    kind = _media_type(content_type)
    if kind == "application/cloudevents-batch+json":
        raise RequestError(415, "a lambda takes one event at a time; batches go to the event bus")
    if kind == "application/cloudevents+json":
        return _structured(event, body)
    if "ce-specversion" in headers:
        event.isEvent = True
        for name, value in headers.items():
            if name.startswith("ce-"):
                event._set(name[3:], _unquote(value))
    elif "kyma-event-type" in headers:
        event.isEvent = True
        event.specversion = "1.0"
        version = headers.get("kyma-event-type-version")
        event.type = headers["kyma-event-type"] + (f".{version}" if version else "")
        event.source = headers.get("kyma-source-id")
        event.id = headers.get("kyma-event-id")
        event.time = headers.get("kyma-event-time")
    if event.isEvent and event.datacontenttype is None:
        event.datacontenttype = content_type
    event.data = _decode(body, content_type, event.isEvent)
    return event


def _dump(value):
    try:
        return json.dumps(value)
    except RecursionError:
        raise RequestError(400, "not a CloudEvent: an attribute is nested too deep") from None


def _structured(event, body):
    try:
        fields = json.loads(body)
    except _NO_JSON:
        raise RequestError(400, "not a CloudEvent: the body is not JSON") from None
    if not isinstance(fields, dict) or not fields.get("specversion") or not fields.get("type"):
        raise RequestError(400, "not a CloudEvent: specversion and type are required")
    event.isEvent = True
    for name, value in fields.items():
        if name not in ("data", "data_base64"):
            event._set(name, value if isinstance(value, str) else _dump(value))
    if isinstance(fields.get("data_base64"), str):
        try:
            event.data = _decode(base64.b64decode(fields["data_base64"], validate=True), event.datacontenttype, True)
        except ValueError:
            raise RequestError(400, "not a CloudEvent: data_base64 is not base64") from None
    else:
        event.data = fields.get("data")
    return event
