const UNITS = { ns: 1e-6, us: 1e-3, 'µs': 1e-3, ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

/** Milliseconds of a Go duration such as "1m30s". */
export function parseDuration(text) {
  let milliseconds = 0;
  const rest = text.replace(/(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)/g, (_, number, unit) => {
    milliseconds += Number(number) * UNITS[unit];
    return '';
  });
  if (rest !== '' || milliseconds <= 0) throw new Error(`LAMBDAMESH_TIMEOUT=${JSON.stringify(text)}: want a positive duration such as 180s`);
  return milliseconds;
}

/** Listen options of "unix:/path" or "tcp:host:port". */
export function parseAddress(text) {
  const [, network, rest] = /^(unix|tcp):(.*)$/.exec(text) ?? [];
  if (network === 'unix') return { path: rest };
  const [, host, port] = /^(.*):(\d+)$/.exec(rest ?? '') ?? [];
  if (port === undefined) throw new Error(`listen address ${JSON.stringify(text)}: want unix:/path or tcp:host:port`);
  return host ? { host: host.replace(/^\[|\]$/g, ''), port: Number(port) } : { port: Number(port) };
}

export function readConfig(env) {
  const timeout = env.LAMBDAMESH_TIMEOUT || '180s';
  const systemNamespace = env.LAMBDAMESH_SYSTEM_NAMESPACE || 'lambdamesh-system';
  const maxBodyBytes = Number(env.LAMBDAMESH_MAX_BODY_BYTES || 1048576);
  if (!Number.isSafeInteger(maxBodyBytes) || maxBodyBytes <= 0) throw new Error(`LAMBDAMESH_MAX_BODY_BYTES=${JSON.stringify(env.LAMBDAMESH_MAX_BODY_BYTES)}: want a positive number of bytes`);
  const concurrency = Number(env.LAMBDAMESH_CONCURRENCY || Infinity);
  if (!(concurrency > 0) || (concurrency !== Infinity && !Number.isSafeInteger(concurrency))) throw new Error(`LAMBDAMESH_CONCURRENCY=${JSON.stringify(env.LAMBDAMESH_CONCURRENCY)}: want a positive number of invocations`);
  return Object.freeze({
    listen: env.LAMBDAMESH_LISTEN || `tcp::${env.PORT || 8080}`,
    adminListen: env.LAMBDAMESH_ADMIN_LISTEN || 'tcp::8081',
    lambda: env.LAMBDAMESH_LAMBDA || 'lambda',
    namespace: env.LAMBDAMESH_NAMESPACE || 'default',
    handler: env.LAMBDAMESH_HANDLER || 'main',
    timeout,
    timeoutMs: parseDuration(timeout),
    maxBodyBytes,
    concurrency,
    source: env.LAMBDAMESH_SOURCE || process.cwd(),
    publishURL: env.LAMBDAMESH_PUBLISH_URL,
    connectorURL: env.LAMBDAMESH_CONNECTOR_URL,
    sidecar: Boolean(env.LAMBDAMESH_SIDECAR),
    trustDomain: env.LAMBDAMESH_TRUST_DOMAIN || 'cluster.local',
    systemNamespace,
    gateways: (env.LAMBDAMESH_GATEWAYS || `${systemNamespace}/gateway`).split(','),
    proxy: env.HTTP_PROXY || env.http_proxy,
  });
}
