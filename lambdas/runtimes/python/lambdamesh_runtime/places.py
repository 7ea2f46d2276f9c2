"""Bounds how many invocations run at once."""

import threading

# How many invocations may wait for each that runs; the same in every language.
_WAITING_PER_PLACE = 10


class Places:
    def __init__(self, concurrency):
        self._concurrency = concurrency
        self._places = threading.Semaphore(concurrency)
        self._lock = threading.Lock()
        self._waiting = 0

    def take(self, timeout):
        """Waits for a place; False when as many wait as may, or the time is over."""
        if not self._concurrency or self._places.acquire(blocking=False):
            return True
        with self._lock:
            if self._waiting >= _WAITING_PER_PLACE * self._concurrency:
                return False
            self._waiting += 1
        try:
            return self._places.acquire(timeout=timeout)
        finally:
            with self._lock:
                self._waiting -= 1

    def leave(self):
        if self._concurrency:
            self._places.release()
