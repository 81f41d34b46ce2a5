//! A watch that goes on where it was cut off, through one member or through any.

use std::sync::PoisonError;
use std::time::Duration;

use lichen_firmware_tests::history::{Change, End, Revision, Told, Watched};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::client::{Collection, item};

/// How long it waits until it asks a member again that did not answer.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long a member may take to begin a watch.
const BEGIN_MAX: Duration = Duration::from_secs(5);
/// How long it waits for something new until it asks anew: a member may be gone without a word.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long it may take to tell everything once all is well.
const WATCH_MAX: Duration = Duration::from_secs(60);

/// A watch.
pub(crate) struct Watcher {
    /// The member that serves it; without one, any.
    pub(crate) member: Option<usize>,
    pub(crate) random: StdRng,
    pub(crate) collection: Collection,
    /// Until when it shall have told everything, once that is known.
    pub(crate) deadline: Option<Instant>,
}

/// What an event says.
enum Event {
    Told(Told, Revision),
    Compacted,
    Nothing,
}

impl Watcher {
    /// Watches until it has told everything up to the revision that it is given at last. Tells how often it was cut
    /// off, and how often it had to list again.
    pub(crate) async fn work(mut self, mut finish: watch::Receiver<Option<Revision>>) -> (u64, u64) {
        let (mut cut, mut compacted) = (0, 0);
        loop {
            let from = self.list().await;
            let (mut at, mut told) = (from, Vec::new());
            let end = loop {
                match self.follow(&mut at, &mut told, &mut finish).await {
                    Some(end) => break end,
                    None => cut += 1,
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            };
            let who =
                self.member.map_or("a watch through any".to_owned(), |at| format!("a watch through m{at}"));
            let watched = Watched { who, prefix: String::new(), from, told, end };
            self.collection.records.recorder.watch(watched);
            if matches!(end, End::Complete(_)) {
                return (cut, compacted);
            }
            compacted += 1;
        }
    }

    fn pick(&mut self) -> usize {
        let count = self.collection.members.len();
        self.member.unwrap_or_else(|| self.random.random_range(0..count))
    }

    async fn list(&mut self) -> Revision {
        loop {
            let member = self.pick();
            if let Some((revision, _)) = self.collection.list(member, true).await {
                return revision;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Follows a member until the watch is cut, which is no end.
    async fn follow(
        &mut self,
        at: &mut Revision,
        told: &mut Vec<Told>,
        finish: &mut watch::Receiver<Option<Revision>>,
    ) -> Option<End> {
        let member = self.pick();
        let query = format!("?watch=1&allowWatchBookmarks=true&resourceVersion={at}");
        let url = format!("{}{query}", self.collection.url(member, ""));
        let mut lines = self.collection.api.lines(&url, BEGIN_MAX).await;
        loop {
            let last = *finish.borrow_and_update();
            if let Some(last) = last {
                let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + WATCH_MAX);
                // Whatever is missing by then is a gap.
                if *at >= last || Instant::now() >= deadline {
                    return Some(End::Complete(last));
                }
            }
            let Some(lines) = &mut lines else { return None };
            let silence = Instant::now() + SILENCE_MAX;
            let until = self.deadline.map_or(silence, |deadline| deadline.min(silence));
            let line = tokio::select! {
                line = timeout_at(until, lines.next()) => line.ok()??,
                Ok(()) = finish.changed() => continue,
            };
            match self.event(&serde_json::from_slice(&line).unwrap_or_default()) {
                Event::Told(event, revision) => {
                    *at = revision;
                    told.push(event);
                }
                Event::Compacted => return Some(End::Compacted(*at)),
                Event::Nothing => return None,
            }
        }
    }

    fn event(&self, event: &Value) -> Event {
        let object = &event["object"];
        let revision = |object: &Value| object["metadata"]["resourceVersion"].as_str()?.parse().ok();
        let records = &self.collection.records;
        match event["type"].as_str().unwrap_or_default() {
            "BOOKMARK" => match revision(object) {
                Some(revision) => return Event::Told(Told::Progress(revision), revision),
                None => records.strange(format!("a bookmark without a revision: {event}")),
            },
            "ERROR" if object["code"] == 410 => return Event::Compacted,
            // The member ends, or can't begin.
            "ERROR" if [429, 503, 504].map(Value::from).contains(&object["code"]) => {}
            kind @ ("ADDED" | "MODIFIED" | "DELETED") => match item(object) {
                Some((key, (revision, value))) => {
                    if kind == "DELETED" {
                        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
                        let mut ends = records.ends.lock().unwrap_or_else(PoisonError::into_inner);
                        let known = *ends.entry(uid.to_owned()).or_insert(revision);
                        if known != revision {
                            records.strange(format!(
                                "{key} with uid {uid} was deleted at {known} and {revision}"
                            ));
                        }
                    }
                    let value = (kind != "DELETED").then_some(value);
                    return Event::Told(Told::Change(Change { revision, key, value }), revision);
                }
                None => records.strange(format!("no ConfigMap of ours: {event}")),
            },
            _ => records.strange(format!("an unknown event: {event}")),
        }
        Event::Nothing
    }
}
