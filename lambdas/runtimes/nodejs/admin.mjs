// Serves /healthz, /readyz and /metrics from a thread of its own: a handler that
// computes for as long as it may does not fail a probe, and one that never ends
// is found out.
import fs from 'node:fs';
import http from 'node:http';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { parseAddress } from './config.mjs';

// How much longer than an invocation may take the main thread may make no
// progress; the same in every language.
const GRACE_MS = 5000;

const ms = () => process.hrtime.bigint() / 1_000_000n;

/** Listens at an address of the environment, in place of a socket that an earlier, killed process left. */
export function listen(server, address) {
  const target = parseAddress(address);
  if (target.path && fs.lstatSync(target.path, { throwIfNoEntry: false })?.isSocket()) fs.rmSync(target.path);
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(target, resolve);
  });
}

/** Starts the thread; resolves when it listens. failed is called when it ends. */
export function startAdmin(config, metrics, failed) {
  // beat: when the main thread last got on, in milliseconds; ready: 0 or 1.
  const shared = new SharedArrayBuffer(16);
  const beat = new BigInt64Array(shared, 0, 1);
  const ready = new Int32Array(shared, 8, 1);
  const worker = new Worker(new URL(import.meta.url), {
    workerData: { shared, address: config.adminListen, stuckAfter: config.timeoutMs + GRACE_MS },
    execArgv: [],
    resourceLimits: { maxOldGenerationSizeMb: 32, maxYoungGenerationSizeMb: 4 },
  });
  const admin = {
    /** Tells that the main thread gets on: when it is asked, and around every handler. */
    beat: () => Atomics.store(beat, 0, ms()),
    setReady: (value) => Atomics.store(ready, 0, value ? 1 : 0),
  };
  return new Promise((resolve, reject) => {
    worker.on('message', (question) => {
      if (question === 'listening') resolve(admin);
      else if (question === 'beat') admin.beat();
      else worker.postMessage(metrics.text());
    });
    worker.on('error', (error) => {
      reject(error);
      failed(error);
    });
  });
}

async function serve({ shared, address, stuckAfter }) {
  const beat = new BigInt64Array(shared, 0, 1);
  const ready = new Int32Array(shared, 8, 1);
  let asked; // when the main thread was asked for a beat that has not come yet

  const stuckFor = () => {
    if (asked !== undefined && Atomics.load(beat, 0) >= asked) asked = undefined;
    if (asked !== undefined) return Number(ms() - asked);
    asked = ms();
    parentPort.postMessage('beat');
    return 0;
  };
  const healthz = (response) => {
    const stuck = Atomics.load(ready, 0) ? stuckFor() : 0; // a start may take its time
    if (stuck <= stuckAfter) response.end('ok\n');
    else response.writeHead(503).end(`a handler has blocked the event loop for ${Math.round(stuck / 1000)}s\n`);
  };
  const metrics = (response) => {
    const timer = setTimeout(() => {
      parentPort.off('message', answer);
      response.writeHead(503).end('a handler blocks the event loop\n');
    }, 1000);
    const answer = (text) => {
      clearTimeout(timer);
      response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' }).end(text);
    };
    parentPort.once('message', answer);
    parentPort.postMessage('metrics');
  };
  await listen(http.createServer((request, response) => {
    const path = request.url.split('?')[0];
    if (path === '/healthz') healthz(response);
    else if (path === '/readyz') response.writeHead(Atomics.load(ready, 0) ? 200 : 503).end(Atomics.load(ready, 0) ? 'ok\n' : 'not ready\n');
    else if (path === '/metrics') metrics(response);
    else response.writeHead(404).end();
  }), address);
  parentPort.postMessage('listening');
}

if (!isMainThread) await serve(workerData);
