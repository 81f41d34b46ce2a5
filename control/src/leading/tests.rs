//! Members whose lead the test hands round: what the leader runs goes with it.

use std::net::SocketAddr;
use std::sync::{Mutex, Weak};

use futures_util::FutureExt as _;
use lichen_artifacts::CompileCommand;
use lichen_registry::{AllocationRanges, DeleteOptions, Identity, Sources, WriteOptions};
use lichen_store::{Applier, CommitError, Committed, HistoryBounds, Key, Order, Store, Txn};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// One log for all members: every transaction is applied to each of them.
#[derive(Default)]
struct Log {
    appliers: Vec<Applier>,
    term: Mutex<Term>,
}

/// A member's way to the log.
struct Proposes(Weak<Log>);

impl Order for Proposes {
    fn propose(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        let decided = self.0.upgrade().map(|log| {
            let term = log.term.lock().unwrap();
            let all: Vec<_> = log.appliers.iter().map(|applier| applier.apply(*term, &txn)).collect();
            all[0].clone().map(|(committed, _)| committed).map_err(CommitError::from)
        });
        std::future::ready(decided.unwrap_or(Err(CommitError::Closed("the test is over".into())))).boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), CommitError>> {
        std::future::ready(Ok(())).boxed()
    }
}

struct Member {
    registry: Registry,
    owner: Owner,
    mqtt_addr: SocketAddr,
    leading: Leading,
    _dir: tempfile::TempDir,
}

struct Cluster {
    log: Arc<Log>,
    members: Vec<Member>,
}

impl Cluster {
    async fn new(size: usize) -> Cluster {
        let appliers: Vec<_> = (0..size).map(|_| Applier::new(HistoryBounds::default())).collect();
        let log = Arc::new(Log { appliers, term: Mutex::default() });
        let mut members = Vec::new();
        for (applier, name) in log.appliers.iter().zip(["a", "b", "c"]) {
            let store = Store::ordered(applier.clone(), Proposes(Arc::downgrade(&log)));
            members.push(Member::start(store, name).await);
        }
        Cluster { log, members }
    }

    /// Begins a term. Whoever led before hears of it first, or last.
    fn elect(&self, leader: usize, term: Term) {
        *self.log.term.lock().unwrap() = term;
        for (index, applier) in self.log.appliers.iter().enumerate() {
            applier.lead(Leadership { leader: index == leader, term });
        }
    }

    /// Waits until a member, and no other, meets nodes.
    async fn met_by(&self, leader: usize) {
        let settled = async {
            for (index, member) in self.members.iter().enumerate() {
                while TcpStream::connect(member.mqtt_addr).await.is_ok() != (index == leader)
                    || member.owner.links().is_some() != (index == leader)
                {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.unwrap();
    }

    fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let resource = lichen_api::RESOURCES.iter().find(|resource| resource.plural == plural).unwrap();
        let found = self.members[0].registry.get_local(resource, Some(namespace), name).ok()?;
        Some(found.value().unwrap())
    }

    /// The owner epoch that was granted last; 0 if none was.
    fn epoch(&self) -> u64 {
        let record = self.members[0].registry.store().get(&Key::new("/gateway/epoch"));
        record.map_or(0, |record| std::str::from_utf8(record.body()).unwrap().parse().unwrap())
    }
}

impl Member {
    async fn start(store: Store, name: &str) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new(store, AllocationRanges::default(), Sources::system());
        let authority = Arc::new(Authority::open_or_create(&dir.path().join("pki")).unwrap());
        let compile = CompileCommand::new(Vec::new());
        let artifacts = Artifacts::open(&dir.path().join("artifacts"), compile, authority.clone()).unwrap();
        let seat = broker::Seat::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let mqtt_addr = seat.local_addr();
        let certificate = Rotating::server(authority.clone(), vec!["127.0.0.1".to_owned()]).unwrap();
        let leader = Leader {
            registry: registry.clone(),
            artifacts,
            authority,
            venue: Venue::Embedded { seat, tls: Arc::new(certificate.server_config(&[]).unwrap()) },
            silence_grace: Duration::from_secs(40),
            node_certificate_ttl: Duration::from_secs(60 * 60),
            timing: Timing::DEFAULT,
            api_port: 6443,
            holder: name.to_owned(),
        };
        let owner = Owner::default();
        let leading = Leading::start(leader, owner.clone()).await.unwrap();
        Member { registry, owner, mqtt_addr, leading, _dir: dir }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_leader_runs_goes_with_the_lead() {
    let cluster = Cluster::new(2).await;
    let nobody = cluster.members.len();
    cluster.met_by(nobody).await;
    let mut last = 0;
    for (index, leader) in [0, 1, 0, 0].into_iter().enumerate() {
        let term = Term(index as u64 + 1);
        cluster.elect(leader, term);
        cluster.met_by(leader).await;
        // The one that leads twice in a row has a gateway of each term.
        let granted = async {
            while cluster.epoch() <= last {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, granted).await.unwrap();
        last = cluster.epoch();
    }
    cluster.elect(nobody, Term(5));
    cluster.met_by(nobody).await;
    assert_eq!(cluster.epoch(), last, "nobody takes over who does not lead");
    // The Leases were written when they changed hands, and not when the same member led again.
    for name in ["kube-scheduler", "kube-controller-manager", "lichen-gateway"] {
        let lease = cluster.object("leases", "kube-system", name).unwrap();
        let spec = &lease["spec"];
        assert_eq!((&spec["holderIdentity"], &spec["leaseTransitions"]), (&json!("a"), &json!(2)), "{name}");
        assert_eq!(spec["acquireTime"], spec["renewTime"]);
    }
    for member in cluster.members {
        member.leading.shutdown().await;
    }
}

#[tokio::test]
async fn a_registry_of_an_earlier_term_writes_nothing() {
    let cluster = Cluster::new(1).await;
    cluster.elect(0, Term(1));
    cluster.met_by(0).await;
    let fenced = cluster.members[0].registry.fenced(Term(1));
    cluster.elect(0, Term(2));
    let before = fenced.revision();
    let (me, resource) =
        (Identity::component("tester"), lichen_api::by_plural("", "v1", "configmaps").unwrap());
    let object = json!({"metadata": {"name": "late"}});
    let late = fenced.create(&me, resource, Some("default"), object, &WriteOptions::default()).await;
    assert_eq!(late.unwrap_err().code, 503, "not a refusal for good");
    assert!(fenced.get_local(resource, Some("default"), "late").is_err(), "at {before:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_cluster_has_comes_back() {
    let cluster = Cluster::new(1).await;
    cluster.elect(0, Term(1));
    cluster.met_by(0).await;
    let registry = &cluster.members[0].registry;
    let (me, options) = (Identity::new("admin", ["system:masters"]), DeleteOptions::default());
    for (plural, namespace, name) in
        [("services", "default", "kubernetes"), ("leases", "kube-system", "kube-scheduler")]
    {
        let uid = |object: Value| object["metadata"]["uid"].as_str().unwrap().to_owned();
        let before = uid(cluster.object(plural, namespace, name).unwrap());
        let resource = lichen_api::RESOURCES.iter().find(|resource| resource.plural == plural).unwrap();
        registry.delete(&me, resource, Some(namespace), name, &options).await.unwrap();
        let back = async {
            while cluster.object(plural, namespace, name).is_none_or(|object| uid(object) == before) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, back).await.unwrap();
    }
    for member in cluster.members {
        member.leading.shutdown().await;
    }
}
