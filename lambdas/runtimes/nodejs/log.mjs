import { format } from 'node:util';

/** A logger that writes JSON lines with the given fields in each. */
function logger(fields) {
  const write = (level) => (message, more) => {
    const line = { time: new Date().toISOString(), level, message: String(message), ...fields, ...more };
    let text;
    try {
      text = JSON.stringify(line);
    } catch {
      text = JSON.stringify({ ...line, ...Object.fromEntries(Object.entries(more ?? {}).map(([k, v]) => [k, format('%o', v)])) });
    }
    process.stdout.write(`${text}\n`);
  };
  return Object.freeze({
    debug: write('debug'), info: write('info'), warn: write('warn'), error: write('error'),
    child: (more) => logger({ ...fields, ...more }),
  });
}

export function newLogger({ lambda, namespace }) {
  return logger({ lambda, namespace });
}

/** Makes console.* write JSON lines of the invocation it is called in. */
export function replaceConsole(current) {
  for (const [method, level] of Object.entries({ debug: 'debug', log: 'info', info: 'info', warn: 'warn', error: 'error' })) {
    console[method] = (...args) => current()[level](format(...args));
  }
}
