//! The members: processes, disks, and who of them is up.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lichen_firmware_tests::history::Recorder;
use lichen_store::simulation::{LogBounds, Process};
use lichen_store::{CommitError, HistoryBounds, OpenError, Pace, Peering, Simulated, Store};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::disk::Disk;
use super::net::Net;
use super::watcher::Observer;
use crate::dice::Dice;
use crate::trace::{Invariant, Trace, note};

/// How long a client waits for a member.
const CALL_MAX: Duration = Duration::from_secs(20);
/// How long a member may take to start.
const START_MAX: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a change of the members is tried.
const CHANGE_MAX: Duration = Duration::from_secs(60);

/// A member, as far as it is not running.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) name: String,
    /// Its id, which it gets with its disk.
    id: u64,
    pub(super) disk: Disk,
    pub(super) state: State,
    /// Something is wrong with its disk, so that it may fail to start.
    pub(super) ill: bool,
}

/// What it is doing.
#[derive(Clone)]
pub(super) enum State {
    Down,
    Starting,
    Up(Process, Store),
    /// It is no member any more.
    Removed,
}

/// All of them. Clones are the same ones.
#[derive(Clone)]
pub(super) struct Cluster {
    dice: Dice,
    trace: Trace,
    recorder: Recorder,
    observers: Arc<Mutex<Vec<JoinHandle<()>>>>,
    history: HistoryBounds,
    log_bounds: LogBounds,
    pub(super) net: Net,
    members: Arc<Mutex<Vec<Member>>>,
    /// Who led in which term.
    led: Arc<Mutex<BTreeMap<u64, String>>>,
}

impl Cluster {
    pub(super) fn new(
        dice: Dice,
        trace: Trace,
        recorder: Recorder,
        history: HistoryBounds,
        log_bounds: LogBounds,
    ) -> Self {
        let net = Net::new(dice.fork(), trace.clone());
        Self {
            dice,
            trace,
            recorder,
            observers: Arc::default(),
            history,
            log_bounds,
            net,
            members: Arc::default(),
            led: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a cluster of so many.
    pub(super) async fn begin(&self, count: u64) -> bool {
        let founder = self.machine();
        if !self.start(&founder, false).await {
            return false;
        }
        for _ in 1..count {
            if !self.add().await {
                return false;
            }
        }
        true
    }

    /// A machine that is not started yet.
    fn machine(&self) -> String {
        let mut members = self.lock();
        let name = format!("m{}", members.len());
        let disk = Disk::new(self.dice.fork());
        members.push(Member {
            name: name.clone(),
            id: self.dice.draw(),
            disk,
            state: State::Down,
            ill: false,
        });
        name
    }

    /// Starts a member that is down, and tells whether that worked.
    pub(super) async fn start(&self, name: &str, joins: bool) -> bool {
        let Some((id, disk)) = self.change(name, |member| {
            let down = matches!(member.state, State::Down);
            down.then(|| {
                member.state = State::Starting;
                (member.id, member.disk.clone())
            })
        }) else {
            return false;
        };
        let process = Process::new(self.dice.draw(), self.log_bounds);
        let ground = Simulated { volume: disk.mount(process.clone()), fresh_id: id, history: self.history };
        let peering = Peering {
            address: name.to_owned(),
            joins,
            pace: Pace::default(),
            network: self.net.port(name, id),
        };
        note!(self.trace, "{name} starts");
        let open = process.run(Store::simulate(ground, Some(peering)));
        let opened = timeout(START_MAX, open).await;
        let ill = self.change(name, |member| Some(member.ill)).unwrap_or_default();
        let state = match opened {
            Ok(Ok(store)) => {
                note!(self.trace, "{name} is up: member {id:016x}");
                self.net.join(name, process.clone(), store.clone());
                self.watch_lead(name, &process, &store);
                let observer = Observer {
                    who: format!("the observer of {name}"),
                    recorder: self.recorder.clone(),
                    process: process.clone(),
                    store: store.clone(),
                };
                let observers = &self.observers;
                observers.lock().unwrap_or_else(PoisonError::into_inner).push(tokio::spawn(observer.work()));
                State::Up(process, store)
            }
            Ok(Err(error)) => {
                note!(self.trace, "{name} did not start: {error}");
                process.kill();
                disk.crash();
                if !ill || matches!(error, OpenError::Corrupt { .. } | OpenError::Version { .. }) {
                    self.trace.violate(Invariant::Open, format!("{name}: {error}"));
                }
                State::Down
            }
            Err(_) => {
                note!(self.trace, "{name} did not start in time");
                process.kill();
                disk.crash();
                if !ill {
                    self.trace.violate(Invariant::Open, format!("{name} did not start in time"));
                }
                State::Down
            }
        };
        let up = matches!(state, State::Up(..));
        self.change(name, |member| {
            member.state = state;
            Some(())
        });
        up
    }

    /// Holds who says to lead against who said so before.
    fn watch_lead(&self, name: &str, process: &Process, store: &Store) {
        let (name, cluster, process) = (name.to_owned(), self.clone(), process.clone());
        let mut leadership = store.leadership();
        let follow = async move {
            loop {
                let now = *leadership.borrow_and_update();
                if now.leader {
                    note!(cluster.trace, "{name} leads in term {}", now.term);
                    let mut led = cluster.led.lock().unwrap_or_else(PoisonError::into_inner);
                    let first = led.entry(now.term.0).or_insert_with(|| name.clone());
                    if *first != name {
                        let detail = format!("{first} and {name} both lead in term {}", now.term);
                        cluster.trace.violate(Invariant::Election, detail);
                    }
                }
                if leadership.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = process.killed() => {}
                () = follow => {}
            }
        });
    }

    /// Kills a member that is up, and takes its power if asked to.
    pub(super) fn kill(&self, name: &str, power: bool) {
        let killed = self.change(name, |member| {
            let State::Up(process, _) = &member.state else { return None };
            process.kill();
            member.disk.crash();
            if power {
                member.disk.cut();
            }
            member.state = State::Down;
            Some(())
        });
        if killed.is_some() {
            note!(self.trace, "{name} is killed{}", if power { ", its power cut" } else { "" });
            self.net.leave(name);
        }
    }

    /// Kills everybody, and waits for what was seen of them.
    pub(super) async fn end(&self) {
        for name in self.names() {
            self.kill(&name, false);
        }
        let observers = std::mem::take(&mut *self.observers.lock().unwrap_or_else(PoisonError::into_inner));
        for observer in observers {
            let _ = observer.await;
        }
    }

    /// Looks at a member, and may change it.
    pub(super) fn change<T>(&self, name: &str, change: impl FnOnce(&mut Member) -> Option<T>) -> Option<T> {
        self.lock().iter_mut().find(|member| member.name == name).and_then(change)
    }

    /// Who there is and was not removed.
    pub(super) fn names(&self) -> Vec<String> {
        let members = self.lock();
        let there = members.iter().filter(|member| !matches!(member.state, State::Removed));
        there.map(|member| member.name.clone()).collect()
    }

    /// Those who are down.
    pub(super) fn down(&self) -> Vec<String> {
        let members = self.lock();
        let down = members.iter().filter(|member| matches!(member.state, State::Down));
        down.map(|member| member.name.clone()).collect()
    }

    /// Those who are up.
    pub(super) fn up(&self) -> Vec<(String, Process, Store)> {
        let members = self.lock();
        let up = members.iter().filter_map(|member| match &member.state {
            State::Up(process, store) => Some((member.name.clone(), process.clone(), store.clone())),
            State::Down | State::Starting | State::Removed => None,
        });
        up.collect()
    }

    /// One who is up.
    pub(super) fn pick(&self, dice: &Dice) -> Option<(String, Process, Store)> {
        dice.pick(&self.up()).cloned()
    }

    /// One who says that it leads: the one of the newest term.
    pub(super) fn leader(&self) -> Option<(String, Process, Store)> {
        let mut leaders = self.up();
        leaders.retain(|(_, _, store)| store.leadership().borrow().leader);
        leaders.into_iter().max_by_key(|(_, _, store)| store.leadership().borrow().term)
    }

    /// Asks a member for something, but not for ever. Nothing if it dies or takes too long.
    pub(super) async fn call<T>(&self, process: &Process, ask: impl Future<Output = T> + Send) -> Option<T> {
        tokio::select! {
            biased;
            () = process.killed() => None,
            answer = timeout(CALL_MAX, process.run(ask)) => answer.ok(),
        }
    }

    /// Everybody who is a member, as the leader knows it, if all of them are up.
    pub(super) async fn members(&self) -> Option<Vec<(String, Process, Store)>> {
        let (_, process, store) = self.leader()?;
        self.call(&process, async { store.barrier().await }).await?.ok()?;
        let known = store.members().ok()?;
        let up = self.up();
        let found = known
            .iter()
            .map(|member| up.iter().find(|(_, _, store)| store.member_id() == Some(member.id)).cloned());
        found.collect()
    }

    /// Takes in a new member and lets it vote.
    pub(super) async fn add(&self) -> bool {
        let name = self.machine();
        if !self.start(&name, true).await {
            return false;
        }
        let Some((_, store)) = self.change(&name, |member| match &member.state {
            State::Up(process, store) => Some((process.clone(), store.clone())),
            State::Down | State::Starting | State::Removed => None,
        }) else {
            return false;
        };
        let id = store.member_id().unwrap_or_default();
        let known = self.try_change(|store| {
            let name = name.clone();
            async move { store.add_learner(id, &name).await }
        });
        if !known.await {
            note!(self.trace, "{name} was not taken in");
            return false;
        }
        let promoted = self.try_change(|store| async move { store.promote(id).await }).await;
        note!(self.trace, "{name} {}", if promoted { "votes" } else { "was not promoted" });
        let gone = self.change(&name, |member| matches!(member.state, State::Removed).then_some(()));
        if gone.is_some() {
            // It was removed before it was taken in: what came later is taken back.
            self.try_change(|store| async move { store.remove_member(id).await }).await;
        }
        promoted
    }

    /// Removes a member, which then is no more.
    pub(super) async fn remove(&self, name: &str) {
        let id = self.change(name, |member| match &member.state {
            State::Up(_, store) => store.member_id(),
            State::Down | State::Starting | State::Removed => None,
        });
        let Some(id) = id else { return };
        let removed = self.try_change(|store| async move { store.remove_member(id).await }).await;
        note!(self.trace, "{name} {}", if removed { "is removed" } else { "was not removed" });
        if removed {
            self.kill(name, false);
            self.change(name, |member| {
                member.state = State::Removed;
                Some(())
            });
        }
    }

    /// Lets another member lead.
    pub(super) async fn transfer(&self, to: &Store) {
        let Some((_, process, store)) = self.leader() else { return };
        let id = to.member_id().unwrap_or_default();
        let _ = self.call(&process, async { store.transfer_leader(id).await }).await;
    }

    /// Asks whoever leads until it is done, or is there already.
    async fn try_change<F: Future<Output = Result<(), CommitError>> + Send>(
        &self,
        change: impl Fn(Store) -> F,
    ) -> bool {
        let attempt = async {
            loop {
                if let Some((_, process, store)) = self.leader() {
                    match self.call(&process, change(store)).await {
                        Some(Ok(())) => return,
                        // What was not answered may have happened.
                        Some(Err(CommitError::Membership(why)))
                            if why.contains("is there already") || why.contains("there is no member") =>
                        {
                            return;
                        }
                        _ => {}
                    }
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        timeout(CHANGE_MAX, attempt).await.is_ok()
    }

    /// How everybody is, for a message.
    pub(super) fn describe(&self) -> String {
        let members = self.lock();
        let one = |member: &Member| match &member.state {
            State::Down => format!("{} is down", member.name),
            State::Starting => format!("{} starts", member.name),
            State::Removed => format!("{} is removed", member.name),
            State::Up(_, store) => {
                let (leads, revision) = (*store.leadership().borrow(), store.revision());
                let (fault, known) = (store.fault(), store.members());
                format!("{} is at revision {revision}, {leads:?}, {fault:?}, knows {known:?}", member.name)
            }
        };
        members.iter().map(one).collect::<Vec<_>>().join("; ")
    }
}
