// The lambda of the behavior table.
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export async function main(event, context) {
  switch (event.path) {
    case '/value':
      return { greeting: 'grüezi', lambda: context.lambda, namespace: context.namespace };
    case '/text':
      return 'grüezi';
    case '/bytes':
      return Buffer.from([0, 1, 2]);
    case '/nothing':
      return;
    case '/response':
      return { status: 418, headers: { 'X-Teapot': 'yes' }, body: { short: 'stout' } };
    case '/status-value':
      return { status: 'fine' };
    case '/throw':
      throw new Error('secret detail');
    case '/slow':
      await sleep(20_000);
      return 'late';
    case '/wait':
      await sleep(500);
      return 'waited';
    case '/event':
      return { specversion: '1.0', type: 'order.seen', subject: '4711', region: 'zh', data: { ok: true } };
    case '/publish':
      return context.publish('order.seen', { n: 1 }, { id: 'given', subject: 's' });
    case '/fetch': {
      const response = await context.application('commerce').fetch('orders', '/orders/4711?full=yes', { method: 'PUT', headers: { 'X-Extra': '1' }, body: { a: 1 } });
      return { status: 200, body: { status: response.status, body: await response.text() } };
    }
    case '/climb':
      return context.application('commerce').fetch('orders', '/../../other/secret').then(() => ({ refused: false }), () => ({ refused: true }));
    case '/caller':
      return { caller: context.caller, claims: context.claims, isEvent: event.isEvent };
    case '/headers':
      return event.headers;
    case '/log':
      context.logger.info('hello from the lambda', { answer: 42 });
      return;
  }
  return {
    isEvent: event.isEvent, type: event.type ?? '', source: event.source ?? '', id: event.id ?? '', subject: event.subject ?? '',
    extensions: event.extensions, data: event.data instanceof Uint8Array ? `bytes:${event.data.length}` : (event.data ?? null), method: event.method, path: event.path,
    q: event.query.q ?? '', header: event.headers['x-thing'] ?? '', size: event.body.length,
  };
}
