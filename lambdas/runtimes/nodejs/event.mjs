/** A request that never reaches the handler. */
export class RequestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const ATTRIBUTES = new Set(['id', 'source', 'type', 'subject', 'time', 'specversion', 'datacontenttype', 'dataschema']);

const mediaTypeOf = (contentType) => (contentType ?? '').split(';')[0].trim().toLowerCase();
const isJSON = (type) => type === 'application/json' || type.endsWith('+json');
const isText = (type) => type.startsWith('text/') || type === 'application/x-www-form-urlencoded' || type === 'application/xml' || type.endsWith('+xml');

/** The payload by its media type: parsed JSON, text, or the bytes. */
function decode(payload, contentType, isEvent) {
  if (payload.length === 0) return undefined;
  const type = mediaTypeOf(contentType);
  if (isJSON(type)) {
    try {
      return JSON.parse(payload.toString('utf8'));
    } catch {
      throw new RequestError(400, 'the body says it is JSON and is not');
    }
  }
  if (type === '' && isEvent) {
    try {
      return JSON.parse(payload.toString('utf8'));
    } catch {
      return payload;
    }
  }
  return isText(type) ? payload.toString('utf8') : payload;
}

function decodeHeader(value) {
  // Header values are percent-encoded, CloudEvents HTTP binding 3.1.3.2.
  try {
    return decodeURIComponent(value);
  } catch {
    return value;
  }
}

/**
 * The event a handler gets. Only a call of the event bus is a CloudEvent (binary
 * or structured) or a legacy event; anybody else's is a plain request, whatever
 * its headers or body say.
 */
export function parseEvent(request, headers, body, fromEventBus) {
  const url = new URL(request.url, 'http://lambda');
  const query = {};
  for (const name of new Set(url.searchParams.keys())) {
    const values = url.searchParams.getAll(name);
    query[name] = values.length > 1 ? values : values[0];
  }
  const event = {
    isEvent: false, data: undefined, type: undefined, source: undefined, id: undefined, subject: undefined, time: undefined,
    specversion: undefined, datacontenttype: undefined, dataschema: undefined, extensions: {},
    method: request.method, path: decodeHeader(url.pathname), query, headers, body,
  };
  const set = (name, value) => {
    if (ATTRIBUTES.has(name)) event[name] = value;
    else event.extensions[name] = value;
  };
  if (!fromEventBus) {
    event.data = decode(body, headers['content-type'], false);
    return event;
  }
  const type = mediaTypeOf(headers['content-type']);
  if (type === 'application/cloudevents-batch+json') throw new RequestError(415, 'a lambda takes one event at a time; batches go to the event bus');
  if (type === 'application/cloudevents+json') {
    let fields;
    try {
      fields = JSON.parse(body.toString('utf8'));
    } catch {
      throw new RequestError(400, 'not a CloudEvent: the body is not JSON');
    }
    if (!fields?.specversion || !fields?.type) throw new RequestError(400, 'not a CloudEvent: specversion and type are required');
    event.isEvent = true;
    for (const [name, value] of Object.entries(fields)) {
      if (name !== 'data' && name !== 'data_base64') set(name, typeof value === 'string' ? value : JSON.stringify(value));
    }
    if (typeof fields.data_base64 === 'string') event.data = decode(Buffer.from(fields.data_base64, 'base64'), event.datacontenttype, true);
    else event.data = fields.data ?? undefined;
    return event;
  }
  if (headers['ce-specversion']) {
    event.isEvent = true;
    for (const [name, value] of Object.entries(headers)) {
      if (name.startsWith('ce-')) set(name.slice(3), decodeHeader(String(value)));
    }
  } else if (headers['kyma-event-type']) {
    event.isEvent = true;
    event.specversion = '1.0';
    const version = headers['kyma-event-type-version'];
    event.type = headers['kyma-event-type'] + (version ? `.${version}` : '');
    event.source = headers['kyma-source-id'];
    event.id = headers['kyma-event-id'];
    event.time = headers['kyma-event-time'];
  }
  if (event.isEvent) event.datacontenttype ??= headers['content-type'];
  event.data = decode(body, headers['content-type'], event.isEvent);
  return event;
}
