//! Members that hold artifacts together: real stores and real connections, in one process.

use lichen_artifacts::{CompileCommand, Pushed, Reference, ResolveError, Transport, TransportError, push};
use lichen_fuzz::Fuzz;
use lichen_peers::{Listener, Serving};
use lichen_pki::Authority;
use lichen_store::{Config, Pace, Peering};

use super::*;

const COMPONENT: &[u8] = include_bytes!("../../../runtime/guests/hello.wasm");

/// A member, its artifacts, and its way to those of others.
struct Holding {
    store: Store,
    peers: Peers,
    address: String,
    artifacts: Arc<Artifacts>,
    members: Arc<Members>,
    serving: Serving,
    dir: tempfile::TempDir,
}

impl Holding {
    fn id(&self) -> u64 {
        self.store.member_id().unwrap()
    }

    /// Content that only this one has.
    async fn upload(&self, content: &'static [u8]) -> Digest {
        let digest = Digest::of(content);
        let uri = format!("/v2/x/blobs/uploads/?digest={digest}");
        let request = Request::post(uri).body(Full::new(Bytes::from_static(content))).unwrap();
        assert_eq!(self.artifacts.handle(request).await.status(), StatusCode::CREATED);
        digest
    }

    async fn has(&self, digest: &Digest) -> bool {
        self.artifacts.open_own(digest).await.is_ok()
    }

    async fn push(&self, reference: &str) -> Pushed {
        push(&Local(&self.artifacts), &parse(reference), component()).await.unwrap()
    }

    async fn end(self) -> tempfile::TempDir {
        self.serving.shutdown().await;
        self.store.shutdown().await;
        self.dir
    }
}

/// A client of a member's artifacts, without a socket.
struct Local<'a>(&'a Artifacts);

impl Transport for Local<'_> {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
        let (parts, body) = self.0.handle(request.map(Full::new)).await.into_parts();
        Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
    }
}

fn parse(reference: &str) -> Reference {
    reference.parse().unwrap()
}

fn component() -> Bytes {
    Bytes::from_static(COMPONENT)
}

fn link(path: &str, content: Option<&str>) -> Link {
    Link { path: path.to_owned(), content: content.map(str::to_owned) }
}

/// A member in a directory, which may hold artifacts already. Without `known` ones it begins a cluster.
async fn start(authority: &Arc<Authority>, known: &[(u64, String)], dir: tempfile::TempDir) -> Holding {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (address, peers) = (listener.address().to_string(), Peers::new(authority.clone()));
    let config = Config::new(dir.path().join("store"));
    let peering = Peering {
        address: address.clone(),
        joins: !known.is_empty(),
        pace: Pace::default(),
        network: peers.network(),
    };
    let store = Store::open_member(config, peering).await.unwrap();
    let serving = peers.start(store.clone(), listener).unwrap();
    let members = Arc::new(Members::new(store.clone(), peers.clone()));
    let artifacts = Artifacts::open_member(
        &dir.path().join("artifacts"),
        CompileCommand::new(Vec::new()),
        authority.clone(),
        members.clone(),
    );
    let artifacts = Arc::new(artifacts.unwrap());
    peers.mount(PREFIX, Arc::new(Holder(Arc::downgrade(&artifacts))));
    if !known.is_empty() {
        peers.join(known, &address).await.unwrap();
    }
    Holding { store, peers, address, artifacts, members, serving, dir }
}

/// Three members, all of which vote. What is in the directory of the first was there before.
async fn three(first: tempfile::TempDir) -> (tempfile::TempDir, [Holding; 3]) {
    let pki = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::open_or_create(pki.path()).unwrap());
    let a = start(&authority, &[], first).await;
    let known = [(a.id(), a.address.clone())];
    let b = start(&authority, &known, tempfile::tempdir().unwrap()).await;
    let c = start(&authority, &known, tempfile::tempdir().unwrap()).await;
    for other in [&b, &c] {
        loop {
            let members = a.store.members().unwrap();
            if members.iter().any(|member| member.id == other.id() && member.role != Role::Learner) {
                break;
            }
            a.store.members_changed(&members).await;
        }
        // A voter counts as one from the moment in which it begins to be made such; this waits for the end.
        a.peers.promote(other.id()).await.unwrap();
    }
    (pki, [a, b, c])
}

async fn end(all: [Holding; 3]) {
    for one in all {
        one.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_agreed_on_is_told_to_each_in_order_and_after_a_gap_as_a_whole() {
    let (_pki, all) = three(tempfile::tempdir().unwrap()).await;
    let [a, b, c] = &all;
    let agree = async |at: &Holding, path: &str, content| {
        at.members.agree(Vec::new(), vec![link(path, content)]).await.unwrap();
    };
    agree(a, "x/_tags/1", Some("one")).await;
    // Until it is known what the first one had before, nothing that is here is taken to be gone.
    let first = b.members.news().await.unwrap();
    assert_eq!(first, News { links: vec![link("x/_tags/1", Some("one"))], whole: false });
    import(&a.artifacts, &a.store).await.unwrap();
    agree(b, "x/_tags/2", Some("two")).await;
    agree(c, "x/_tags/1", None).await;
    let news = b.members.news().await.unwrap();
    let told = vec![link("x/_tags/2", Some("two")), link("x/_tags/1", None)];
    assert_eq!(news, News { links: told, whole: false });
    assert_eq!(b.members.news().await.unwrap(), News { links: Vec::new(), whole: false });
    // Who was not told before is told what there is.
    let late = c.members.news().await.unwrap();
    assert_eq!(late, News { links: vec![link("x/_tags/2", Some("two"))], whole: true });
    end(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_held_by_a_majority_before_anything_leads_to_it() {
    let (_pki, [a, b, c]) = three(tempfile::tempdir().unwrap()).await;
    let digest = a.upload(b"some").await;
    c.serving.shutdown().await;
    a.members.agree(vec![digest], vec![link("x/_tags/1", Some("some"))]).await.unwrap();
    assert!(b.has(&digest).await, "two of three are a majority, and one of them does not answer");

    // A member that has it not itself does not count as one that holds it.
    let nowhere = Digest::of(b"nowhere");
    let refused = a.members.agree(vec![nowhere], vec![link("x/_tags/2", Some("no"))]).await.unwrap_err();
    assert!(refused.to_string().contains("too few members hold it"), "{refused}");
    b.serving.shutdown().await;
    let other = a.upload(b"other").await;
    let refused = a.members.agree(vec![other], vec![link("x/_tags/2", Some("no"))]).await.unwrap_err();
    assert!(refused.to_string().contains("too few members hold it"), "{refused}");
    assert!(a.store.get(&Key::new("/artifacts/x/_tags/2")).is_none());
    a.serving.shutdown().await;
    for store in [a.store, b.store, c.store] {
        store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_comes_from_whoever_has_it_and_is_not_called_gone_while_somebody_may() {
    let (_pki, [a, b, c]) = three(tempfile::tempdir().unwrap()).await;
    let (digest, nowhere) = (c.upload(b"some").await, Digest::of(b"nowhere"));
    a.artifacts.hold(&digest).await.unwrap();
    assert!(a.has(&digest).await && !b.has(&digest).await);
    assert!(a.members.fetch(nowhere).await.unwrap().is_none());
    c.serving.shutdown().await;
    let unknown = a.members.fetch(nowhere).await.err().unwrap();
    assert!(unknown.to_string().contains("no member that answers has"), "{unknown}");
    // One that answers has it, whoever else does not.
    b.artifacts.hold(&digest).await.unwrap();
    assert!(b.has(&digest).await);
    for one in [a.serving, b.serving] {
        one.shutdown().await;
    }
    for store in [a.store, b.store, c.store] {
        store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_to_a_lone_server_or_to_any_member_is_on_each_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let pki = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::open_or_create(pki.path()).unwrap());
    let alone =
        Artifacts::open(&dir.path().join("artifacts"), CompileCommand::new(Vec::new()), authority.clone());
    let alone = alone.unwrap();
    let before = push(&Local(&alone), &parse("team/before:v1"), component()).await.unwrap();
    drop(alone);

    let (_pki, all) = three(dir).await;
    let [a, b, c] = &all;
    for one in &all {
        tokio::spawn(keep(one.artifacts.clone(), one.store.clone()));
    }
    let after = b.push("team/after:v1").await;
    for one in [a, b, c] {
        let resolved = one.artifacts.resolve(&parse("team/after:v1")).await.unwrap();
        assert_eq!((resolved.manifest, resolved.layer), (after.manifest, after.layer));
        // What the first one brought is known once it has told of it.
        let mut watch = one.store.watch(IMPORTED, one.store.revision()).unwrap();
        if one.store.get(&Key::new(IMPORTED)).is_none() {
            watch.next().await.unwrap();
        }
        assert_eq!(one.artifacts.resolve(&parse("team/before:v1")).await.unwrap().manifest, before.manifest);
    }
    let gone = Request::delete(format!("/v2/team/after/manifests/{}", after.manifest));
    let gone = c.artifacts.handle(gone.body(Full::new(Bytes::new())).unwrap()).await;
    assert_eq!(gone.status(), StatusCode::ACCEPTED);
    for one in [a, b, c] {
        let error = one.artifacts.resolve(&parse("team/after:v1")).await.unwrap_err();
        assert!(matches!(error, ResolveError::NotFound(_)), "{error}");
    }
    end(all).await;
}

#[test]
fn lists_of_digests_are_read_or_refused() {
    let one = Digest::of(b"one");
    let examples = [("none", "[]".to_owned()), ("two", format!("[\"{one}\",\"{}\"]", Digest::of(b"two")))];
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), "digests").examples(examples).run(|bytes| {
        let Ok(list) = digests(bytes) else { return false };
        let texts: Vec<String> = list.iter().map(ToString::to_string).collect();
        assert_eq!(digests(&serde_json::to_vec(&texts).unwrap()), Ok(list));
        true
    });
}
