// Who calls, as the mesh's certificates prove it. No header of a client can
// change it: the sidecar writes the last element of x-forwarded-client-cert,
// and the gateway's claims are taken from the gateway only.
export const HEADER_CLIENT_CERT = 'x-forwarded-client-cert';
export const HEADER_CLAIMS = 'x-lambdamesh-claims';
export const HEADER_API_CLIENT = 'x-api-client';
export const MESH_PREFIX = 'x-lambdamesh-'; // of headers that are the mesh's own

const unknown = (identity = '') => Object.freeze({ kind: 'other', namespace: '', name: '', identity });

/** Finds out who calls; what is not proven is empty. Without a sidecar nobody is known. */
export function callerOf(config, values) {
  if (!config.sidecar) return unknown();
  const identity = clientIdentity(values);
  if (identity === undefined) return unknown();
  const found = workload(config.trustDomain, identity);
  if (!found) return unknown(identity);
  return Object.freeze({ kind: kindOf(config, found), ...found, identity });
}

function kindOf(config, { namespace, name }) {
  if (config.gateways.includes(`${namespace}/${name}`)) return 'gateway';
  // Every lambda runs as the service account of its name.
  if (namespace !== config.systemNamespace) return 'lambda';
  return name === 'eventbus' || name === 'connector' ? name : 'other';
}

/** The verified claims of the token that let the request in, else null. */
export function claimsOf(caller, values) {
  if (caller.kind !== 'gateway' || values?.length !== 1 || !/^[A-Za-z0-9_-]+$/.test(values[0])) return null;
  try {
    const claims = JSON.parse(Buffer.from(values[0], 'base64url').toString('utf8'));
    return typeof claims === 'object' && !Array.isArray(claims) ? claims : null;
  } catch {
    return null;
  }
}

/**
 * The headers without those that are meant for the runtime: a handler would
 * take for proven what is not, or pass a token on. The name of an API key's
 * client is the gateway's to tell.
 */
export function hideIdentity(caller, headers) {
  const hidden = (name) => name === HEADER_CLIENT_CERT || name.startsWith(MESH_PREFIX) || (name === HEADER_API_CLIENT && caller.kind !== 'gateway');
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !hidden(name)));
}

/** Takes spiffe://<trust domain>/ns/<namespace>/sa/<service account> apart. */
function workload(trustDomain, identity) {
  const prefix = `spiffe://${trustDomain}/ns/`;
  if (!identity.startsWith(prefix)) return undefined;
  const [, namespace, name] = /^([^/]+)\/sa\/([^/]+)$/s.exec(identity.slice(prefix.length)) ?? [];
  return namespace === undefined ? undefined : { namespace, name };
}

/**
 * The SPIFFE ID in the last element of x-forwarded-client-cert, the one that
 * the nearest proxy has added: elements are separated by commas, pairs by
 * semicolons; a value with one of , ; = in it is quoted, and a quote in it
 * escaped. undefined when there is none, or not exactly one, or anything is not
 * in that form: half understood is not understood.
 */
export function clientIdentity(values) {
  let rest = (values ?? []).join(',');
  let uris = [];
  for (;;) {
    const end = rest.indexOf('=');
    const key = rest.slice(0, Math.max(end, 0));
    if (key === '' || /[,;"]/.test(key)) return undefined;
    const cut = cutValue(rest.slice(end + 1));
    if (!cut) return undefined;
    if (key.replace(/^[ \t]+|[ \t]+$/g, '').toLowerCase() === 'uri') uris.push(cut.value);
    if (cut.rest === '') return uris.length === 1 && uris[0].startsWith('spiffe://') ? uris[0] : undefined;
    if (cut.rest[0] === ',') uris = [];
    rest = cut.rest.slice(1);
  }
}

/** The value at the beginning, unquoted, and what follows it: nothing, or a separator first. */
function cutValue(text) {
  if (text[0] !== '"') {
    const [value] = /^[^,;]*/s.exec(text);
    return value.includes('"') ? undefined : { value, rest: text.slice(value.length) };
  }
  let value = '';
  for (let i = 1; i < text.length; i++) {
    if (text[i] === '"') {
      const rest = text.slice(i + 1);
      return rest === '' || rest[0] === ',' || rest[0] === ';' ? { value, rest } : undefined;
    }
    if (text[i] === '\\' && ++i === text.length) return undefined;
    value += text[i];
  }
  return undefined;
}
