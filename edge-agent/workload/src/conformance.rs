//! What every [`Runtime`] must do, as functions that run over any of them.
//!
//! An implementation's tests give a [`Subject`] and call [`test_all`]. A failed expectation panics, as tests do.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::broadcast;

use crate::container::{ContainerId, ContainerSpec, Event, Exit, State};
use crate::logs::{LogOptions, LogStream};
use crate::runtime::{Runtime, RuntimeError};

/// Longer than any step takes; reaching it means that something hangs.
const LONG: Duration = Duration::from_secs(60);

/// A runtime under test, with containers that behave in a known way.
pub trait Subject {
    /// The runtime.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// The runtime of an agent that starts after the one of [`runtime`](Self::runtime) was killed, over the same state.
    fn successor(&self) -> Arc<dyn Runtime>;

    /// Whether containers outlive their agent.
    fn outlives(&self) -> bool;

    /// Makes a container of [`runs`](Self::runs) end with 0, not by a runtime's stop, and waits until it has. Only asked
    /// where containers outlive their agent.
    fn end_unseen<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, ()>;

    /// A container that prints `one`, `two`, `three` on three lines and exits with this code.
    fn prints_and_exits(&self, id: ContainerId, code: i32) -> ContainerSpec;

    /// A container that prints `started`, runs on, and from then on exits with 0 when it is asked to stop.
    fn runs(&self, id: ContainerId) -> ContainerSpec;

    /// A container whose artifact is damaged.
    fn broken(&self, id: ContainerId) -> ContainerSpec;
}

/// Runs the whole suite.
pub async fn test_all(subject: &impl Subject) {
    a_container_runs_once(subject).await;
    exit_codes_arrive(subject).await;
    stopping_is_graceful_and_repeatable(subject).await;
    ids_live_once(subject).await;
    what_is_out_of_order_is_refused(subject).await;
    a_damaged_artifact_leaves_nothing_behind(subject).await;
    logs_outlive_the_exit(subject).await;
    a_follower_gets_all_and_ends(subject).await;
    what_outlives_its_agent_is_taken_back(subject).await;
    what_ends_unseen_is_known(subject).await;
}

fn id(text: &str) -> ContainerId {
    ContainerId::new(text).expect("the suite's ids are valid")
}

async fn exited(events: &mut broadcast::Receiver<Event>, wanted: &ContainerId) -> Exit {
    loop {
        let event = tokio::time::timeout(LONG, events.recv()).await.expect("an event in time");
        if let Event::Exited { id, exit } = event.expect("no event is missed")
            && id == *wanted
        {
            return exit;
        }
    }
}

async fn text(mut logs: LogStream) -> String {
    let mut text = Vec::new();
    while let Some(chunk) = tokio::time::timeout(LONG, logs.next()).await.expect("the log goes on or ends") {
        text.extend_from_slice(&chunk.expect("the log is readable"));
    }
    String::from_utf8(text).expect("the suite's containers print text")
}

/// Created, started, exited, removed: each once, with its events in order.
pub async fn a_container_runs_once(subject: &impl Subject) {
    let runtime = subject.runtime();
    let mut events = runtime.events();
    let id = id("once");
    let spec = subject.prints_and_exits(id.clone(), 0);
    runtime.prepare(&spec.artifact).await.expect("a good artifact");
    runtime.create(spec).await.expect("a good specification");
    assert_eq!(runtime.state(&id).expect("it is known"), State::Created);
    runtime.start(&id).await.expect("a first start");
    let first = tokio::time::timeout(LONG, events.recv()).await.expect("an event in time");
    assert_eq!(first.expect("no event is missed"), Event::Started { id: id.clone() });
    assert_eq!(exited(&mut events, &id).await, Exit::Code(0));
    assert!(
        matches!(runtime.state(&id).expect("it is known"), State::Exited { exit: Exit::Code(0), started, finished } if started <= finished)
    );
    assert_eq!(runtime.list().iter().filter(|(listed, _)| *listed == id).count(), 1);
    runtime.remove(&id).await.expect("an exited container is removed");
    runtime.remove(&id).await.expect("removing again changes nothing");
    assert!(runtime.list().iter().all(|(listed, _)| *listed != id));
}

/// The code is the same in the event, in the state and in the answer of a late stop.
pub async fn exit_codes_arrive(subject: &impl Subject) {
    let runtime = subject.runtime();
    for code in [1, 3, 255] {
        let mut events = runtime.events();
        let id = id(&format!("code-{code}"));
        runtime.create(subject.prints_and_exits(id.clone(), code)).await.expect("a good specification");
        runtime.start(&id).await.expect("a first start");
        assert_eq!(exited(&mut events, &id).await, Exit::Code(code));
        assert_eq!(runtime.stop(&id, LONG).await.expect("stopping what has ended"), Exit::Code(code));
        runtime.remove(&id).await.expect("an exited container is removed");
    }
}

/// A container that hears the request ends by itself, and its last word is the same however often one asks.
pub async fn stopping_is_graceful_and_repeatable(subject: &impl Subject) {
    let runtime = subject.runtime();
    let mut events = runtime.events();
    let id = id("stopped");
    runtime.create(subject.runs(id.clone())).await.expect("a good specification");
    runtime.start(&id).await.expect("a first start");
    started(runtime.as_ref(), &id).await;
    assert!(matches!(runtime.state(&id).expect("it is known"), State::Running { .. }));
    assert_eq!(runtime.stop(&id, LONG).await.expect("a running container stops"), Exit::Code(0));
    assert_eq!(runtime.stop(&id, LONG).await.expect("stopping again changes nothing"), Exit::Code(0));
    assert_eq!(exited(&mut events, &id).await, Exit::Code(0));
    assert!(events.is_empty(), "an exit is told once");
    runtime.remove(&id).await.expect("an exited container is removed");
}

/// A second container of the same id is refused, whatever became of the first.
pub async fn ids_live_once(subject: &impl Subject) {
    let runtime = subject.runtime();
    let id = id("taken");
    runtime.create(subject.runs(id.clone())).await.expect("a good specification");
    let again = runtime.create(subject.runs(id.clone())).await;
    assert!(matches!(again, Err(RuntimeError::Exists(taken)) if taken == id));
    runtime.start(&id).await.expect("a first start");
    started(runtime.as_ref(), &id).await;
    let again = runtime.start(&id).await;
    assert!(matches!(again, Err(RuntimeError::WrongState { state: "running", .. })));
    runtime.stop(&id, LONG).await.expect("a running container stops");
    let again = runtime.start(&id).await;
    assert!(matches!(again, Err(RuntimeError::WrongState { state: "exited", .. })));
    let again = runtime.create(subject.runs(id.clone())).await;
    assert!(matches!(again, Err(RuntimeError::Exists(_))));
    runtime.remove(&id).await.expect("an exited container is removed");
}

/// Unknown ids, and calls for which it is too early or too late.
pub async fn what_is_out_of_order_is_refused(subject: &impl Subject) {
    let runtime = subject.runtime();
    let unknown = id("unknown");
    assert!(matches!(runtime.start(&unknown).await, Err(RuntimeError::NotFound(_))));
    assert!(matches!(runtime.stop(&unknown, LONG).await, Err(RuntimeError::NotFound(_))));
    assert!(matches!(runtime.state(&unknown), Err(RuntimeError::NotFound(_))));
    assert!(matches!(runtime.stats(&unknown), Err(RuntimeError::NotFound(_))));
    assert!(matches!(runtime.logs(&unknown, LogOptions::default()).err(), Some(RuntimeError::NotFound(_))));
    let id = id("order");
    runtime.create(subject.runs(id.clone())).await.expect("a good specification");
    assert!(matches!(runtime.stop(&id, LONG).await, Err(RuntimeError::WrongState { state: "created", .. })));
    runtime.start(&id).await.expect("a first start");
    started(runtime.as_ref(), &id).await;
    assert!(matches!(runtime.remove(&id).await, Err(RuntimeError::WrongState { state: "running", .. })));
    runtime.stop(&id, LONG).await.expect("a running container stops");
    runtime.remove(&id).await.expect("an exited container is removed");
    let created = self::id("never-started");
    runtime.create(subject.runs(created.clone())).await.expect("a good specification");
    runtime.remove(&created).await.expect("a container that never started is removed");
}

/// An artifact that cannot run shows so when it is prepared, and a failed creation takes no id.
pub async fn a_damaged_artifact_leaves_nothing_behind(subject: &impl Subject) {
    let runtime = subject.runtime();
    let id = id("broken");
    let spec = subject.broken(id.clone());
    let refused = runtime.prepare(&spec.artifact).await.expect_err("a damaged artifact");
    assert!(!refused.is_retryable(), "{refused}");
    assert!(matches!(runtime.state(&id), Err(RuntimeError::NotFound(_))));
}

/// What was printed is there after the exit: whole, from its end, and with times.
pub async fn logs_outlive_the_exit(subject: &impl Subject) {
    let runtime = subject.runtime();
    let mut events = runtime.events();
    let id = id("logs");
    runtime.create(subject.prints_and_exits(id.clone(), 0)).await.expect("a good specification");
    runtime.start(&id).await.expect("a first start");
    exited(&mut events, &id).await;
    let logs = async |options| text(runtime.logs(&id, options).expect("it is known")).await;
    assert_eq!(logs(LogOptions::default()).await, "one\ntwo\nthree\n");
    assert_eq!(logs(LogOptions { tail_lines: Some(2), ..LogOptions::default() }).await, "two\nthree\n");
    assert_eq!(logs(LogOptions { tail_lines: Some(0), ..LogOptions::default() }).await, "");
    assert_eq!(logs(LogOptions { limit_bytes: Some(5), ..LogOptions::default() }).await, "one\nt");
    assert_eq!(logs(LogOptions { follow: true, ..LogOptions::default() }).await, "one\ntwo\nthree\n");
    let timed = logs(LogOptions { timestamps: true, ..LogOptions::default() }).await;
    let ends: Vec<&str> =
        timed.lines().filter_map(|line| line.split_once("Z ").map(|(_, end)| end)).collect();
    assert_eq!(ends, ["one", "two", "three"], "{timed}");
    runtime.remove(&id).await.expect("an exited container is removed");
}

/// A follower sees what is printed while the container runs, and its stream ends with the container.
pub async fn a_follower_gets_all_and_ends(subject: &impl Subject) {
    let runtime = subject.runtime();
    let id = id("followed");
    runtime.create(subject.runs(id.clone())).await.expect("a good specification");
    runtime.start(&id).await.expect("a first start");
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut logs = runtime.logs(&id, options).expect("it is known");
    let mut seen = Vec::new();
    while !seen.starts_with(b"started\n") {
        let chunk = tokio::time::timeout(LONG, logs.next()).await.expect("a line in time");
        seen.extend_from_slice(&chunk.expect("the container still runs").expect("the log is readable"));
    }
    runtime.stop(&id, LONG).await.expect("a running container stops");
    text(logs).await;
    runtime.remove(&id).await.expect("an exited container is removed");
}

/// Three containers that an agent leaves: one created, one running, one ended. A successor has all three as they were, or,
/// where nothing outlives its agent, none.
pub async fn what_outlives_its_agent_is_taken_back(subject: &impl Subject) {
    let first = subject.runtime();
    let mut events = first.events();
    let [created, running, ended] = ["left-created", "left-running", "left-ended"].map(id);
    for spec in [
        subject.runs(created.clone()),
        subject.runs(running.clone()),
        subject.prints_and_exits(ended.clone(), 7),
    ] {
        first.create(spec).await.expect("a good specification");
    }
    first.start(&running).await.expect("a first start");
    started(first.as_ref(), &running).await;
    first.start(&ended).await.expect("a first start");
    assert_eq!(exited(&mut events, &ended).await, Exit::Code(7));

    let next = subject.successor();
    assert!(next.list().is_empty(), "nothing is known before it is taken back");
    next.adopt().await.expect("what was left can be read");
    if !subject.outlives() {
        assert!(next.list().is_empty(), "{:?}", next.list());
        assert!(matches!(next.state(&running), Err(RuntimeError::NotFound(_))));
        return;
    }
    let mut events = next.events();
    let states: Vec<_> = next.list().into_iter().map(|(id, state)| (id, state.name())).collect();
    let expect = [(created.clone(), "created"), (ended.clone(), "exited"), (running.clone(), "running")];
    assert_eq!(states, expect);
    assert!(matches!(next.state(&ended), Ok(State::Exited { exit: Exit::Code(7), .. })));
    let again = next.create(subject.runs(created.clone())).await;
    assert!(matches!(again, Err(RuntimeError::Exists(_))), "an id lives once, whoever the agent is");
    assert_eq!(text(next.logs(&ended, LogOptions::default()).expect("its log")).await, "one\ntwo\nthree\n");

    let again = next.start(&running).await;
    assert!(matches!(again, Err(RuntimeError::WrongState { state: "running", .. })), "{again:?}");
    next.start(&created).await.expect("what was never started can be");
    started(next.as_ref(), &created).await;
    for id in [&created, &running] {
        assert_eq!(next.stop(id, LONG).await.expect("a running container stops"), Exit::Code(0));
        assert_eq!(exited(&mut events, id).await, Exit::Code(0));
    }
    assert!(events.is_empty(), "an exit is told once");
    assert_eq!(next.stop(&ended, LONG).await.expect("stopping what has ended"), Exit::Code(7));
    for id in [&created, &running, &ended] {
        next.remove(id).await.expect("an exited container is removed");
    }
}

/// A container that ends while no agent is there.
pub async fn what_ends_unseen_is_known(subject: &impl Subject) {
    if !subject.outlives() {
        return;
    }
    let first = subject.runtime();
    let id = id("unseen");
    first.create(subject.runs(id.clone())).await.expect("a good specification");
    first.start(&id).await.expect("a first start");
    started(first.as_ref(), &id).await;
    subject.end_unseen(&id).await;
    let next = subject.successor();
    next.adopt().await.expect("what was left can be read");
    assert!(
        matches!(next.state(&id), Ok(State::Exited { exit: Exit::Code(0), started, finished }) if started <= finished)
    );
    next.remove(&id).await.expect("an exited container is removed");
}

/// Waits until a container that [`Subject::runs`] says that it does.
async fn started(runtime: &dyn Runtime, id: &ContainerId) {
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut logs = runtime.logs(id, options).expect("it is known");
    let mut seen = Vec::new();
    while !seen.starts_with(b"started\n") {
        let chunk = tokio::time::timeout(LONG, logs.next()).await.expect("a line in time");
        seen.extend_from_slice(&chunk.expect("the container still runs").expect("the log is readable"));
    }
}
