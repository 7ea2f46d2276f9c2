"""Counts invocations; text() is the Prometheus text format 0.0.4."""

import threading

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)


class Metrics:
    def __init__(self, config):
        self._labels = f'namespace="{config.namespace}",lambda="{config.name}"'
        self._changed = threading.Condition()
        self._by_status = {}
        self._errors = 0
        self._buckets = [0] * len(_BOUNDS)
        self._count = 0
        self._sum = 0.0
        self.in_flight = 0

    def begin(self):
        with self._changed:
            self.in_flight += 1

    def end(self, status, seconds):
        with self._changed:
            self.in_flight -= 1
            self._by_status[status] = self._by_status.get(status, 0) + 1
            if status >= 500:
                self._errors += 1
            self._count += 1
            self._sum += seconds
            for i, bound in enumerate(_BOUNDS):
                if seconds <= bound:
                    self._buckets[i] += 1
            self._changed.notify_all()

    def wait_idle(self, timeout):
        """Waits until nothing is in flight; tells whether that was reached."""
        with self._changed:
            return self._changed.wait_for(lambda: self.in_flight == 0, timeout)

    def text(self):
        with self._changed:
            labels = self._labels
            lines = ["# TYPE lambdamesh_lambda_invocations_total counter"]
            lines += [f'lambdamesh_lambda_invocations_total{{{labels},status="{s}"}} {n}' for s, n in self._by_status.items()]
            lines += ["# TYPE lambdamesh_lambda_errors_total counter", f"lambdamesh_lambda_errors_total{{{labels}}} {self._errors}"]
            lines += ["# TYPE lambdamesh_lambda_invocations_in_flight gauge", f"lambdamesh_lambda_invocations_in_flight{{{labels}}} {self.in_flight}"]
            lines += ["# TYPE lambdamesh_lambda_duration_seconds histogram"]
            lines += [f'lambdamesh_lambda_duration_seconds_bucket{{{labels},le="{b:g}"}} {n}' for b, n in zip(_BOUNDS, self._buckets)]
            lines += [f'lambdamesh_lambda_duration_seconds_bucket{{{labels},le="+Inf"}} {self._count}']
            lines += [f"lambdamesh_lambda_duration_seconds_sum{{{labels}}} {self._sum}"]
            lines += [f"lambdamesh_lambda_duration_seconds_count{{{labels}}} {self._count}", ""]
            return "\n".join(lines)
