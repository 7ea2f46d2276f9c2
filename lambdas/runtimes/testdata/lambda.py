"""The lambda of the behavior table."""

import time


def main(event, context):
    path = event.path
    if path == "/value":
        return {"greeting": "grüezi", "lambda": context.lambda_, "namespace": context.namespace}
    if path == "/text":
        return "grüezi"
    if path == "/bytes":
        return bytes([0, 1, 2])
    if path == "/nothing":
        return None
    if path == "/response":
        return {"status": 418, "headers": {"X-Teapot": "yes"}, "body": {"short": "stout"}}
    if path == "/status-value":
        return {"status": "fine"}
    if path == "/throw":
        raise RuntimeError("secret detail")
    if path == "/slow":
        time.sleep(20)
        return "late"
    if path == "/wait":
        time.sleep(0.5)
        return "waited"
    if path == "/event":
        return {"specversion": "1.0", "type": "order.seen", "subject": "4711", "region": "zh", "data": {"ok": True}}
    if path == "/publish":
        return context.publish("order.seen", {"n": 1}, {"id": "given"}, subject="s")
    if path == "/fetch":
        response = context.application("commerce").fetch("orders", "/orders/4711?full=yes", method="PUT", headers={"X-Extra": "1"}, body={"a": 1})
        return {"status": 200, "body": {"status": response.status, "body": response.text()}}
    if path == "/climb":
        try:
            context.application("commerce").fetch("orders", "/../../other/secret")
            return {"refused": False}
        except ValueError:
            return {"refused": True}
    if path == "/caller":
        return {"caller": context.caller, "claims": context.claims, "isEvent": event.isEvent}
    if path == "/headers":
        return event.headers
    if path == "/log":
        context.logger.info("hello from the lambda", extra={"answer": 42})
        return None
    data = event.data
    if isinstance(data, bytes):
        data = f"bytes:{len(data)}"
    return {
        "isEvent": event.isEvent, "type": event.type or "", "source": event.source or "", "id": event.id or "", "subject": event.subject or "",
        "extensions": event.extensions, "data": data, "method": event.method, "path": event.path,
        "q": event.query.get("q", ""), "header": event.headers.get("x-thing", ""), "size": len(event.body),
    }
