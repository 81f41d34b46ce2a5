//! Load: an operation repeated by so many clients, each waiting for its answer before it asks again.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

/// How an operation went under load.
pub(super) struct Outcome {
    /// Operations a second.
    pub(super) rate: f64,
    /// How long each took, sorted.
    took: Vec<Duration>,
}

impl Outcome {
    /// The time that this part of the operations stayed under.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let last = self.took.len().saturating_sub(1);
        self.took.get((self.took.len() * percent / 100).min(last)).copied().unwrap_or_default()
    }

    /// How many there were.
    pub(super) fn count(&self) -> usize {
        self.took.len()
    }

    /// From single times.
    pub(super) fn of(mut took: Vec<Duration>, wall: Duration) -> Self {
        took.sort();
        Self { rate: took.len() as f64 / wall.as_secs_f64(), took }
    }
}

/// Runs `operation(0..count)` by `clients` at once.
pub(super) async fn run<O, F>(clients: usize, count: usize, operation: O) -> Result<Outcome>
where
    O: Fn(usize) -> F + Clone + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for _ in 0..clients {
        let (next, operation) = (next.clone(), operation.clone());
        tasks.spawn(async move {
            let mut took = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return anyhow::Ok(took);
                }
                let began = Instant::now();
                operation(index).await?;
                took.push(began.elapsed());
            }
        });
    }
    let mut took = Vec::with_capacity(count);
    while let Some(done) = tasks.join_next().await {
        took.extend(done??);
    }
    Ok(Outcome::of(took, began.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let outcome =
            Outcome::of((1..=100).rev().map(Duration::from_millis).collect(), Duration::from_secs(2));
        assert_eq!(outcome.percentile(50), Duration::from_millis(51));
        assert_eq!(outcome.percentile(99), Duration::from_millis(100));
        assert_eq!(outcome.percentile(100), Duration::from_millis(100));
        assert_eq!(outcome.rate, 50.0);
        assert_eq!(Outcome::of(vec![], Duration::from_secs(1)).percentile(50), Duration::ZERO);
    }
}
