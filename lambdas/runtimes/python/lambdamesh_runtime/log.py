"""JSON lines on stdout, with the invocation they belong to."""

import contextvars
import json
import logging
import sys
import traceback
from datetime import datetime, timezone

#: The id of the invocation that runs in this context.
invocation = contextvars.ContextVar("lambdamesh_invocation", default=None)

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _JSONFormatter(logging.Formatter):
    def __init__(self, config):
        super().__init__()
        self._fields = {"lambda": config.name, "namespace": config.namespace}

    def format(self, record):
        level = "warn" if record.levelname == "WARNING" else record.levelname.lower()
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": "error" if level == "critical" else level,
            "message": record.getMessage(),
            **self._fields,
        }
        if invocation.get():
            line["invocation"] = invocation.get()
        line.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            line["error"] = str(record.exc_info[1])
            line["stack"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str, ensure_ascii=False)


class _Stdout(logging.StreamHandler):
    """Follows sys.stdout, and writes a line at once."""

    def emit(self, record):
        self.acquire()
        try:
            sys.stdout.write(self.format(record) + "\n")
            sys.stdout.flush()
        except Exception:  # noqa: BLE001 - logging must not break an invocation
            self.handleError(record)
        finally:
            self.release()


def set_up(config):
    """Makes the root logger write JSON lines; returns the lambda's logger."""
    handler = _Stdout()
    handler.setFormatter(_JSONFormatter(config))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logger = logging.getLogger("lambda")
    logger.setLevel(logging.DEBUG)
    return logger
