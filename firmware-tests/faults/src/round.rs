//! A round: clients and watches at work through a schedule of faults, then everything is healed and held against what
//! one store that does one thing at a time could have shown them.
//!
//! Rounds bound what a history takes, however long all of them last, and a fault is told at the end of its round.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hyper::Method;
use lichen_firmware_tests::history::{Did, Expect, History, Outcome, Revision, Rules, Step};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::sync::watch;

use crate::api::Answer;
use crate::client::{Client, Collection, Records};
use crate::watcher::Watcher;
use crate::world::{PATIENCE, World};
use crate::{nemesis, schedule};

/// Clients at work.
const CLIENTS: usize = 8;
/// Keys that they share.
const KEYS: usize = 8;
/// What is written last, through each member.
const LAST: &str = "last";
/// Between two looks at whether all is well.
const LOOK: Duration = Duration::from_millis(300);
/// How long a member may take for one of the last requests.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What is held by the member that leads.
const LEASES: [&str; 3] = ["kube-controller-manager", "kube-scheduler", "lichen-gateway"];

/// What a round came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) faults: usize,
    pub(crate) operations: usize,
    pub(crate) acknowledged: usize,
    pub(crate) unknown: usize,
    pub(crate) watched: usize,
    pub(crate) cut: u64,
    pub(crate) compacted: u64,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.faults += other.faults;
        self.operations += other.operations;
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.watched += other.watched;
        self.cut += other.cut;
        self.compacted += other.compacted;
    }
}

/// Plays a round.
pub(crate) fn play(world: &World, number: u64, seed: u64, length: Duration) -> Result<Summary> {
    let collection = begin(world, &format!("round-{number}"))?;
    let first = list(world, &collection, 0)?.0;
    let (stop, stopped) = watch::channel(false);
    let (finish, finished) = watch::channel(None);
    let mut random = StdRng::seed_from_u64(seed);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client = Client {
                number,
                random: StdRng::from_rng(&mut random),
                keys: KEYS,
                collection: collection.clone(),
            };
            world.handle.spawn(client.work(stopped.clone()))
        })
        .collect();
    let members = (0..world.places.len()).map(Some);
    let watchers: Vec<_> = members
        .chain([None])
        .map(|member| {
            let watcher = Watcher {
                member,
                random: StdRng::from_rng(&mut random),
                collection: collection.clone(),
                deadline: None,
            };
            world.handle.spawn(watcher.work(finished.clone()))
        })
        .collect();
    let schedule = schedule::draw(seed, world.places.len(), length);
    nemesis::play(world, &schedule);
    stop.send_replace(true);
    let mut summary = Summary { faults: schedule.len(), ..Summary::default() };
    for client in clients {
        world.handle.block_on(client).context("a client ends")?;
    }
    let failures = world.failures();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    world.say("all faults have ended");
    let last = recovered(world, &collection)?;
    finish.send_replace(Some(last));
    for watcher in watchers {
        let (cut, compacted) = world.handle.block_on(watcher).context("a watch ends")?;
        summary.cut += cut;
        summary.compacted += compacted;
    }
    leases(world)?;
    let history = judged(world, &collection, first)?;
    summary.operations = history.operations.len();
    summary.watched = history.watches.iter().map(|watched| watched.told.len()).sum();
    for operation in &history.operations {
        match &operation.did {
            Did::Wrote { outcome: Outcome::Done(_), .. } => summary.acknowledged += 1,
            Did::Wrote { outcome: Outcome::Unknown, .. } => summary.unknown += 1,
            _ => {}
        }
    }
    Ok(summary)
}

/// A namespace of the round's own.
fn begin(world: &World, namespace: &str) -> Result<Collection> {
    let members: Vec<String> = world.places.iter().map(|place| place.url()).collect();
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    let url = format!("{}/api/v1/namespaces", members[0]);
    let made = world.handle.block_on(world.api.call(Method::POST, &url, Some(&object), ANSWER_MAX));
    ensure!(matches!(made, Answer::Said(201, _)), "the namespace {namespace} can't be made: {made:?}");
    let collection = Collection {
        api: world.api.clone(),
        members: Arc::new(members),
        namespace: namespace.to_owned(),
        records: Records::default(),
    };
    Ok(collection)
}

fn list(world: &World, collection: &Collection, member: usize) -> Result<(Revision, Did)> {
    let list = world.handle.block_on(collection.list(member, false));
    list.with_context(|| format!("{} can't be listed", collection.url(member, "")))
}

/// Waits until every member votes, takes a write, and has what the others have. Tells the last revision.
fn recovered(world: &World, collection: &Collection) -> Result<Revision> {
    world.until("all members vote", || {
        world.watch_over();
        world.all_vote()
    })?;
    let end = Instant::now() + PATIENCE;
    let mut count = 0;
    let mut last = None;
    for member in 0..collection.members.len() {
        loop {
            count += 1;
            let expect = if last.is_none() { Expect::Absent } else { Expect::Present };
            let step = Step { key: LAST.to_owned(), expect, value: Some(format!("last-{count}")) };
            match world.handle.block_on(collection.write(member, step)) {
                Outcome::Done(revision) => {
                    last = Some(revision);
                    break;
                }
                // An earlier one was not answered, and happened.
                Outcome::Conflict if last.is_none() => last = Some(0),
                _ => std::thread::sleep(LOOK),
            }
            ensure!(Instant::now() < end, "{} takes no write", collection.members[member]);
        }
    }
    let last = last.context("there are members")?;
    loop {
        let count = collection.members.len();
        let lists: Vec<_> =
            (0..count).map(|member| world.handle.block_on(collection.list(member, true))).collect();
        let found: BTreeSet<String> = lists
            .iter()
            .map(|list| match list {
                Some((revision, Did::Listed { found, .. })) if *revision >= last => format!("{found:?}"),
                _ => String::new(),
            })
            .collect();
        match (found.len(), found.contains("")) {
            (1, false) => return Ok(last),
            (_, false) => bail!("members have different objects: {lists:#?}"),
            _ => ensure!(Instant::now() < end, "a member does not catch up with revision {last}: {lists:#?}"),
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits until the Leases name the member that leads, as each member tells it.
fn leases(world: &World) -> Result<()> {
    let mut seen = String::new();
    let agree = || {
        let Some((_, leader)) = world.leader() else { return false };
        seen.clear();
        let mut agree = true;
        for place in &world.places {
            for name in LEASES {
                let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
                let url = format!("{}{lease}/{name}", place.url());
                let lease = world.handle.block_on(world.api.get(&url, ANSWER_MAX)).unwrap_or_default();
                let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
                agree &= holder.ends_with(&leader);
                // Writing to a String cannot fail.
                let _ = writeln!(seen, "{}: {leader} leads, {name} is held by {holder:?}", place.name);
            }
        }
        agree
    };
    let agreed = world.until("the Leases name the member that leads", agree);
    agreed.with_context(|| seen)
}

/// Holds what was seen against what can be.
fn judged(world: &World, collection: &Collection, first: Revision) -> Result<History> {
    let records = &collection.records;
    let strange = records.strange.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(strange.is_empty(), "what nobody should be told:\n{}", strange.join("\n"));
    let mut history = std::mem::take(&mut *records.recorder.history());
    let began = Instant::now();
    let judged = resolve(&mut history, records).and_then(|()| {
        history.check(&Rules { first, all: false, window: None })?;
        Ok(())
    });
    if let Err(error) = judged {
        let file = world.dir.join(format!("history-{}.txt", collection.namespace));
        std::fs::write(&file, format!("{history:#?}"))?;
        return Err(error.context(format!("what clients saw can't be; all of it is in {}", file.display())));
    }
    world.say(&format!(
        "{} operations and {} watches were held against each other in {:.1} s",
        history.operations.len(),
        history.watches.len(),
        began.elapsed().as_secs_f64()
    ));
    Ok(history)
}

/// Gives each deletion that was acknowledged the revision that watches told of it.
fn resolve(history: &mut History, records: &Records) -> Result<()> {
    let deleted = records.deleted.lock().unwrap_or_else(PoisonError::into_inner);
    let ends = records.ends.lock().unwrap_or_else(PoisonError::into_inner);
    let deleted: BTreeMap<u64, &String> = deleted.iter().map(|(began, uid)| (*began, uid)).collect();
    for operation in &mut history.operations {
        if let Did::Wrote { steps, outcome } = &mut operation.did
            && let Some(uid) = deleted.get(&operation.began)
        {
            let end = ends.get(*uid);
            let end =
                end.with_context(|| format!("{steps:?} was acknowledged, and no watch was told of it"))?;
            *outcome = Outcome::Done(*end);
        }
    }
    Ok(())
}
