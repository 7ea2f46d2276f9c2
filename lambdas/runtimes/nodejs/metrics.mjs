const BOUNDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180];

/** Counts invocations; text() is the Prometheus text format 0.0.4. */
export function newMetrics({ lambda, namespace }) {
  const labels = `namespace="${namespace}",lambda="${lambda}"`;
  const byStatus = new Map();
  const buckets = new Array(BOUNDS.length).fill(0);
  let inFlight = 0;
  let errors = 0;
  let count = 0;
  let sum = 0;
  return {
    begin() {
      inFlight++;
    },
    end(status, seconds) {
      inFlight--;
      byStatus.set(status, (byStatus.get(status) ?? 0) + 1);
      if (status >= 500) errors++;
      count++;
      sum += seconds;
      BOUNDS.forEach((bound, i) => {
        if (seconds <= bound) buckets[i]++;
      });
    },
    text() {
      return [
        '# TYPE lambdamesh_lambda_invocations_total counter',
        ...[...byStatus].map(([status, n]) => `lambdamesh_lambda_invocations_total{${labels},status="${status}"} ${n}`),
        '# TYPE lambdamesh_lambda_errors_total counter',
        `lambdamesh_lambda_errors_total{${labels}} ${errors}`,
        '# TYPE lambdamesh_lambda_invocations_in_flight gauge',
        `lambdamesh_lambda_invocations_in_flight{${labels}} ${inFlight}`,
        '# TYPE lambdamesh_lambda_duration_seconds histogram',
        ...BOUNDS.map((bound, i) => `lambdamesh_lambda_duration_seconds_bucket{${labels},le="${bound}"} ${buckets[i]}`),
        `lambdamesh_lambda_duration_seconds_bucket{${labels},le="+Inf"} ${count}`,
        `lambdamesh_lambda_duration_seconds_sum{${labels}} ${sum}`,
        `lambdamesh_lambda_duration_seconds_count{${labels}} ${count}`,
        '',
      ].join('\n');
    },
  };
}
