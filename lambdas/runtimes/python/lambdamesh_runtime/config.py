"""The environment of a lambda's process; pkg/apis/v1alpha1 holds the contract."""

import os
import re
from dataclasses import dataclass

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


def parse_duration(text):
    """Seconds of a Go duration such as "1m30s"."""
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if _PART.sub("", text) or seconds <= 0:
        raise ValueError(f"LAMBDAMESH_TIMEOUT={text!r}: want a positive duration such as 180s")
    return seconds


def parse_address(text):
    """("unix", path) or ("tcp", (host, port)) of "unix:/path" or "tcp:host:port"."""
    network, _, rest = text.partition(":")
    if network == "unix" and rest:
        return network, rest
    host, _, port = rest.rpartition(":")
    if network != "tcp" or not port.isdigit():
        raise ValueError(f"listen address {text!r}: want unix:/path or tcp:host:port")
    return network, (host.strip("[]"), int(port))


@dataclass(frozen=True)
class Config:
    listen: str
    admin_listen: str
    name: str
    namespace: str
    handler: str
    timeout_text: str
    timeout: float
    max_body_bytes: int
    concurrency: int  # 0: any
    source: str
    publish_url: str
    connector_url: str
    proxy: str
    sidecar: bool
    trust_domain: str
    system_namespace: str
    gateways: tuple


def read_config(env=os.environ):
    timeout = env.get("LAMBDAMESH_TIMEOUT") or "180s"
    system_namespace = env.get("LAMBDAMESH_SYSTEM_NAMESPACE") or "lambdamesh-system"
    limit = env.get("LAMBDAMESH_MAX_BODY_BYTES") or "1048576"
    if not limit.isdigit() or int(limit) == 0:
        raise ValueError(f"LAMBDAMESH_MAX_BODY_BYTES={limit!r}: want a positive number of bytes")
    concurrency = env.get("LAMBDAMESH_CONCURRENCY") or ""
    if concurrency and (not concurrency.isdigit() or int(concurrency) == 0):
        raise ValueError(f"LAMBDAMESH_CONCURRENCY={concurrency!r}: want a positive number of invocations")
    return Config(
        listen=env.get("LAMBDAMESH_LISTEN") or f"tcp::{env.get('PORT') or 8080}",
        admin_listen=env.get("LAMBDAMESH_ADMIN_LISTEN") or "tcp::8081",
        name=env.get("LAMBDAMESH_LAMBDA") or "lambda",
        namespace=env.get("LAMBDAMESH_NAMESPACE") or "default",
        handler=env.get("LAMBDAMESH_HANDLER") or "main",
        timeout_text=timeout,
        timeout=parse_duration(timeout),
        max_body_bytes=int(limit),
        concurrency=int(concurrency or 0),
        source=env.get("LAMBDAMESH_SOURCE") or os.getcwd(),
        publish_url=env.get("LAMBDAMESH_PUBLISH_URL", ""),
        connector_url=env.get("LAMBDAMESH_CONNECTOR_URL", ""),
        proxy=env.get("HTTP_PROXY") or env.get("http_proxy") or "",
        sidecar=bool(env.get("LAMBDAMESH_SIDECAR")),
        trust_domain=env.get("LAMBDAMESH_TRUST_DOMAIN") or "cluster.local",
        system_namespace=system_namespace,
        gateways=tuple((env.get("LAMBDAMESH_GATEWAYS") or f"{system_namespace}/gateway").split(",")),
    )
