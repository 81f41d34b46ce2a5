//! A client: it creates, updates, swaps, deletes, reads and lists ConfigMaps through whichever member it likes, and
//! records what it was told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Method;
use lichen_firmware_tests::history::{Did, Expect, Outcome, Recorder, Revision, Step};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::{Answer, Api};

/// The longest that a client does nothing.
const REST_MS: u64 = 60;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// What was done in a round, and what is known about it apart from the history.
#[derive(Clone, Default)]
pub(crate) struct Records {
    /// The history.
    pub(crate) recorder: Recorder,
    /// Deletions that were acknowledged: when each began, and the uid of what it deleted. The API does not tell the
    /// revision; watches do.
    pub(crate) deleted: Arc<Mutex<Vec<(u64, String)>>>,
    /// The revision at which each uid was deleted, as watches told it.
    pub(crate) ends: Arc<Mutex<BTreeMap<String, Revision>>>,
    /// Answers that no client should get.
    pub(crate) strange: Arc<Mutex<Vec<String>>>,
}

impl Records {
    /// Remembers an answer that should not be.
    pub(crate) fn strange(&self, what: String) {
        self.strange.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }
}

/// The ConfigMaps of one namespace.
#[derive(Clone)]
pub(crate) struct Collection {
    /// A client of the members.
    pub(crate) api: Api,
    /// The members' URLs.
    pub(crate) members: Arc<Vec<String>>,
    /// The namespace.
    pub(crate) namespace: String,
    /// What is recorded.
    pub(crate) records: Records,
}

/// A client.
pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) random: StdRng,
    pub(crate) keys: usize,
    pub(crate) collection: Collection,
}

/// The name and revision of an object, and the value in it.
pub(crate) fn item(object: &Value) -> Option<(String, (Revision, String))> {
    let metadata = &object["metadata"];
    let revision = metadata["resourceVersion"].as_str()?.parse().ok()?;
    let value = object["data"]["value"].as_str()?.to_owned();
    Some((metadata["name"].as_str()?.to_owned(), (revision, value)))
}

fn config_map(name: &str, value: &str, revision: Option<Revision>) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value},
    });
    if let Some(revision) = revision {
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
    }
    object
}

/// What an answer says beside the outcome.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    /// The uid of what was deleted.
    Deleted(String),
    /// What nobody should be told.
    Strange,
}

/// What an answer says of a write. Of a deletion that was acknowledged it does not say when that was.
fn told(step: &Step, answer: &Answer) -> (Outcome, Said) {
    let outcome = match answer {
        Answer::Said(200 | 201, body) if step.value.is_some() => match item(body) {
            Some((_, (revision, _))) => Outcome::Done(revision),
            None => return (Outcome::Unknown, Said::Strange),
        },
        Answer::Said(200, body) => {
            let uid = body["details"]["uid"].as_str();
            let said = uid.map_or(Said::Strange, |uid| Said::Deleted(uid.to_owned()));
            return (Outcome::Unknown, said);
        }
        // Too many others wrote it meanwhile.
        Answer::Said(409, _) if step.expect == Expect::Present => Outcome::Refused,
        Answer::Said(404 | 409, _) => Outcome::Conflict,
        Answer::Said(429 | 503, _) | Answer::Unreached => Outcome::Refused,
        Answer::Said(504, _) | Answer::Unknown => Outcome::Unknown,
        Answer::Said(..) => return (Outcome::Unknown, Said::Strange),
    };
    (outcome, Said::Nothing)
}

impl Collection {
    /// The URL of the collection, through a member, or of an object in it.
    pub(crate) fn url(&self, member: usize, name: &str) -> String {
        let base = format!("{}/api/v1/namespaces/{}/configmaps", self.members[member], self.namespace);
        if name.is_empty() { base } else { format!("{base}/{name}") }
    }

    /// Writes a ConfigMap, or deletes it, and records how that ended.
    pub(crate) async fn write(&self, member: usize, step: Step) -> Outcome {
        let Step { key, expect, value } = &step;
        let revision = match expect {
            Expect::Revision(revision) => Some(*revision),
            _ => None,
        };
        let (method, url, body) = match (value, expect) {
            (None, _) => {
                let body = revision.map(|revision| {
                    let preconditions = json!({"resourceVersion": revision.to_string()});
                    json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions})
                });
                (Method::DELETE, self.url(member, key), body)
            }
            (Some(value), Expect::Absent) => {
                (Method::POST, self.url(member, ""), Some(config_map(key, value, None)))
            }
            (Some(value), _) => (Method::PUT, self.url(member, key), Some(config_map(key, value, revision))),
        };
        let began = self.records.recorder.now();
        let answer = self.api.call(method.clone(), &url, body.as_ref(), PATIENCE).await;
        let (outcome, said) = told(&step, &answer);
        match said {
            Said::Deleted(uid) => {
                let mut deleted = self.records.deleted.lock().unwrap_or_else(PoisonError::into_inner);
                deleted.push((began, uid));
            }
            Said::Strange => self.records.strange(format!("{method} {url}: {answer:?}")),
            Said::Nothing => {}
        }
        self.records.recorder.operation(began, Did::Wrote { steps: vec![step], outcome });
        outcome
    }

    /// Reads one.
    async fn read(&self, member: usize, key: &str) -> Option<Option<Revision>> {
        let url = self.url(member, key);
        let began = self.records.recorder.now();
        let found = match self.api.call(Method::GET, &url, None, PATIENCE).await {
            Answer::Said(200, body) => Some(item(&body)?.1),
            Answer::Said(404, _) => None,
            answer => {
                self.refused("GET", &url, &answer);
                return None;
            }
        };
        let revision = found.as_ref().map(|(revision, _)| *revision);
        self.records.recorder.operation(began, Did::Read { key: key.to_owned(), found });
        Some(revision)
    }

    /// Reads all, at once or, if `local`, as the member knows them. Tells the revision.
    pub(crate) async fn list(&self, member: usize, local: bool) -> Option<(Revision, Did)> {
        let query = if local { "?resourceVersion=0" } else { "" };
        let url = format!("{}{query}", self.url(member, ""));
        // What a member knows by itself may be as old as it likes.
        let began = if local { 0 } else { self.records.recorder.now() };
        let list = match self.api.call(Method::GET, &url, None, PATIENCE).await {
            Answer::Said(200, list) => list,
            answer => {
                self.refused("GET", &url, &answer);
                return None;
            }
        };
        let revision = list["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        let found = list["items"].as_array()?.iter().filter_map(item).collect();
        let did = Did::Listed { prefix: String::new(), revision, found };
        self.records.recorder.operation(began, did.clone());
        Some((revision, did))
    }

    fn refused(&self, method: &str, url: &str, answer: &Answer) {
        if let Answer::Said(code, body) = answer
            && !matches!(code, 429 | 503 | 504)
        {
            self.records.strange(format!("{method} {url}: {code} {body}"));
        }
    }
}

impl Client {
    /// Works until it is told to stop.
    pub(crate) async fn work(mut self, stopped: watch::Receiver<bool>) {
        let mut known = BTreeMap::new();
        let mut member = self.number % self.collection.members.len();
        let mut count = 0;
        while !*stopped.borrow() {
            let rest = self.random.random_range(0..=REST_MS);
            tokio::time::sleep(Duration::from_millis(rest)).await;
            if self.random.random_range(0..5) == 0 {
                member = self.random.random_range(0..self.collection.members.len());
            }
            count += 1;
            self.act(count, member, &mut known).await;
        }
    }

    async fn act(&mut self, count: u64, member: usize, known: &mut BTreeMap<String, Revision>) {
        let key = format!("k{}", self.random.random_range(0..self.keys));
        let value = Some(format!("{}-{count}", self.number));
        let exactly = known.get(&key).map_or(Expect::Present, |revision| Expect::Revision(*revision));
        let (expect, value) = match self.random.random_range(0..100) {
            0..=17 => (Expect::Absent, value),
            18..=37 => (Expect::Present, value),
            38..=54 => (exactly, value),
            55..=61 => (Expect::Present, None),
            62..=66 => (exactly, None),
            67..=84 => {
                match self.collection.read(member, &key).await {
                    Some(Some(revision)) => drop(known.insert(key, revision)),
                    Some(None) => drop(known.remove(&key)),
                    None => {}
                }
                return;
            }
            lot => {
                self.collection.list(member, lot > 96).await;
                return;
            }
        };
        let step = Step { key: key.clone(), expect, value };
        if let Outcome::Done(revision) = self.collection.write(member, step).await {
            known.insert(key, revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_what_happened_and_no_more() {
        let step =
            |expect, value: Option<&str>| Step { key: "k".into(), expect, value: value.map(str::to_owned) };
        let check = |step: &Step, answer: Answer, outcome: Outcome, said: Said| {
            assert_eq!(told(step, &answer), (outcome, said), "{step:?}: {answer:?}");
        };
        let put = step(Expect::Present, Some("v"));
        let swap = step(Expect::Revision(3), Some("v"));
        let delete = step(Expect::Present, None);
        let stored = || config_map("k", "v", Some(7));
        check(&put, Answer::Said(200, stored()), Outcome::Done(7), Said::Nothing);
        check(&put, Answer::Said(200, json!({})), Outcome::Unknown, Said::Strange);
        let status = json!({"details": {"uid": "u"}});
        check(&delete, Answer::Said(200, status), Outcome::Unknown, Said::Deleted("u".into()));
        check(&delete, Answer::Said(200, json!({})), Outcome::Unknown, Said::Strange);
        check(&put, Answer::Said(409, json!({})), Outcome::Refused, Said::Nothing);
        check(&swap, Answer::Said(409, json!({})), Outcome::Conflict, Said::Nothing);
        check(&put, Answer::Said(404, json!({})), Outcome::Conflict, Said::Nothing);
        check(&put, Answer::Said(503, json!({})), Outcome::Refused, Said::Nothing);
        check(&put, Answer::Unreached, Outcome::Refused, Said::Nothing);
        check(&put, Answer::Said(504, json!({})), Outcome::Unknown, Said::Nothing);
        check(&put, Answer::Unknown, Outcome::Unknown, Said::Nothing);
        check(&put, Answer::Said(500, json!({})), Outcome::Unknown, Said::Strange);
    }
}
