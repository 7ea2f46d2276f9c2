import http from 'node:http';
import https from 'node:https';
import { randomUUID } from 'node:crypto';
import { Readable } from 'node:stream';

// One pool for all invocations: publish and fetch keep their connections to
// the sidecar open.
const agent = new http.Agent({ keepAlive: true, maxSockets: 256 });

/**
 * Sends a request through the sidecar's egress listener, which takes absolute
 * URLs as any HTTP proxy does. Node's own fetch does not use HTTP_PROXY.
 * Redirects are not followed. Resolves to a web Response.
 */
function send(target, { method, headers, body, signal, proxy }) {
  const url = new URL(target);
  const via = proxy && url.protocol === 'http:' ? new URL(proxy) : undefined;
  // What the listener asks for before it lets anybody use this lambda's identity.
  const credentials = via?.username ? { 'proxy-authorization': `Basic ${Buffer.from(`${decodeURIComponent(via.username)}:${decodeURIComponent(via.password)}`).toString('base64')}` } : {};
  const options = via
    ? { host: via.hostname, port: via.port || 80, path: url.href, agent }
    : { host: url.hostname, port: url.port || undefined, path: url.pathname + url.search, agent: url.protocol === 'http:' ? agent : undefined };
  return new Promise((resolve, reject) => {
    const request = (url.protocol === 'https:' ? https : http).request({ ...options, method, headers: { ...headers, host: url.host, ...credentials }, signal }, (answer) => {
      const answerHeaders = new Headers();
      for (let i = 0; i < answer.rawHeaders.length; i += 2) answerHeaders.append(answer.rawHeaders[i], answer.rawHeaders[i + 1]);
      const empty = method === 'HEAD' || [204, 205, 304].includes(answer.statusCode);
      if (empty) answer.resume();
      resolve(new Response(empty ? null : Readable.toWeb(answer), { status: answer.statusCode, statusText: answer.statusMessage, headers: answerHeaders }));
    });
    request.on('error', reject);
    if (body && typeof body.pipe === 'function') body.pipe(request);
    else request.end(body);
  });
}

/** The bytes of a body and the media type they have by default. */
export function encodeBody(body) {
  if (body === undefined || body === null) return {};
  if (typeof body === 'string') return { bytes: body, contentType: 'text/plain; charset=utf-8' };
  if (body instanceof Uint8Array) return { bytes: body, contentType: 'application/octet-stream' };
  if (body instanceof ArrayBuffer) return { bytes: Buffer.from(body), contentType: 'application/octet-stream' };
  if (typeof body.pipe === 'function') return { bytes: body, contentType: 'application/octet-stream' };
  return { bytes: JSON.stringify(body), contentType: 'application/json' };
}

function connectorTarget(base, application, service, path, query) {
  if (!base) throw new Error(`call application ${application}: LAMBDAMESH_CONNECTOR_URL is not set`);
  if (!application || !service) throw new Error('call application: application and service must be named');
  const [plain] = path.split('?');
  for (const segment of plain.split('/')) {
    // A path made from user input must not climb out into another
    // application's part of the connector.
    const decoded = decodeURIComponent(segment);
    if (decoded === '.' || decoded === '..' || /[/\\]/.test(decoded)) throw new Error(`call application ${application}: path ${JSON.stringify(path)} has a segment that is not plain`);
  }
  let target = `${base.replace(/\/$/, '')}/${encodeURIComponent(application)}/${encodeURIComponent(service)}/${path.replace(/^\//, '')}`;
  if (query) target += (path.includes('?') ? '&' : '?') + new URLSearchParams(query);
  return target;
}

/** What a handler gets as its second argument. */
export function newContext(config, logger, { invocation, signal, deadline, traceparent, caller, claims }) {
  const trace = traceparent ? { traceparent } : {};

  async function publish(type, data, options = {}) {
    if (!config.publishURL) throw new Error('publish: LAMBDAMESH_PUBLISH_URL is not set');
    if (!type) throw new Error('publish: an event needs a type');
    const { id, source, subject, time, datacontenttype, dataschema, extensions } = options;
    const event = {
      ...trace, ...extensions, specversion: '1.0', type, id: id ?? randomUUID(), source: source ?? `/${config.namespace}/${config.lambda}`,
      time: time instanceof Date ? time.toISOString() : (time ?? new Date().toISOString()), subject, datacontenttype, dataschema,
    };
    if (data instanceof Uint8Array) {
      event.data_base64 = Buffer.from(data).toString('base64');
      event.datacontenttype ??= 'application/octet-stream';
    } else if (data !== undefined && data !== null) {
      event.data = data;
      event.datacontenttype ??= 'application/json';
    }
    const answer = await send(config.publishURL, {
      method: 'POST', headers: { 'content-type': 'application/cloudevents+json', ...trace }, body: JSON.stringify(event), signal, proxy: config.proxy,
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`publish ${type}: the event bus answered ${answer.status}: ${text.slice(0, 300)}`);
    return { id: event.id };
  }

  return Object.freeze({
    lambda: config.lambda, namespace: config.namespace, timeout: config.timeoutMs, invocation, signal, deadline, logger, caller, claims, publish,
    application: (name) => ({
      fetch: async (service, path = '/', options = {}) => {
        const target = connectorTarget(config.connectorURL, name, service, path, options.query);
        const { bytes, contentType } = encodeBody(options.body);
        const headers = Object.fromEntries(new Headers(options.headers ?? {}));
        if (contentType && !headers['content-type']) headers['content-type'] = contentType;
        return send(target, { method: (options.method ?? 'GET').toUpperCase(), headers: { ...trace, ...headers }, body: bytes, signal: options.signal ?? signal, proxy: config.proxy });
      },
    }),
  });
}
