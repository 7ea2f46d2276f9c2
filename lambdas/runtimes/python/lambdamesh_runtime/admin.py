"""Serves /healthz, /readyz and /metrics from a process of its own.

A handler that computes for as long as it may does not fail a probe, though it
may hold the interpreter's lock all the while, and one that never ends is found
out. The two processes share a page of memory and a socket.
"""

import mmap
import os
import select
import signal
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler

# How much longer than an invocation may take the server may make no progress;
# the same in every language.
_GRACE = 5.0
_BEAT, _FULL, _READY = 0, 8, 16  # where they lie in the shared memory


class Vitals:
    """What the admin process knows of the server."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 24)  # shared with a forked process

    def _get(self, at):
        return struct.unpack_from("d", self._memory, at)[0]

    def beat(self):
        """The server gets on: said when it is asked, and around every handler."""
        struct.pack_into("d", self._memory, _BEAT, time.monotonic())

    def last_beat(self):
        return self._get(_BEAT)

    def set_full(self, full):
        """Tells whether every thread runs a handler that is beyond its time."""
        if not full or not self._get(_FULL):
            struct.pack_into("d", self._memory, _FULL, time.monotonic() if full else 0.0)

    def full_since(self):
        return self._get(_FULL)

    def set_ready(self, ready):
        struct.pack_into("d", self._memory, _READY, float(ready))

    def ready(self):
        return bool(self._get(_READY))


class Admin:
    """The server's end: starts the process and answers what it asks."""

    def __init__(self, config, metrics, bind):
        self.vitals = Vitals()
        self.pulse = self.vitals.beat  # what is done when the process asks for a sign of life
        self._metrics = metrics
        ours, theirs = socket.socketpair()
        server = bind(config.admin_listen, _Handler)
        parent = os.getpid()
        if os.fork() == 0:
            ours.close()
            try:
                _serve(server, self.vitals, theirs, parent, config.timeout + _GRACE)
            finally:
                os._exit(1)
        theirs.close()
        server.server_close()
        threading.Thread(target=self._answer, args=(ours,), name="vitals", daemon=True).start()

    def _answer(self, asked):
        for question in iter(lambda: asked.recv(1), b""):
            if question == b"m":
                text = self._metrics.text().encode("utf-8")
                asked.sendall(struct.pack(">I", len(text)) + text)
            else:
                self.pulse()


def _serve(server, vitals, link, parent, stuck_after):
    # What ends the server ends this process: the link closes.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    server.probe = _Probe(vitals, link, stuck_after)
    threading.Thread(target=server.serve_forever, name="admin", daemon=True).start()
    while True:
        # A program that the handler forked may hold the link open.
        while not select.select([link], [], [], 5)[0]:
            if os.getppid() != parent:
                return
        if not server.probe.receive():
            return


class _Probe:
    """The admin process's end."""

    def __init__(self, vitals, link, stuck_after):
        self._vitals = vitals
        self._link = link
        self._stuck_after = stuck_after
        self._lock = threading.Lock()
        self._asked = None  # when a beat was asked for that has not come yet
        self._received = threading.Condition()
        self._metrics = (0, b"")

    def receive(self):
        """Takes an answer of the server; false when it is gone."""
        head = self._exactly(4)
        if len(head) < 4:
            return False
        text = self._exactly(struct.unpack(">I", head)[0])
        with self._received:
            self._metrics = (self._metrics[0] + 1, text)
            self._received.notify_all()
        return True

    def _exactly(self, size):
        data = b""
        while len(data) < size:
            part = self._link.recv(size - len(data))
            if not part:
                break
            data += part
        return data

    def metrics(self):
        """The server's metrics; None when it does not answer in time."""
        with self._received:
            before = self._metrics[0]
            self._ask(b"m")
            self._received.wait_for(lambda: self._metrics[0] > before, 1)
            return self._metrics[1] if self._metrics[0] > before else None

    def _ask(self, question):
        try:
            self._link.send(question, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass  # it has been asked often enough

    def ready(self):
        return self._vitals.ready()

    def trouble(self):
        """Why the server should be replaced, or None."""
        if not self._vitals.ready():
            return None  # a start may take its time
        now, full = time.monotonic(), self._vitals.full_since()
        if full and now - full > _GRACE:
            return f"every thread has been running a handler beyond its time for {now - full:.0f}s"
        with self._lock:
            if self._asked is not None and self._vitals.last_beat() >= self._asked:
                self._asked = None
            if self._asked is None:
                self._asked = now
            self._ask(b"b")
            stuck = now - self._asked
        if stuck > self._stuck_after:
            return f"a handler has blocked the interpreter or the event loop for {stuck:.0f}s"
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self):  # noqa: N802
        path, probe = self.path.split("?")[0], self.server.probe
        status, body, kind = 404, "not found\n", "text/plain"
        if path == "/healthz":
            trouble = probe.trouble()
            status, body = (503, trouble + "\n") if trouble else (200, "ok\n")
        elif path == "/readyz":
            status, body = (200, "ok\n") if probe.ready() else (503, "not ready\n")
        elif path == "/metrics":
            text = probe.metrics()
            status, body = (503, "a handler holds the interpreter\n") if text is None else (200, text)
            kind = "text/plain; version=0.0.4; charset=utf-8"
        body = body if isinstance(body, bytes) else body.encode("utf-8")
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):  # noqa: A002
        pass
