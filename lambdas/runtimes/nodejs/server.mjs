// The in-pod server of Node.js lambdas. Plain Node (18 or later), no packages:
// it must start in milliseconds and a build without network must succeed.
// The contract is the README beside it; the environment's names are in
// pkg/apis/v1alpha1/wellknown.go.
import http from 'node:http';
import fs from 'node:fs';
import path from 'node:path';
import { randomUUID } from 'node:crypto';
import { AsyncLocalStorage } from 'node:async_hooks';
import { pathToFileURL } from 'node:url';
import { parseEvent, RequestError } from './event.mjs';
import { callerOf, claimsOf, hideIdentity, HEADER_CLAIMS, HEADER_CLIENT_CERT } from './identity.mjs';
import { newContext } from './context.mjs';
import { problemBody, respond, sendProblem } from './response.mjs';
import { newMetrics } from './metrics.mjs';
import { readConfig } from './config.mjs';
import { newPlaces } from './places.mjs';
import { listen, startAdmin } from './admin.mjs';
import { newLogger, replaceConsole } from './log.mjs';

const FAILED = 'the lambda failed; its log tells why under this invocation id';
const BUSY = 'as many invocations wait here as may; try again';
// Longer than a proxy keeps an idle connection (Envoy: 1 h), so that it is never
// this side that closes one under a request.
const IDLE_TIMEOUT = 65 * 60_000;
// How much of a body that is too large is read on after the answer, and for how
// long; the same in every language.
const LINGER_BYTES = 64 << 20;
const LINGER_MS = 5000;
const invocations = new AsyncLocalStorage();

function die(config, error) {
  // The last line on stderr is what a supervisor shows as the crash reason.
  process.stderr.write(`lambda ${config?.namespace ?? '?'}/${config?.lambda ?? '?'}: ${error?.name ?? 'Error'}: ${error?.message ?? error}\n`);
  process.exit(1);
}

async function loadHandler(config) {
  const file = ['main.mjs', 'main.cjs', 'main.js'].map((name) => path.join(config.source, name)).find((name) => fs.existsSync(name));
  if (!file) throw new Error(`no main.mjs, main.cjs or main.js in ${config.source}`);
  // Stacks name the user's files, not the bundle.
  if (fs.existsSync(`${file}.map`)) process.setSourceMapsEnabled(true);
  const module = await import(pathToFileURL(file).href);
  const found = module[config.handler] ?? module.default?.[config.handler] ?? (config.handler === 'main' ? module.default : undefined);
  if (typeof found !== 'function') throw new TypeError(`main.js exports no function ${config.handler}; export it: export async function ${config.handler}(event, context) {}`);
  return found;
}

/** Reads the body; undefined when it is over the limit. */
function readBody(request, limit) {
  return new Promise((resolve, reject) => {
    const chunks = [];
    let size = 0;
    if (Number(request.headers['content-length']) > limit) {
      resolve(undefined);
      return;
    }
    request.on('data', (chunk) => {
      size += chunk.length;
      if (size <= limit) {
        chunks.push(chunk);
        return;
      }
      request.removeAllListeners('data');
      resolve(undefined);
    });
    request.on('end', () => resolve(Buffer.concat(chunks)));
    request.on('error', reject);
  });
}

/**
 * Answers 413 and goes on reading for a while before the connection ends: who
 * is still sending when it is reset never reads the answer.
 */
function sendTooLarge(request, response, limit, invocation) {
  const body = problemBody(413, `the body is over the limit of ${limit} bytes`, invocation);
  response.writeHead(413, { 'content-type': 'application/problem+json', 'content-length': Buffer.byteLength(body), connection: 'close' });
  response.write(body);
  let left = LINGER_BYTES;
  const end = () => {
    clearTimeout(timer);
    response.end();
  };
  const timer = setTimeout(end, LINGER_MS);
  request.on('data', (chunk) => {
    left -= chunk.length;
    if (left < 0) end();
  });
  request.on('end', end);
  request.on('error', end);
  if (request.readableEnded) end();
  response.on('close', () => clearTimeout(timer));
}

function newServer(config, handler, logger, metrics, admin) {
  const places = newPlaces(config.concurrency);
  return async (request, response) => {
    const begin = process.hrtime.bigint();
    const invocation = request.headers['x-request-id'] || randomUUID();
    const log = logger.child({ invocation });
    const controller = new AbortController();
    metrics.begin();
    response.on('close', () => {
      if (!response.writableFinished) controller.abort(new Error('the caller went away'));
      metrics.end(response.statusCode, Number(process.hrtime.bigint() - begin) / 1e9);
    });
    let place = places.take(controller.signal, config.timeoutMs);
    if (typeof place !== 'boolean') place = await place;
    if (!place) {
      if (!response.destroyed) response.setHeader('retry-after', '1');
      sendProblem(response, 503, BUSY, invocation);
      return;
    }
    try {
      const body = await readBody(request, config.maxBodyBytes);
      if (body === undefined) {
        sendTooLarge(request, response, config.maxBodyBytes, invocation);
        return;
      }
      const caller = callerOf(config, request.headersDistinct[HEADER_CLIENT_CERT]);
      const event = parseEvent(request, hideIdentity(caller, request.headers), body, caller.kind === 'eventbus');
      const context = newContext(config, log, {
        invocation,
        signal: controller.signal,
        deadline: new Date(Date.now() + config.timeoutMs),
        traceparent: request.headers.traceparent || event.extensions.traceparent,
        caller,
        claims: claimsOf(caller, request.headersDistinct[HEADER_CLAIMS]),
      });
      admin.beat(); // however many handlers follow one another before the loop turns
      await invocations.run(log, () => invoke(config, handler, event, context, controller, response, log));
    } catch (error) {
      if (error instanceof RequestError) sendProblem(response, error.status, error.message, invocation);
      else if (!response.destroyed) {
        log.error('invocation failed', { error: String(error?.message ?? error), stack: error?.stack });
        sendProblem(response, 500, FAILED, invocation);
      }
    } finally {
      places.leave();
    }
  };
}

async function invoke(config, handler, event, context, controller, response, log) {
  let timer;
  const timedOut = Symbol('timeout');
  const deadline = new Promise((resolve) => {
    timer = setTimeout(() => resolve(timedOut), config.timeoutMs);
  });
  try {
    const work = (async () => {
      const result = await handler(event, context);
      // While a handler holds the thread, the timer cannot fire.
      return Date.now() > context.deadline ? timedOut : respond(result, response, context);
    })();
    // When the deadline wins, what the handler does later must not be an
    // unhandled rejection.
    work.catch(() => {});
    const outcome = await Promise.race([work, deadline]);
    if (outcome === timedOut) {
      log.error('invocation timed out', { timeout: config.timeout });
      if (response.headersSent) response.destroy();
      else sendProblem(response, 504, `the lambda did not answer within ${config.timeout}`, context.invocation);
      controller.abort(new DOMException('the invocation timed out', 'TimeoutError'));
    }
  } catch (error) {
    log.error('handler failed', { error: String(error?.message ?? error), stack: error?.stack });
    sendProblem(response, 500, FAILED, context.invocation);
  } finally {
    clearTimeout(timer);
  }
}

async function main() {
  let config;
  try {
    config = readConfig(process.env);
    const logger = newLogger(config);
    replaceConsole(() => invocations.getStore() ?? logger);
    process.on('unhandledRejection', (error) => {
      (invocations.getStore() ?? logger).error('unhandled rejection', { error: String(error?.message ?? error), stack: error?.stack });
    });
    process.on('uncaughtException', (error) => {
      logger.error('uncaught exception', { error: String(error?.message ?? error), stack: error?.stack });
      die(config, error);
    });

    const metrics = newMetrics(config);
    // The thread starts while the handler is loaded.
    const starting = startAdmin(config, metrics, (error) => die(config, error));
    const handler = await loadHandler(config).catch((error) => {
      logger.error('cannot load the handler', { error: String(error?.message ?? error), stack: error?.stack });
      throw error;
    });
    const admin = await starting;
    const server = http.createServer({ keepAliveTimeout: IDLE_TIMEOUT }, newServer(config, handler, logger, metrics, admin));
    await listen(server, config.listen);
    let draining = false;
    admin.beat();
    admin.setReady(true);
    logger.info('ready', { listen: config.listen });

    const drain = () => {
      if (draining) return;
      draining = true;
      admin.setReady(false);
      logger.info('draining');
      server.prependListener('request', (request, response) => response.setHeader('connection', 'close'));
      server.close(() => process.exit(0));
      server.closeIdleConnections();
      // A keep-alive connection turns idle once its response is out.
      setInterval(() => server.closeIdleConnections(), 20).unref();
      setTimeout(() => process.exit(1), config.timeoutMs + 5000).unref();
    };
    process.on('SIGTERM', drain);
    process.on('SIGINT', drain);
  } catch (error) {
    die(config, error);
  }
}

await main();
