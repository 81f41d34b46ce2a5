//! What members of the control plane say to each other.
//!
//! Every member listens on a port of its own for HTTP/2 over mutual TLS. A member's certificate carries its id: who calls
//! checks it as the server's name, and who is called knows by it who asks. Three kinds of things are said there:
//! raft's messages (`calls`), changes of the members (`membership`), and whatever other parts mount, such as requests of
//! clients that another member has to answer ([`Peers::request`], [`Peers::mount`]).
//!
//! Invariants:
//! - raft's messages have a connection of their own, which neither a slow stream nor a large message can hold up;
//! - a member that was removed is told so by whichever member it asks, and never let in again;
//! - members that speak another version of the protocol are refused with the reason, in both directions;
//! - every buffer, queue and wait is bounded; nothing polls.
//!
//! Deliberately absent: who may change the members, and the tokens of servers that join. That is the business of the API's
//! port, where administrators and newcomers knock.

mod calls;
mod client;
mod error;
mod membership;
mod record;
mod server;
mod steward;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::{Request, Response};
use lichen_pki::{Authority, Rotating};
use lichen_store::{Network, Role, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::client::{Lane, Remote};
pub use crate::error::{PeersError, RequestError, StartError};
pub use crate::membership::{Member, Status};
pub use crate::record::{MEMBERS_PREFIX, MemberRecord};
pub use crate::server::Listener;

/// The version of everything that members say to each other, the entries of the log included. Members of different
/// versions do not work together.
pub const PROTOCOL: u32 = 1;
/// The port that members listen on where nothing else is said.
pub const PORT: u16 = 6444;

/// Why a body broke off.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A body, whole or streamed.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Answers requests of other members.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request of a member whose path is under the handler's prefix.
    fn handle(&self, member: u64, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>>;
}

impl<F, A> Handler for F
where
    F: Fn(u64, Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    fn handle(&self, member: u64, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(self(member, request))
    }
}

/// The other members, as one member has them. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    authority: Arc<Authority>,
    /// Who this is: known once the store is open.
    own: OnceLock<Own>,
    remotes: Mutex<BTreeMap<u64, Arc<Remote>>>,
    mounts: RwLock<Vec<(String, Arc<dyn Handler>)>>,
    /// Where members say that they are, while the cluster still knows another address.
    moved: Mutex<BTreeMap<u64, Moved>>,
    /// Ids that never come back.
    gone: RwLock<BTreeSet<u64>>,
    /// Why this member serves no more, once it doesn't.
    removed: watch::Sender<Option<String>>,
    /// The connections to other members.
    links: Mutex<JoinSet<()>>,
}

/// A member that is not where the cluster knows it.
struct Moved {
    from: String,
    to: String,
}

/// What a member is once its store is open.
struct Own {
    id: u64,
    store: Store,
    connector: TlsConnector,
}

/// What serves the other members. It ends when this is dropped.
#[derive(Debug)]
pub struct Serving {
    tasks: JoinSet<()>,
}

impl Serving {
    /// Ends serving the other members.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Peers(..)")
    }
}

impl Peers {
    /// The other members of a cluster with this authority. None is reached before [`Peers::start`].
    #[must_use]
    pub fn new(authority: Arc<Authority>) -> Self {
        let inner = Inner {
            authority,
            own: OnceLock::new(),
            remotes: Mutex::default(),
            mounts: RwLock::default(),
            moved: Mutex::default(),
            gone: RwLock::default(),
            removed: watch::Sender::new(None),
            links: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What the store is to be opened with.
    #[must_use]
    pub fn network(&self) -> Arc<dyn Network> {
        Arc::new(calls::Calls(Arc::downgrade(&self.inner)))
    }

    /// Gives the store that was opened its voice and its ears.
    ///
    /// # Errors
    /// When the store has no members, or the member's certificate cannot be made.
    pub fn start(&self, store: Store, listener: Listener) -> Result<Serving, StartError> {
        let id = store.member_id().ok_or(StartError::NoMember)?;
        let certificate = Rotating::member(self.inner.authority.clone(), id)?;
        let connector = TlsConnector::from(Arc::new(certificate.mutual_client_config(&[ALPN])?));
        let tls = certificate.mutual_server_config(&[ALPN])?;
        self.inner.own.set(Own { id, store, connector }).map_err(|_| StartError::Twice)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(server::run(self.clone(), listener, tls));
        tasks.spawn(steward::run(self.clone()));
        Ok(Serving { tasks })
    }

    /// Serves requests under a prefix of paths, instead of whoever did before.
    pub fn mount(&self, prefix: &str, handler: Arc<dyn Handler>) {
        let mut mounts = self.inner.mounts.write().unwrap_or_else(PoisonError::into_inner);
        mounts.retain(|(known, _)| known != prefix);
        mounts.push((prefix.to_owned(), handler));
    }

    /// Sends a request to a member, on a connection apart from raft's. The URI needs a path only.
    ///
    /// # Errors
    /// When the member cannot be reached, or does not take requests from this one.
    pub async fn request(
        &self,
        member: u64,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, RequestError> {
        client::send(&self.inner, member, Lane::Requests, None, request).await
    }

    /// Sends a request to the member that leads.
    ///
    /// # Errors
    /// When no leader is known, or it cannot be reached.
    pub async fn request_leader(&self, request: Request<Body>) -> Result<Response<Incoming>, RequestError> {
        let leader = self.leader().ok_or(RequestError::NoLeader)?;
        self.request(leader, request).await
    }

    /// The member that leads, as far as this one knows.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        let members = self.inner.own.get()?.store.members().ok()?;
        members.iter().find(|member| member.role == Role::Leader).map(|member| member.id)
    }

    /// This member's id, once its store is open.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        self.inner.own.get().map(|own| own.id)
    }

    /// Turns to the reason when this member was removed from the cluster: it has to serve nobody any more.
    #[must_use]
    pub fn removed(&self) -> watch::Receiver<Option<String>> {
        self.inner.removed.subscribe()
    }

    fn own(&self) -> Result<&Own, RequestError> {
        self.inner.own()
    }
}

impl Inner {
    fn own(&self) -> Result<&Own, RequestError> {
        self.own.get().ok_or(RequestError::Starting)
    }

    fn is_gone(&self, member: u64) -> bool {
        self.gone.read().unwrap_or_else(PoisonError::into_inner).contains(&member)
    }

    /// Notes where a member is, whom its certificate has named. It is reached there before the cluster has noted it too,
    /// since that may take this member's voice.
    fn note_moved(&self, member: u64, from: &str, to: &str) {
        let moved = Moved { from: from.to_owned(), to: to.to_owned() };
        self.moved.lock().unwrap_or_else(PoisonError::into_inner).insert(member, moved);
    }

    /// Where a member is that the cluster knows at an address.
    fn found_at(&self, member: u64, known: String) -> String {
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        match moved.get(&member) {
            Some(Moved { from, to }) if *from == known => to.clone(),
            _ => known,
        }
    }

    /// Notes that this member was removed. Only the first reason counts.
    fn note_removed(&self, why: &str) {
        self.removed.send_if_modified(|removed| {
            let first = removed.is_none();
            if first {
                *removed = Some(why.to_owned());
            }
            first
        });
    }
}

/// The protocol that both sides agree on in TLS.
const ALPN: &[u8] = b"h2";
