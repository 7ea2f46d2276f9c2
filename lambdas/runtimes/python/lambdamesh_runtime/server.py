"""The in-pod server of Python lambdas.

The standard library only: it must start quickly and a build without network
must succeed. A thread per connection; a handler runs in a thread of its own
(or on the event loop when it is async), so that the deadline can answer for it.
"""

import asyncio
import concurrent.futures
import contextvars
import importlib.util
import inspect
import os
import signal
import socket
import socketserver
import stat
import sys
import threading
import time
import uuid
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from . import log
from .admin import Admin
from .config import parse_address, read_config
from .context import AsyncContext, Context
from .event import RequestError, parse_event
from .identity import HEADER_CLAIMS, HEADER_CLIENT_CERT, caller_of, claims_of, hide_identity
from .metrics import Metrics
from .places import Places
from .response import problem, render

_BUSY = "as many invocations wait here as may; try again"
_FAILED = "the lambda failed; its log tells why under this invocation id"
_MOST_THREADS = 256
# How much of a body that is too large is read on after the answer, and for how
# long; the same in every language.
_LINGER_BYTES = 64 << 20
_LINGER = 5.0


class _TooLarge(Exception):
    pass


def _load_handler(config):
    path = os.path.join(config.source, "main.py")
    # The source's own modules come first, then the packages it requires.
    sys.path[0:0] = [config.source, os.path.join(os.path.dirname(os.path.abspath(config.source)), "packages")]
    spec = importlib.util.spec_from_file_location("main", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["main"] = module
    spec.loader.exec_module(module)
    handler = getattr(module, config.handler, None)
    if not callable(handler):
        raise TypeError(f"main.py defines no function {config.handler}; define it: def {config.handler}(event, context)")
    return handler


class _Threads(concurrent.futures.ThreadPoolExecutor):
    """Knows since when its threads run what they run."""

    def __init__(self):
        super().__init__(_MOST_THREADS, thread_name_prefix="invocation")
        self._lock = threading.Lock()
        self._begun = {}  # in the order of beginning

    def submit(self, call, /, *args, **kwargs):
        return super().submit(self._run, call, args, kwargs)

    def _run(self, call, args, kwargs):
        key = object()
        with self._lock:
            self._begun[key] = time.monotonic()
        try:
            return call(*args, **kwargs)
        finally:
            with self._lock:
                del self._begun[key]

    def full(self, longer_than):
        """Tells whether every thread has been running one thing for longer."""
        with self._lock:
            return len(self._begun) >= _MOST_THREADS and time.monotonic() - next(reversed(self._begun.values())) > longer_than


class Lambda:
    """The handler with all that is around one invocation."""

    def __init__(self, config, handler, logger, metrics, vitals):
        self.config = config
        self.logger = logger
        self.metrics = metrics
        self._handler = handler
        self._is_async = inspect.iscoroutinefunction(handler)
        self._vitals = vitals
        self._threads = _Threads()
        self._places = Places(config.concurrency)
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(self._threads)
        threading.Thread(target=self._loop.run_forever, name="event-loop", daemon=True).start()

    def pulse(self):
        """Answers, where handlers run, that this server gets on."""
        self._vitals.set_full(self._threads.full(self.config.timeout))
        if self._is_async:
            self._loop.call_soon_threadsafe(self._vitals.beat)
        else:
            self._vitals.beat()

    def invoke(self, method, target, headers, body, values):
        """(status, headers, body) of one invocation; values(name) are all of a header."""
        invocation = headers.get("x-request-id") or str(uuid.uuid4())
        log.invocation.set(invocation)
        if not self._places.take(self.config.timeout):
            status, more, text = problem(503, _BUSY, invocation)
            return status, {**more, "Retry-After": "1"}, text
        try:
            return self._invoke(invocation, method, target, headers, body, values)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            self.logger.error("invocation failed", exc_info=error)
            return problem(500, _FAILED, invocation)
        finally:
            self._places.leave()

    def _invoke(self, invocation, method, target, headers, body, values):
        caller = caller_of(self.config, values(HEADER_CLIENT_CERT))
        try:
            event = parse_event(method, target, hide_identity(caller, headers), body, caller.kind == "eventbus")
        except RequestError as error:
            return problem(error.status, str(error), invocation)
        kind = AsyncContext if self._is_async else Context
        context = kind(self.config, self.logger, invocation, headers.get("traceparent") or event.extensions.get("traceparent"), caller, claims_of(caller, values(HEADER_CLAIMS)))
        future = self._start(event, context)
        try:
            return future.result(self.config.timeout)
        except concurrent.futures.TimeoutError:
            if future.done():  # the handler's own TimeoutError
                self.logger.error("handler failed", exc_info=future.exception())
                return problem(500, _FAILED, invocation)
            context.signal.set()
            future.cancel()
            self.logger.error("invocation timed out", extra={"timeout": self.config.timeout_text})
            return problem(504, f"the lambda did not answer within {self.config.timeout_text}", invocation)
        except BaseException as error:  # noqa: BLE001 - SystemExit too must not end the server
            self.logger.error("handler failed", exc_info=error)
            return problem(500, _FAILED, invocation)

    def _start(self, event, context):
        if self._is_async:
            return asyncio.run_coroutine_threadsafe(self._run_async(event, context), self._loop)
        return self._threads.submit(contextvars.copy_context().run, self._run, event, context)

    def _run(self, event, context):
        self._vitals.beat()
        return render(self._handler(event, context), context)

    async def _run_async(self, event, context):
        log.invocation.set(context.invocation)
        self._vitals.beat()  # however many handlers follow one another before the loop turns
        try:
            result = await self._handler(event, context)
        except (SystemExit, KeyboardInterrupt) as error:
            # Either would end the event loop, and with it every later invocation.
            raise RuntimeError(f"the handler raised {type(error).__name__}") from error
        return await asyncio.to_thread(render, result, context)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "lambdamesh"
    sys_version = ""
    # Longer than a proxy keeps an idle connection (Envoy: 1 h), so that it is
    # never this side that closes one under a request.
    timeout = 65 * 60
    wbufsize = -1

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self):
        begin = time.monotonic()
        function = self.server.function
        function.metrics.begin()
        status, unread = 500, False
        try:
            headers = {}
            for name, value in self.headers.items():
                name = name.lower()
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            try:
                body = self._read_body(headers, function.config.max_body_bytes)
            except _TooLarge:
                self.close_connection = unread = True
                detail = f"the body is over the limit of {function.config.max_body_bytes} bytes"
                answer = problem(413, detail, headers.get("x-request-id") or str(uuid.uuid4()))
            except ValueError:
                self.close_connection = unread = True
                answer = problem(400, "the body could not be read", headers.get("x-request-id") or str(uuid.uuid4()))
            else:
                answer = function.invoke(self.command, self.path, headers, body, lambda name: self.headers.get_all(name, []))
            try:
                self._write(*answer)
            except ValueError as error:  # the handler's headers cannot be sent, and nothing has been
                function.logger.error("handler failed", exc_info=error)
                answer = problem(500, _FAILED, log.invocation.get())
                self._write(*answer)
            status = answer[0]
            if unread:
                self._linger()
        except (ConnectionError, socket.timeout):
            self.close_connection = True
        finally:
            function.metrics.end(status, time.monotonic() - begin)

    def _linger(self):
        """Goes on reading before the connection ends: who is still sending when
        it is reset never reads the answer."""
        left, until = _LINGER_BYTES, time.monotonic() + _LINGER
        try:
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and time.monotonic() < until:
                self.connection.settimeout(max(until - time.monotonic(), 0.01))
                data = self.rfile.read1(65536)
                if not data:
                    return
                left -= len(data)
        except OSError:
            pass  # it is over anyway

    def _read_body(self, headers, limit):
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._read_chunked(limit)
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise ValueError(length)
        if int(length) > limit:
            raise _TooLarge
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise ConnectionError("the caller went away")
        return body

    def _read_chunked(self, limit):
        chunks, total = [], 0
        while True:
            size = int(self.rfile.readline(1024).split(b";")[0].strip() or b"x", 16)
            if size < 0:
                raise ValueError(size)
            total += size
            if total > limit:
                raise _TooLarge
            if size == 0:
                while self.rfile.readline(8192).strip():
                    pass  # trailers
                return b"".join(chunks)
            chunks.append(self.rfile.read(size))
            self.rfile.readline(8)

    def _write(self, status, headers, body):
        if self.server.draining:
            self.close_connection = True
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        lines = [f"HTTP/1.1 {status} {phrase}", f"date: {self.date_time_string()}"]
        for name, value in headers.items():
            for one in value if isinstance(value, (list, tuple)) else (value,):
                text = f"{name}: {one}"
                if "\r" in text or "\n" in text:
                    raise ValueError(f"response header {name!r} has a line break")
                lines.append(text)
        if status not in (204, 304):
            lines.append(f"content-length: {len(body)}")
        if self.close_connection:
            lines.append("connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")
        self.wfile.write(head if self.command == "HEAD" or status in (204, 304) else head + body)
        self.wfile.flush()

    def log_message(self, format, *args):  # noqa: A002
        pass  # the proxy in front writes the access log


class _TCPServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512
    draining = False

    def get_request(self):
        connection, address = super().get_request()
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address or ("unix", 0)

    def handle_error(self, request, client_address):
        pass  # connections that break; what handlers raise is logged where it is caught


class _TCP6Server(_TCPServer):
    address_family = socket.AF_INET6

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if not self.server_address[0] else 1)
        super().server_bind()


class _UnixServer(_TCPServer):
    address_family = socket.AF_UNIX
    allow_reuse_address = False


def _bind(address, handler):
    network, target = parse_address(address)
    if network == "tcp":
        # No host: every address, of both families where the system has them.
        if ":" in target[0] or (not target[0] and socket.has_dualstack_ipv6()):
            return _TCP6Server(target, handler)
        return _TCPServer(target, handler)
    try:
        if stat.S_ISSOCK(os.lstat(target).st_mode):
            os.unlink(target)  # left behind by an earlier, killed process
    except FileNotFoundError:
        pass
    return _UnixServer(target, handler)


def main():
    config = None
    try:
        config = read_config()
        logger = log.set_up(config)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        metrics = Metrics(config)
        admin = Admin(config, metrics, _bind)  # forks: before there are threads, and code of the user
        try:
            handler = _load_handler(config)
        except BaseException:
            logger.error("cannot load the handler", exc_info=True)
            raise
        server = _bind(config.listen, _Handler)
        server.function = Lambda(config, handler, logger, metrics, admin.vitals)
        admin.pulse = server.function.pulse
        threading.Thread(target=server.serve_forever, args=(0.05,), name="accept", daemon=True).start()
        admin.vitals.set_ready(True)
        logger.info("ready", extra={"listen": config.listen})

        stop.wait()
        admin.vitals.set_ready(False)
        server.draining = True
        logger.info("draining")
        server.shutdown()
        server.server_close()
        idle = metrics.wait_idle(config.timeout + 5)
        sys.stdout.flush()
        os._exit(0 if idle else 1)  # threads of handlers that never end must not hold the process
    except BaseException as error:  # noqa: BLE001
        # The last line on stderr is what a supervisor shows as the crash reason.
        name = f"{config.namespace}/{config.name}" if config else "?/?"
        sys.stderr.write(f"lambda {name}: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)
