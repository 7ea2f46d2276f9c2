import { STATUS_CODES } from 'node:http';
import { encodeBody } from './context.mjs';

/** application/problem+json (RFC 9457). */
export function problemBody(status, detail, invocation) {
  return JSON.stringify({ type: 'about:blank', title: STATUS_CODES[status], status, detail, invocation });
}

/** Answers with it. */
export function sendProblem(response, status, detail, invocation) {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  response.writeHead(status, { 'content-type': 'application/problem+json' });
  response.end(problemBody(status, detail, invocation));
}

const RESPONSE_KEYS = new Set(['status', 'headers', 'body']);

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array);
const isEvent = (value) => isObject(value) && value.specversion === '1.0' && typeof value.type === 'string';
const isResponse = (value) => isObject(value) && Number.isInteger(value.status) && Object.keys(value).every((key) => RESPONSE_KEYS.has(key));

/** Turns what a handler returned into the answer; throws before anything is written. */
export async function respond(result, response, context) {
  if (result === undefined || result === null) {
    finish(response, 204, {});
    return;
  }
  if (isEvent(result)) {
    const { type, data, data_base64: encoded, id, source, subject, time, datacontenttype, dataschema, specversion, ...extensions } = result;
    await context.publish(type, encoded === undefined ? data : Buffer.from(encoded, 'base64'), { id, source, subject, time, datacontenttype, dataschema, extensions });
    finish(response, 202, {});
    return;
  }
  if (result instanceof Response) {
    finish(response, result.status, Object.fromEntries(result.headers), result.body === null ? undefined : Buffer.from(await result.arrayBuffer()));
    return;
  }
  const { status, headers, body } = isResponse(result) ? result : { status: 200, body: result };
  if (status < 200 || status > 999) throw new RangeError(`response status ${status}: want 200 to 599`);
  finish(response, status, headers ?? {}, body);
}

function finish(response, status, headers, body) {
  const { bytes, contentType } = encodeBody(body);
  if (response.headersSent || response.destroyed) return; // the deadline answered already
  for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
  if (contentType && !response.hasHeader('content-type')) response.setHeader('content-type', contentType);
  response.statusCode = status;
  if (bytes && typeof bytes.pipe === 'function') bytes.pipe(response);
  else response.end(bytes);
}
