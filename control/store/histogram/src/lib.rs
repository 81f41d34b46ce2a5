//! What openraft needs of `base2histogram`, without its tables.
//!
//! openraft makes one histogram of replication batch sizes whether or not its statistics are compiled in. The first
//! histogram of the published crate (0.2.3) tabulates the bucket bounds of every possible resolution, which takes 27 MB
//! that no process gives back: more than all the rest of an idle server. This crate takes its place by a `[patch]` in the
//! root manifest. It has one bucket per power of two and no tables, and of the interface only what openraft names.
//! Deliberately absent: other resolutions, slots, interpolation. When openraft's `runtime-stats` feature is wanted, or
//! upstream tabulates less, remove the patch.

use std::fmt;
use std::marker::PhantomData;

/// One bucket for 0 and one for each power of two.
const BUCKETS: usize = 65;

/// Counts of values by their magnitude.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    slots: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// An empty histogram. Takes no memory until the first value.
    #[must_use]
    pub fn new() -> Self {
        Self { counts: Vec::new(), slots: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value several times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
        self.counts[bucket] += times;
    }

    /// How many values were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The least value of the bucket in which the share `p` of all values is reached; 0 if there are none.
    #[must_use]
    pub fn percentile(&self, p: f64) -> u64 {
        let wanted = (self.total() as f64 * p).ceil().max(1.0) as u64;
        let mut seen = 0;
        let reached = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        reached.and_then(|bucket| bucket.checked_sub(1)).map_or(0, |power| 1 << power)
    }

    /// The percentiles that are commonly asked for.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

/// The percentiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values were counted.
    pub samples: u64,
    /// A thousandth of the values is less.
    pub p0_1: u64,
    /// A hundredth of the values is less.
    pub p1: u64,
    /// A twentieth of the values is less.
    pub p5: u64,
    /// A tenth of the values is less.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// Nine tenths of the values are less.
    pub p90: u64,
    /// 99 in 100 of the values are less.
    pub p99: u64,
    /// 999 in 1,000 of the values are less.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "n={samples} p50={p50} p90={p90} p99={p99} p99.9={p99_9}")
    }
}

/// Several histograms, written one below the other.
#[derive(Debug, Clone)]
pub struct AsciiChart<T = ()> {
    series: Vec<(String, Histogram<T>)>,
}

impl<T> Default for AsciiChart<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> AsciiChart<T> {
    /// An empty chart.
    #[must_use]
    pub fn new() -> Self {
        Self { series: Vec::new() }
    }

    /// Adds a histogram under a name.
    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram<T>) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }
}

impl<T> fmt::Display for AsciiChart<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.series {
            writeln!(f, "{name}: {}", histogram.percentile_stats())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_a_power_of_two() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!((histogram.total(), histogram.percentile(0.5)), (0, 0));
        histogram.record(0);
        for value in 1..=1000 {
            histogram.record(value);
        }
        histogram.record(u64::MAX);
        assert_eq!(histogram.total(), 1002);
        assert_eq!(histogram.percentile(0.0), 0);
        assert_eq!(histogram.percentile(0.5), 256);
        assert_eq!(histogram.percentile(0.99), 512);
        assert_eq!(histogram.percentile(1.0), 1 << 63);
    }
}
