//! The registry itself: what it is made of, keys, and reading one object.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use lichen_api::{Resource, Status};
use lichen_store::{CommitError, Committed, Draft, Key, Precondition, Record, Revision, Store, Term, Txn};
use serde_json::Value;

use lichen_api::pod::defaults::Patience;

use crate::AllocationRanges;
use crate::error::{from_commit, unreadable};

/// Where time and randomness come from. Nothing else in this crate has either.
#[derive(Clone)]
pub struct Sources {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    random: Arc<dyn Fn() -> u128 + Send + Sync>,
}

impl Sources {
    /// The machine's clock and the operating system's randomness.
    #[must_use]
    pub fn system() -> Self {
        Self::new(Timestamp::now, || uuid::Uuid::new_v4().as_u128())
    }

    /// Other sources: a test's or a simulation's.
    pub fn new(
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        random: impl Fn() -> u128 + Send + Sync + 'static,
    ) -> Self {
        Self { now: Arc::new(now), random: Arc::new(random) }
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.now)()
    }

    pub(crate) fn uid(&self) -> String {
        uuid::Builder::from_random_bytes((self.random)().to_be_bytes()).into_uuid().to_string()
    }

    /// Random bits. The version and variant bits of a uuid, which are no randomness, are folded away.
    pub(crate) fn bits(&self) -> u64 {
        let bits = (self.random)();
        (bits as u64) ^ ((bits >> 64) as u64).rotate_left(29)
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

/// The one write path. Cheap to clone; all clones are the same registry.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(crate) inner: Arc<Inner>,
    fence: Option<Term>,
    guard: Option<(Key, Revision)>,
    pub(crate) patience: Patience,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) sources: Sources,
    pub(crate) ranges: AllocationRanges,
    /// Held from an allocation until it is recorded: many creates at once would all take the first that is free.
    pub(crate) allocating: futures_util::lock::Mutex<()>,
}

impl Registry {
    /// A registry over a store. Call [`Registry::bootstrap`] before others use it.
    #[must_use]
    pub fn new(store: Store, ranges: AllocationRanges, sources: Sources) -> Self {
        Self {
            inner: Arc::new(Inner { store, sources, ranges, allocating: Default::default() }),
            fence: None,
            guard: None,
            patience: Patience::default(),
        }
    }

    /// The same registry, where new pods stay on lost nodes for as long as `patience` says.
    #[must_use]
    pub fn patient(&self, patience: Patience) -> Self {
        Self { patience, ..self.clone() }
    }

    /// The same registry for what only the leader of a term may write: once another term has begun, every write is refused
    /// as one that the store can't take. Whoever it was for asks the next leader.
    #[must_use]
    pub fn fenced(&self, term: Term) -> Self {
        Self { fence: Some(term), ..self.clone() }
    }

    /// The same registry for a writer that holds something: it writes only while a key is at a revision. Afterwards
    /// every write is refused as one that the store can't take.
    #[must_use]
    pub fn guarded(&self, key: Key, revision: Revision) -> Self {
        Self { guard: Some((key, revision)), ..self.clone() }
    }

    /// Commits a transaction under fence and guard. Objects are written by the other methods.
    pub async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let fence = txn.fence.or(self.fence);
        let mut txn = txn.fenced(fence);
        let guard = txn.ops.len();
        if let Some((key, revision)) = &self.guard {
            txn = txn.check(key.clone(), Precondition::Revision(*revision));
        }
        self.inner.store.commit(txn).await.map_err(|error| match error {
            CommitError::Conflict { index, .. } if index == guard => taken_over(),
            CommitError::Fenced { .. } if self.fence.is_some() => taken_over(),
            error => error,
        })
    }

    /// The store below: for leadership and shutdown. Objects are written through the registry only.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The time by the registry's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.sources.now()
    }

    /// Reads an object, linearizably: every write that was acknowledged before the call is seen.
    pub async fn get(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Record, Status> {
        self.barrier().await?;
        self.get_local(resource, namespace, name)
    }

    /// Reads an object from this member's state, which may lag behind the leader's.
    pub fn get_local(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Record, Status> {
        self.inner
            .store
            .get(&key_of(resource, namespace, name))
            .ok_or_else(|| Status::not_found(resource, name))
    }

    /// Waits until this member has seen everything that was acknowledged anywhere.
    pub async fn barrier(&self) -> Result<(), Status> {
        // Boxed: futures of writes would be deeper than the compiler follows.
        Box::pin(self.inner.store.barrier()).await.map_err(|error| from_commit(&error))
    }

    /// Waits until this member has seen a revision that a client may know from another one. One that is still to come is
    /// refused.
    pub async fn reach(&self, revision: Revision) -> Result<(), Status> {
        if revision > self.revision() {
            self.barrier().await?;
        }
        let newest = self.revision();
        match revision > newest {
            true => Err(Status::future_revision(revision.0, newest.0)),
            false => Ok(()),
        }
    }

    /// The revision of this member's state.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.inner.store.revision()
    }
}

/// What a writer is told that is none any more. A refusal for good would settle what the next one has yet to write.
fn taken_over() -> CommitError {
    CommitError::Unavailable("another writer has taken over".to_owned())
}

/// The key of an object; a cluster-scoped one has no namespace.
#[must_use]
pub fn key_of(resource: &Resource, namespace: Option<&str>, name: &str) -> Key {
    let mut key = prefix_of(resource, None);
    key.push_str(namespace.unwrap_or_default());
    key.push('/');
    key.push_str(name);
    Key::from(key)
}

/// A record's object in the form of the kind that it was asked for as.
pub fn object_of(resource: &Resource, record: &Record) -> Result<Value, Status> {
    record
        .value()
        .map(|stored| resource.from_home(stored))
        .map_err(|error| unreadable(resource, name_of(record), &error))
}

/// An object as it is stored.
pub(crate) fn draft_of(resource: &Resource, object: &Value) -> Draft {
    let object = resource.to_home(object);
    Draft::new(&object, resource.home().field_values(&object))
}

/// The prefix of all keys of a kind, or of those in one namespace.
pub(crate) fn prefix_of(resource: &Resource, namespace: Option<&str>) -> String {
    let resource = resource.home();
    let group = if resource.group.is_empty() { "core" } else { resource.group };
    match namespace {
        Some(namespace) => format!("/{group}/{}/{namespace}/", resource.plural),
        None => format!("/{group}/{}/", resource.plural),
    }
}

/// The name of a record's object, without parsing it.
#[must_use]
pub fn name_of(record: &Record) -> &str {
    record.fields().get("metadata.name").unwrap_or_default()
}

/// The namespace of a record's object, without parsing it. `None` for what is cluster-scoped.
#[must_use]
pub fn namespace_of(record: &Record) -> Option<&str> {
    record.fields().get("metadata.namespace")
}
