// How many invocations may wait for each that runs; the same in every language.
const WAITING_PER_PLACE = 10;

/** Bounds how many invocations run at once. */
export function newPlaces(concurrency) {
  let taken = 0;
  const waiting = new Set(); // in the order in which they came
  const next = () => {
    const [first] = waiting;
    if (first) first(true);
    else taken--;
  };
  return {
    /** Resolves to true when there is a place, to false when as many wait as may, the signal aborts or the time is over. */
    take(signal, timeoutMs) {
      if (taken < concurrency) {
        taken++;
        return true;
      }
      if (waiting.size >= WAITING_PER_PLACE * concurrency) return false;
      return new Promise((resolve) => {
        const done = (place) => {
          clearTimeout(timer);
          waiting.delete(done);
          signal.removeEventListener('abort', gone);
          resolve(place);
        };
        const gone = () => done(false);
        const timer = setTimeout(gone, timeoutMs);
        signal.addEventListener('abort', gone);
        waiting.add(done);
      });
    },
    /** Gives a place to who waits longest. */
    leave: next,
  };
}
