//! Members that lag behind the leader: what a client does through one of them counts as if there were one server.

use std::sync::{Arc, Mutex, Weak};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lichen_api::{Resource, Status, by_plural};
use lichen_registry::{
    AllocationRanges, DeleteOptions, Identity, ListOptions, Patch, Registry, RevisionMatch, Sources,
    WatchEvent, WatchOptions, WatchStart, WriteOptions,
};
use lichen_store::{
    Applier, CommitError, Committed, HistoryBounds, Leadership, Order, Revision, Store, Term, Txn,
};
use serde_json::{Value, json};

const TERM: Term = Term(1);

/// A log that members apply when they must: when they propose, and before a read that has to see everything.
struct Log {
    entries: Mutex<Vec<Txn>>,
    /// Each member, and how much it has applied. The first one leads.
    members: Vec<(Applier, Mutex<usize>)>,
}

impl Log {
    fn catch_up(&self, member: usize) {
        let entries = self.entries.lock().unwrap();
        let (applier, applied) = &self.members[member];
        let mut applied = applied.lock().unwrap();
        for txn in &entries[*applied..] {
            applier.apply(TERM, txn).unwrap();
        }
        *applied = entries.len();
    }

    fn propose(&self, member: usize, txn: Txn) -> Result<Committed, CommitError> {
        let committed = {
            let mut entries = self.entries.lock().unwrap();
            let (leader, applied) = &self.members[0];
            let (committed, changes) = leader.apply(TERM, &txn)?;
            if changes.is_empty() {
                return Ok(committed);
            }
            entries.push(txn);
            *applied.lock().unwrap() = entries.len();
            committed
        };
        self.catch_up(member);
        Ok(committed)
    }
}

struct Member(Weak<Log>, usize);

impl Order for Member {
    fn propose(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        std::future::ready(self.0.upgrade().unwrap().propose(self.1, txn)).boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), CommitError>> {
        self.0.upgrade().unwrap().catch_up(self.1);
        std::future::ready(Ok(())).boxed()
    }
}

struct World {
    _log: Arc<Log>,
    leader: Registry,
    follower: Registry,
    me: Identity,
}

async fn world() -> World {
    let members = (0..2).map(|_| (Applier::new(HistoryBounds::default()), Mutex::default())).collect();
    let log = Arc::new(Log { entries: Mutex::default(), members });
    let registry = |member: usize| {
        let applier = log.members[member].0.clone();
        applier.lead(Leadership { leader: member == 0, term: TERM });
        let store = Store::ordered(applier, Member(Arc::downgrade(&log), member));
        Registry::new(store, AllocationRanges::default(), Sources::system())
    };
    let (leader, follower) = (registry(0), registry(1));
    leader.bootstrap(6443).await.unwrap();
    World { _log: log, leader, follower, me: Identity::component("tester") }
}

fn maps() -> &'static Resource {
    by_plural("", "v1", "configmaps").unwrap()
}

fn map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"k": value}})
}

impl World {
    async fn create(&self, through: &Registry, namespace: &str, object: Value) -> Result<Value, Status> {
        let options = WriteOptions::default();
        let made = through.create(&self.me, maps(), Some(namespace), object, &options).await?;
        Ok(made.record.value().unwrap())
    }

    async fn patch(&self, through: &Registry, name: &str, patch: Value) -> Result<bool, Status> {
        let (patch, options) = (Patch::Merge(patch), WriteOptions::default());
        let done = through.patch(&self.me, maps(), Some("default"), name, &patch, None, &options).await?;
        Ok(done.changed)
    }

    async fn delete(&self, through: &Registry, name: &str) -> Result<(), Status> {
        let options = DeleteOptions::default();
        through.delete(&self.me, maps(), Some("default"), name, &options).await.map(drop)
    }
}

#[tokio::test]
async fn what_one_member_acknowledged_counts_for_writes_through_another() {
    let world = world().await;
    let (leader, follower) = (&world.leader, &world.follower);
    // A namespace, and what is created in it.
    let namespace = json!({"metadata": {"name": "team"}});
    let resource = by_plural("", "v1", "namespaces").unwrap();
    leader.create(&world.me, resource, None, namespace, &WriteOptions::default()).await.unwrap();
    world.create(follower, "team", map("m", "1")).await.unwrap();

    // A name that is taken, and one that is free again.
    world.create(leader, "default", map("m", "1")).await.unwrap();
    assert_eq!(world.create(follower, "default", map("m", "2")).await.unwrap_err().reason, "AlreadyExists");
    world.delete(leader, "m").await.unwrap();
    let made = world.create(follower, "default", map("m", "2")).await.unwrap();

    // A patch that would change nothing, had the other member not changed it; one that is about an old version.
    world.patch(leader, "m", json!({"data": {"k": "3"}})).await.unwrap();
    assert!(world.patch(follower, "m", json!({"data": {"k": "2"}})).await.unwrap());
    let version = &made["metadata"]["resourceVersion"];
    let late = json!({"metadata": {"resourceVersion": version}, "data": {"k": "4"}});
    assert_eq!(world.patch(follower, "m", late).await.unwrap_err().reason, "Conflict");

    // A version that the follower has yet to see.
    world.patch(leader, "m", json!({"data": {"k": "5"}})).await.unwrap();
    let now = leader.get_local(maps(), Some("default"), "m").unwrap().revision().to_string();
    let mut object = map("m", "6");
    object["metadata"]["resourceVersion"] = json!(now);
    let options = WriteOptions::default();
    follower.update(&world.me, maps(), Some("default"), "m", object, None, &options).await.unwrap();

    // What is gone is gone.
    world.delete(leader, "m").await.unwrap();
    assert_eq!(world.delete(follower, "m").await.unwrap_err().code, 404);
    assert_eq!(world.patch(follower, "m", json!({"data": {}})).await.unwrap_err().code, 404);
    world.create(leader, "default", map("m", "7")).await.unwrap();
    world.delete(follower, "m").await.unwrap();
}

#[tokio::test]
async fn reads_see_what_any_member_acknowledged_unless_they_ask_for_less() {
    let world = world().await;
    let (leader, follower) = (&world.leader, &world.follower);
    follower.barrier().await.unwrap();
    let lists = async |revision| {
        let options = ListOptions { revision, ..ListOptions::default() };
        let list = follower.list(maps(), Some("default"), &options).await?;
        Ok::<_, Status>(list.items.len())
    };
    world.create(leader, "default", map("a", "1")).await.unwrap();
    assert_eq!(lists(RevisionMatch::NotOlderThan(Revision(0))).await.unwrap(), 0, "whatever it has");
    assert!(follower.get_local(maps(), Some("default"), "a").is_err());
    follower.get(maps(), Some("default"), "a").await.unwrap();

    world.create(leader, "default", map("b", "1")).await.unwrap();
    let told = leader.revision();
    assert_eq!(lists(RevisionMatch::NotOlderThan(told)).await.unwrap(), 2);
    world.create(leader, "default", map("c", "1")).await.unwrap();
    assert_eq!(lists(RevisionMatch::Newest).await.unwrap(), 3);
    world.create(leader, "default", map("d", "1")).await.unwrap();
    assert_eq!(lists(RevisionMatch::Exact(leader.revision())).await.unwrap(), 4);
    let unborn = Revision(leader.revision().0 + 1);
    assert_eq!(lists(RevisionMatch::NotOlderThan(unborn)).await.unwrap_err().code, 504);
}

#[tokio::test]
async fn a_watch_goes_on_at_a_member_that_lags() {
    let world = world().await;
    let (leader, follower) = (&world.leader, &world.follower);
    follower.barrier().await.unwrap();
    world.create(leader, "default", map("seen", "1")).await.unwrap();
    // The client saw it through the leader, and comes to the follower, which has not yet.
    let options = WatchOptions { start: WatchStart::After(leader.revision()), ..WatchOptions::default() };
    let mut watch = follower.watch(maps(), Some("default"), &options).unwrap();
    world.create(leader, "default", map("new", "1")).await.unwrap();
    follower.barrier().await.unwrap();
    let WatchEvent::Added(record) = watch.next().await.unwrap() else { panic!() };
    assert_eq!(lichen_registry::name_of(&record), "new");
}
