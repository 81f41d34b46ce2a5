//! `lichen bench store`: the store through the network client API, beside etcd in the same minutes.
//!
//! Both run as processes of their own with the same priority, TLS with client certificates on both sides, and each with
//! its default way of syncing; the load comes from this process, a connection a client, over HTTP/2 to both. Objects are
//! ConfigMaps with a value of 256 bytes on our side, keys with such a value on etcd's. In every round each is measured
//! in turn, the first one being another each time, and a ratio is that of figures from the same round: on a machine that
//! does something else as well, the figures move together and their ratio stays.

mod connection;
mod etcd;
mod figures;
mod lichen;
mod protobuf;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;

use self::connection::Connection;
use self::etcd::Etcd;
use self::figures::Figures;
use self::lichen::Lichen;
use super::load::Outcome;
use super::process::{Process, Usage};
use super::{Folder, PATIENCE, VALUE_BYTES};
use crate::limits;

/// How many clients put and read at once.
const CLIENTS: [usize; 4] = [1, 16, 64, 256];
/// How many objects there are; puts go round them.
const OBJECTS: usize = 10_000;
/// How many clients make the objects.
const MAKERS: usize = 16;
/// Who watches while `WATCHED_CLIENTS` put.
const WATCHERS: usize = 8;
const WATCHED_CLIENTS: usize = 8;
/// How often a member that is left is asked again for a write while none leads.
const RETRY: Duration = Duration::from_millis(20);
/// After this what was put last is at rest with both.
const REST: Duration = Duration::from_secs(1);
const MIB: f64 = 1024.0 * 1024.0;

/// Measures the store beside etcd.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The etcd to compare with, 3.5 or newer [default: the one on PATH].
    #[arg(long, value_name = "PATH")]
    etcd: Option<PathBuf>,
    /// How many members each of the two has.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = members)]
    members: usize,
    /// How often the leader is killed, for the time until the next write; with several members only.
    #[arg(long, value_name = "N", default_value_t = 50)]
    trials: u64,
    /// How long each figure is measured in a round.
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How many rounds; the middle one of their figures is shown.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
}

/// Odd, so that a majority is clear, and few.
fn members(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5)) => Ok(count),
        _ => Err("1, 3 or 5 members".into()),
    }
}

/// A store that is measured.
trait Api: Send + Sync + 'static {
    /// Its way of telling what has changed.
    type Watch: Events;
    /// What it is called.
    const NAME: &'static str;

    /// The processes of its members.
    fn processes(&self) -> Vec<&Process>;

    /// A client's connection to a member.
    fn connect(&self, member: usize) -> impl Future<Output = Result<Connection>> + Send;

    /// Makes an object.
    fn create(
        &self,
        connection: &mut Connection,
        index: usize,
        value: String,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Writes an object, whatever it was.
    fn put(
        &self,
        connection: &mut Connection,
        index: usize,
        value: String,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Reads an object, as it is after every write that was acknowledged before.
    fn get(&self, connection: &mut Connection, index: usize) -> impl Future<Output = Result<()>> + Send;

    /// Watches all objects from now on.
    fn watch(&self, connection: &mut Connection) -> impl Future<Output = Result<Self::Watch>> + Send;

    /// The member that leads.
    fn leader(&self) -> impl Future<Output = Result<usize>> + Send;

    /// Kills a member.
    fn kill(&mut self, member: usize) -> impl Future<Output = Result<()>> + Send;

    /// Starts a member that was killed, and waits until it serves.
    fn restart(&mut self, member: usize) -> impl Future<Output = Result<()>> + Send;
}

/// What a watch tells.
trait Events: Send + 'static {
    /// How many events have come; at least one.
    fn next(&mut self) -> impl Future<Output = Result<usize>> + Send;
}

/// What a client does over and over.
#[derive(Clone, Copy)]
enum Operation {
    Create,
    Put,
    Get,
}

/// Runs the command.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    limits::raise_descriptors();
    let (program, version) = etcd::find(arguments.etcd.as_deref())?;
    let folder = Folder::new()?;
    let time = Duration::from_secs(arguments.seconds);
    let mut figures = Figures::new(["lichen".into(), format!("etcd {version}")]);
    let (mut lichen, mut etcd) = start(&folder.0, &program, arguments.members).await?;
    lichen.fill(&mut figures).await?;
    etcd.fill(&mut figures).await?;
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        for measure in Measure::ALL {
            if round % 2 == 0 {
                lichen.measure(&mut figures, measure, time).await?;
                etcd.measure(&mut figures, measure, time).await?;
            } else {
                etcd.measure(&mut figures, measure, time).await?;
                lichen.measure(&mut figures, measure, time).await?;
            }
        }
    }
    if arguments.members > 1 {
        for trial in 0..arguments.trials {
            eprintln!("trial {} of {}", trial + 1, arguments.trials);
            lichen.fail_over().await?;
            etcd.fail_over().await?;
        }
        lichen.tell_fail_overs(&mut figures);
        etcd.tell_fail_overs(&mut figures);
    }
    print!("{}", figures.table());
    Ok(())
}

async fn start(folder: &Path, program: &Path, members: usize) -> Result<(Bed<Lichen>, Bed<Etcd>)> {
    let lichen = Lichen::start(&folder.join("lichen"), members).await?;
    let etcd = Etcd::start(program, &folder.join("etcd"), members).await?;
    Ok((Bed::new(0, lichen), Bed::new(1, etcd)))
}

/// What is measured in a round.
#[derive(Clone, Copy)]
enum Measure {
    Put(usize),
    Get(usize),
    WatchLatency,
    WatchThroughput,
}

impl Measure {
    const ALL: [Self; 10] = [
        Self::Put(CLIENTS[0]),
        Self::Put(CLIENTS[1]),
        Self::Put(CLIENTS[2]),
        Self::Put(CLIENTS[3]),
        Self::Get(CLIENTS[0]),
        Self::Get(CLIENTS[1]),
        Self::Get(CLIENTS[2]),
        Self::Get(CLIENTS[3]),
        Self::WatchLatency,
        Self::WatchThroughput,
    ];
}

/// A store with what is needed to measure it.
struct Bed<A> {
    api: Arc<A>,
    column: usize,
    /// Counts the values, so that no put leaves an object as it was.
    sequence: Arc<AtomicUsize>,
    /// How long each fail-over took.
    fail_overs: Vec<Duration>,
}

impl<A: Api> Bed<A> {
    fn new(column: usize, api: A) -> Self {
        Self { api: Arc::new(api), column, sequence: Arc::default(), fail_overs: Vec::new() }
    }

    /// Makes the objects, and tells the memory that they take.
    async fn fill(&self, figures: &mut Figures) -> Result<()> {
        self.load(MAKERS, Operation::Create, Until::Count(OBJECTS)).await?;
        tokio::time::sleep(REST).await;
        let resident = self.usage()?.iter().map(|usage| usage.resident_bytes).max().unwrap_or_default();
        let what = format!("resident MiB of a member with {OBJECTS} objects");
        figures.add(self.column, what, resident as f64 / MIB);
        Ok(())
    }

    async fn measure(&self, figures: &mut Figures, measure: Measure, time: Duration) -> Result<()> {
        let until = Until::Passed(time);
        let measured = async {
            match measure {
                Measure::Put(clients) => {
                    let before = self.usage()?;
                    let outcome = self.load(clients, Operation::Put, until).await?;
                    tokio::time::sleep(REST).await;
                    let after = self.usage()?;
                    self.tell(figures, "put", clients, &outcome, &before, &after);
                    let written =
                        sum(&after, |usage| usage.written_bytes) - sum(&before, |usage| usage.written_bytes);
                    let each = written / (outcome.count() * after.len()).max(1) as f64;
                    figures.add(self.column, format!("put, {clients} clients: bytes written"), each);
                    Ok(())
                }
                Measure::Get(clients) => {
                    let before = self.usage()?;
                    let outcome = self.load(clients, Operation::Get, until).await?;
                    self.tell(figures, "linearizable get", clients, &outcome, &before, &self.usage()?);
                    Ok(())
                }
                Measure::WatchLatency => self.watch_latency(figures, time).await,
                Measure::WatchThroughput => self.watch_throughput(figures, time).await,
            }
        };
        tokio::time::timeout(time + PATIENCE, measured).await.with_context(|| format!("{} hangs", A::NAME))?
    }

    fn tell(
        &self,
        figures: &mut Figures,
        what: &str,
        clients: usize,
        outcome: &Outcome,
        before: &[Usage],
        after: &[Usage],
    ) {
        let cpu = |usage: &[Usage]| sum(usage, |usage| usage.cpu.as_micros() as u64);
        let each = (cpu(after) - cpu(before)) / outcome.count().max(1) as f64;
        let clients = format!("{what}, {clients} clients");
        figures.add(self.column, format!("{clients}: a second"), outcome.rate);
        figures.add(self.column, format!("{clients}: p50 ms"), milliseconds(outcome.percentile(50)));
        figures.add(self.column, format!("{clients}: p99 ms"), milliseconds(outcome.percentile(99)));
        figures.add(self.column, format!("{clients}: CPU µs of the servers"), each);
    }

    /// From the sending of a put to its event.
    async fn watch_latency(&self, figures: &mut Figures, time: Duration) -> Result<()> {
        let (mut writer, mut watcher) = (self.api.connect(0).await?, self.api.connect(0).await?);
        let mut watch = self.api.watch(&mut watcher).await?;
        let began = Instant::now();
        let mut took = Vec::new();
        while began.elapsed() < time {
            let index = self.sequence.fetch_add(1, Ordering::Relaxed);
            let sent = Instant::now();
            let put = self.api.put(&mut writer, index % OBJECTS, value(index));
            let seen = async {
                let events = watch.next().await?;
                anyhow::Ok((events, sent.elapsed()))
            };
            let ((events, latency), ()) = tokio::try_join!(seen, put)?;
            if events != 1 {
                bail!("{} told {events} events of one put", A::NAME);
            }
            took.push(latency);
        }
        let outcome = Outcome::of(took, began.elapsed());
        figures.add(self.column, "watch, put to event: p50 ms", milliseconds(outcome.percentile(50)));
        figures.add(self.column, "watch, put to event: p99 ms", milliseconds(outcome.percentile(99)));
        Ok(())
    }

    /// How many events reach their watchers while others put as fast as they can.
    async fn watch_throughput(&self, figures: &mut Figures, time: Duration) -> Result<()> {
        let mut watchers = JoinSet::new();
        // How many events each will have seen at the end, once that is known.
        let expected = Arc::new(AtomicUsize::new(usize::MAX));
        let members = self.api.processes().len();
        for index in 0..WATCHERS {
            let mut connection = self.api.connect(index % members).await?;
            let mut watch = self.api.watch(&mut connection).await?;
            let expected = expected.clone();
            watchers.spawn(async move {
                let mut seen = 0;
                while seen < expected.load(Ordering::Acquire) {
                    seen += watch.next().await?;
                }
                drop(connection);
                anyhow::Ok(seen)
            });
        }
        let began = Instant::now();
        let outcome = self.load(WATCHED_CLIENTS, Operation::Put, Until::Passed(time)).await?;
        expected.store(outcome.count() + 1, Ordering::Release);
        // One more event, so that everybody looks whether it was the last.
        let mut writer = self.api.connect(0).await?;
        let index = self.sequence.fetch_add(1, Ordering::Relaxed);
        self.api.put(&mut writer, index % OBJECTS, value(index)).await?;
        let mut seen = 0;
        while let Some(ended) = watchers.join_next().await {
            seen += ended??;
        }
        let rate = seen as f64 / began.elapsed().as_secs_f64();
        let what = format!("watch, {WATCHERS} watchers of {WATCHED_CLIENTS} clients");
        figures.add(self.column, format!("{what}: events delivered a second"), rate);
        Ok(())
    }

    /// Kills the leader, and takes the time until one of the others acknowledges a write.
    async fn fail_over(&mut self) -> Result<()> {
        let members = self.api.processes().len();
        let leader = self.api.leader().await?;
        let mut left = Vec::new();
        for index in (0..members).filter(|index| *index != leader) {
            left.push(self.api.connect(index).await?);
        }
        let api = Arc::get_mut(&mut self.api).context("a client goes on")?;
        api.kill(leader).await?;
        let killed = Instant::now();
        let mut attempts: JoinSet<Result<Duration>> = JoinSet::new();
        let took = loop {
            // What was sent to the leader just before it died may be answered late or never, so others follow it.
            for connection in &left {
                let (api, mut connection) = (self.api.clone(), connection.another());
                let index = self.sequence.fetch_add(1, Ordering::Relaxed);
                attempts.spawn(async move {
                    api.put(&mut connection, index % OBJECTS, value(index)).await?;
                    Ok(killed.elapsed())
                });
            }
            let pause = tokio::time::sleep(RETRY);
            tokio::pin!(pause);
            let written = loop {
                tokio::select! {
                    biased;
                    // One that was refused is followed by another soon.
                    Some(done) = attempts.join_next() => if let Ok(took) = done? { break Some(took) },
                    () = &mut pause => break None,
                }
            };
            if let Some(took) = written {
                break took;
            }
            if killed.elapsed() > PATIENCE {
                bail!("{} takes no writes any more after its leader was killed", A::NAME);
            }
        };
        attempts.shutdown().await;
        self.fail_overs.push(took);
        eprintln!("{}: {:.0} ms", A::NAME, milliseconds(took));
        Arc::get_mut(&mut self.api).context("a client goes on")?.restart(leader).await
    }

    fn tell_fail_overs(&self, figures: &mut Figures) {
        let outcome = Outcome::of(self.fail_overs.clone(), self.fail_overs.iter().sum());
        for percent in [50, 99] {
            let what = format!("kill -9 of the leader to the next write: p{percent} ms");
            figures.add(self.column, what, milliseconds(outcome.percentile(percent)));
        }
    }

    /// Has clients do something over and over.
    async fn load(&self, clients: usize, operation: Operation, until: Until) -> Result<Outcome> {
        let members = self.api.processes().len();
        let mut connections = Vec::with_capacity(clients);
        for index in 0..clients {
            connections.push(self.api.connect(index % members).await?);
        }
        let mut tasks = JoinSet::new();
        let (began, started) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
        for mut connection in connections {
            let (api, sequence, started) = (self.api.clone(), self.sequence.clone(), started.clone());
            tasks.spawn(async move {
                let mut took = Vec::new();
                while until.goes_on(began, &started) {
                    let index = sequence.fetch_add(1, Ordering::Relaxed);
                    let (object, sent) = (index % OBJECTS, Instant::now());
                    match operation {
                        Operation::Create => api.create(&mut connection, object, value(index)).await?,
                        Operation::Put => api.put(&mut connection, object, value(index)).await?,
                        Operation::Get => api.get(&mut connection, object).await?,
                    }
                    took.push(sent.elapsed());
                }
                anyhow::Ok(took)
            });
        }
        let mut took = Vec::new();
        while let Some(done) = tasks.join_next().await {
            took.extend(done?.with_context(|| format!("a client of {}", A::NAME))?);
        }
        Ok(Outcome::of(took, began.elapsed()))
    }

    fn usage(&self) -> Result<Vec<Usage>> {
        self.api.processes().into_iter().map(Process::usage).collect()
    }
}

/// How long clients go on.
#[derive(Clone, Copy)]
enum Until {
    Passed(Duration),
    Count(usize),
}

impl Until {
    fn goes_on(self, began: Instant, started: &AtomicUsize) -> bool {
        match self {
            Self::Passed(time) => began.elapsed() < time,
            Self::Count(count) => started.fetch_add(1, Ordering::Relaxed) < count,
        }
    }
}

fn sum(usage: &[Usage], figure: impl Fn(&Usage) -> u64) -> f64 {
    usage.iter().map(figure).sum::<u64>() as f64
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The name of an object.
fn key(index: usize) -> String {
    format!("bench-{index:05}")
}

/// A value that no other put has, of letters without order: neither store shall save what a real value would cost it.
fn value(index: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = index as u64;
    let letter = |_| {
        // Knuth's linear congruential generator, of which the upper bits are good enough.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(LETTERS[(state >> 58) as usize])
    };
    (0..VALUE_BYTES).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_size_and_are_never_the_same() {
        assert_eq!(value(7).len(), VALUE_BYTES);
        assert_ne!(value(7), value(OBJECTS + 7));
        assert_eq!(key(7), "bench-00007");
    }
}
