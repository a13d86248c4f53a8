//! How long a handler's function takes: sums and a histogram. A plain struct; in the actor thread.

use std::time::Duration;

/// Upper bounds of the histogram's buckets, in milliseconds; one more bucket counts longer calls. The SQL function
/// `litmus_pgnats.exec_time_bounds()` returns the same bounds.
pub const BOUNDS_MS: [f64; 14] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0, 5000.0, 30_000.0,
];

/// Execution times of a handler's function.
#[derive(Clone, Debug, Default)]
pub struct ExecTimes {
    pub calls: u64,
    pub total: Duration,
    pub max: Duration,
    /// Calls by bucket; each call counts in one bucket only.
    buckets: [u64; BOUNDS_MS.len() + 1],
}

impl ExecTimes {
    pub fn add(&mut self, time: Duration) {
        self.calls += 1;
        self.total += time;
        self.max = self.max.max(time);
        let ms = time.as_secs_f64() * 1000.0;
        let bucket = BOUNDS_MS.partition_point(|bound| *bound < ms);
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
    }

    /// Calls by bucket, in the order of [`BOUNDS_MS`]; each call counts in one bucket only.
    pub fn histogram(&self) -> Vec<u64> {
        self.buckets.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_bucket_whose_bound_it_does_not_exceed() {
        let mut times = ExecTimes::default();
        for us in [0, 100, 101, 1_000, 30_000_000, 30_000_001] {
            times.add(Duration::from_micros(us));
        }
        assert_eq!(times.histogram(), [2, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((times.calls, times.max), (6, Duration::from_micros(30_000_001)));
    }
}
