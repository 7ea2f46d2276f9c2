"""What a handler gets as its second argument."""

import asyncio
import base64
import http.client
import json
import threading
import uuid
from datetime import datetime, timezone
from urllib.parse import quote, unquote, urlencode, urlsplit


class FetchResponse:
    """The answer of an application's API."""

    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def ok(self):
        return 200 <= self.status < 300

    def text(self):
        return self.body.decode("utf-8")

    def json(self):
        return json.loads(self.body)


def encode_body(body):
    """(bytes, default media type) of a body; (None, None) when there is none."""
    if body is None:
        return None, None
    if isinstance(body, str):
        return body.encode("utf-8"), "text/plain; charset=utf-8"
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body), "application/octet-stream"
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8"), "application/json"


def send(url, method, headers, body, proxy, timeout):
    """Sends a request through the sidecar's egress listener, which takes
    absolute URLs as any HTTP proxy does. Redirects are not followed."""
    target = urlsplit(url)
    headers = {"Host": target.netloc, **headers}
    if proxy and target.scheme == "http":
        via = urlsplit(proxy)
        connection = http.client.HTTPConnection(via.hostname, via.port or 80, timeout=timeout)
        path = url
        if via.username:
            # What the listener asks for before it lets anybody use this lambda's identity.
            credentials = f"{unquote(via.username)}:{unquote(via.password or '')}".encode("utf-8")
            headers["Proxy-Authorization"] = "Basic " + base64.b64encode(credentials).decode("ascii")
    else:
        kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
        connection = kind(target.hostname, target.port, timeout=timeout)
        path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return FetchResponse(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


class Application:
    """A third-party system whose APIs the connector makes callable."""

    def __init__(self, context, name):
        self._context = context
        self._name = name

    def fetch(self, service, path="/", options=None, **named):
        """Calls a service of the application; the connector adds the credentials.
        The options method, headers, query, body and timeout go into a dict or are named."""
        return self._fetch(service, path, **{**(options or {}), **named})

    def _fetch(self, service, path, method="GET", headers=None, query=None, body=None, timeout=None):
        url = self._target(service, path, query)
        payload, content_type = encode_body(body)
        merged = dict(self._context._trace)
        if content_type and not any(name.lower() == "content-type" for name in headers or ()):
            merged["Content-Type"] = content_type
        merged.update(headers or {})
        return send(url, method.upper(), merged, payload, self._context._config.proxy, timeout or self._context.remaining())

    def _target(self, service, path, query):
        base = self._context._config.connector_url
        if not base:
            raise RuntimeError(f"call application {self._name}: LAMBDAMESH_CONNECTOR_URL is not set")
        if not self._name or not service:
            raise ValueError("call application: application and service must be named")
        for segment in path.split("?")[0].split("/"):
            # A path made from user input must not climb out into another
            # application's part of the connector.
            decoded = unquote(segment)
            if decoded in (".", "..") or "/" in decoded or "\\" in decoded:
                raise ValueError(f"call application {self._name}: path {path!r} has a segment that is not plain")
        url = f"{base.rstrip('/')}/{quote(self._name, safe='')}/{quote(service, safe='')}/{path[1:] if path.startswith('/') else path}"
        if query:
            url += ("&" if "?" in path else "?") + urlencode(query, doseq=True)
        return url


class Context:
    """The invocation: who runs, how long, and what it can do."""

    def __init__(self, config, logger, invocation, traceparent, caller, claims):
        self._config = config
        self._trace = {"traceparent": traceparent} if traceparent else {}
        self._end = datetime.now(timezone.utc).timestamp() + config.timeout
        self.namespace = config.namespace
        self.timeout = config.timeout
        self.invocation = invocation
        self.logger = logger
        #: Who calls, proven by the mesh: kind, namespace, name, identity.
        self.caller = caller
        #: The verified claims of the token that let the request in, or None.
        self.claims = claims
        #: Set when the invocation timed out: a handler that loops should look at it.
        self.signal = threading.Event()
        # "lambda" is a keyword: context.lambda_ or getattr(context, "lambda").
        self.lambda_ = config.name
        setattr(self, "lambda", config.name)

    @property
    def deadline(self):
        return datetime.fromtimestamp(self._end, timezone.utc)

    def remaining(self):
        """Seconds until the deadline, at least a little."""
        return max(self._end - datetime.now(timezone.utc).timestamp(), 0.001)

    def publish(self, type, data=None, options=None, **named):  # noqa: A002
        """Sends an event to the event bus; returns {"id"} once the bus has it on disk.
        The options id, source, subject, time, datacontenttype, dataschema and extensions
        go into a dict or are named."""
        return self._publish(type, data, **{**(options or {}), **named})

    def _publish(self, type, data, id=None, source=None, subject=None, time=None, datacontenttype=None, dataschema=None, extensions=None):  # noqa: A002
        if not self._config.publish_url:
            raise RuntimeError("publish: LAMBDAMESH_PUBLISH_URL is not set")
        if not type:
            raise ValueError("publish: an event needs a type")
        if isinstance(time, datetime):
            time = time.isoformat()
        event = {
            **self._trace,
            **(extensions or {}),
            "specversion": "1.0",
            "type": type,
            "id": id or str(uuid.uuid4()),
            "source": source or f"/{self._config.namespace}/{self._config.name}",
            "time": time or datetime.now(timezone.utc).isoformat(),
        }
        event.update({k: v for k, v in (("subject", subject), ("datacontenttype", datacontenttype), ("dataschema", dataschema)) if v})
        if isinstance(data, (bytes, bytearray)):
            event["data_base64"] = base64.b64encode(data).decode("ascii")
            event.setdefault("datacontenttype", "application/octet-stream")
        elif data is not None:
            event["data"] = data
            event.setdefault("datacontenttype", "application/json")
        headers = {"Content-Type": "application/cloudevents+json", **self._trace}
        body = json.dumps(event, ensure_ascii=False, allow_nan=False).encode("utf-8")
        answer = send(self._config.publish_url, "POST", headers, body, self._config.proxy, self.remaining())
        if not answer.ok:
            raise RuntimeError(f"publish {type}: the event bus answered {answer.status}: {answer.body[:300].decode('utf-8', 'replace')}")
        return {"id": event["id"]}

    def application(self, name):
        return Application(self, name)


class _AsyncApplication:
    def __init__(self, application):
        self._application = application

    async def fetch(self, *args, **kwargs):
        return await asyncio.to_thread(self._application.fetch, *args, **kwargs)


class AsyncContext(Context):
    """The context of an async handler: publish and fetch are awaited."""

    async def publish(self, *args, **kwargs):
        return await asyncio.to_thread(super().publish, *args, **kwargs)

    def application(self, name):
        return _AsyncApplication(Application(self, name))
