//! How members hold artifacts together: links are records in the store, content is fetched from whoever has it.

use std::io::Read as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use lichen_artifacts::{Arriving, Artifacts, Copies, CopyError, Digest, DigestError, Link, News};
use lichen_peers::{Body, Handler, Peers};
use lichen_store::{
    Change, Draft, Event, Key, Precondition, RangeOptions, Role, Store, Txn, Watch, WatchError,
};
use tokio::sync::Mutex;

/// Where members ask each other for content.
pub(crate) const PREFIX: &str = "/artifacts";
/// Where the links are in the store: outside every kind's prefix.
const LINKS: &str = "/artifacts/";
/// Says that what a server had before it was a member is among the links.
const IMPORTED: &str = "/artifacts-imported";
/// Bytes of a list of digests.
const LIST_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that are read from a file at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// How long a majority may take to hold what was pushed.
const HOLD_MAX: Duration = Duration::from_secs(120);
/// The pause before content is looked for again that no member had.
const RETRY: Duration = Duration::from_secs(10);

/// A member's way to the others.
pub(crate) struct Members {
    store: Store,
    peers: Peers,
    told: Mutex<Option<Watch>>,
}

impl Members {
    pub(crate) fn new(store: Store, peers: Peers) -> Members {
        Members { store, peers, told: Mutex::default() }
    }

    fn others(&self) -> Vec<u64> {
        let members = self.store.members().unwrap_or_default();
        let own = self.store.member_id();
        let mut others: Vec<_> = members.into_iter().filter(|member| Some(member.id) != own).collect();
        // The one that leads is asked first: what was pushed is most likely there.
        others.sort_by_key(|member| member.role != Role::Leader);
        others.into_iter().map(|member| member.id).collect()
    }

    /// Every link there is, and a watch of what comes after.
    fn begin(&self) -> Result<(Vec<Link>, Watch), CopyError> {
        let page = self.store.range(LINKS, &RangeOptions::default()).map_err(failed)?;
        let watch = self.store.watch(LINKS, page.revision).map_err(failed)?;
        let links = page.items.into_iter().map(|(key, record)| link(&key, Some(record.body())));
        Ok((links.collect(), watch))
    }

    async fn lets_hold(&self, member: u64, list: Bytes) -> Result<(), String> {
        let body = Full::new(list).map_err(|never| match never {}).boxed_unsync();
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = hyper::Uri::from_static(PREFIX);
        let reply = self.peers.request(member, request).await.map_err(|error| error.to_string())?;
        match reply.status() {
            StatusCode::OK => Ok(()),
            _ => {
                let why = Limited::new(reply.into_body(), LIST_BYTES_MAX).collect().await;
                Err(why.map_or_else(|error| error.to_string(), |why| text(&why.to_bytes())))
            }
        }
    }
}

impl Copies for Members {
    fn news(&self) -> BoxFuture<'_, Result<News, CopyError>> {
        Box::pin(async move {
            self.store.barrier().await.map_err(failed)?;
            let mut told = self.told.lock().await;
            let mut links = Vec::new();
            while let Some(watch) = told.as_mut() {
                match watch.try_next() {
                    Ok(Some(Event::Change(change))) => links.push(changed(&change)),
                    Ok(Some(Event::Progress(_))) => {}
                    Ok(None) => return Ok(News { links, whole: false }),
                    Err(WatchError::Closed) => return Err(failed(WatchError::Closed)),
                    // What was missed is among what there is.
                    Err(WatchError::Lagged) => *told = None,
                }
            }
            let (links, watch) = self.begin()?;
            *told = Some(watch);
            // What a server had before it was a member is not among them until it has told the others.
            let whole = self.store.get(&Key::new(IMPORTED)).is_some();
            Ok(News { links, whole })
        })
    }

    fn agree(&self, content: Vec<Digest>, links: Vec<Link>) -> BoxFuture<'_, Result<(), CopyError>> {
        Box::pin(async move {
            if !content.is_empty() {
                self.spread(&content).await?;
            }
            let mut txn = Txn::new();
            for link in links {
                let key = Key::from(format!("{LINKS}{}", link.path));
                txn = match link.content {
                    Some(content) => txn.put(key, Precondition::Any, Draft::opaque(content.as_bytes())),
                    None => txn.delete(key, Precondition::Any),
                };
            }
            self.store.commit(txn).await.map(drop).map_err(failed)
        })
    }

    fn fetch(&self, digest: Digest) -> BoxFuture<'_, Result<Option<Box<dyn Arriving>>, CopyError>> {
        Box::pin(async move {
            let mut silent = None;
            for member in self.others() {
                let mut request =
                    Request::new(Full::default().map_err(|never| match never {}).boxed_unsync());
                *request.uri_mut() = format!("{PREFIX}/{digest}").parse().map_err(failed)?;
                match self.peers.request(member, request).await {
                    Ok(reply) if reply.status() == StatusCode::OK => {
                        return Ok(Some(Box::new(Piecewise(reply.into_body())) as Box<dyn Arriving>));
                    }
                    Ok(reply) if reply.status() == StatusCode::NOT_FOUND => {}
                    Ok(reply) => silent = Some(reply.status().to_string()),
                    Err(error) => silent = Some(error.to_string()),
                }
            }
            match silent {
                // Who was not reached may have it.
                Some(why) => Err(CopyError(format!("no member that answers has {digest}: {why}"))),
                None => Ok(None),
            }
        })
    }
}

impl Members {
    /// Returns once a majority of the members that vote holds content, which this one does.
    async fn spread(&self, content: &[Digest]) -> Result<(), CopyError> {
        let members = self.store.members().map_err(failed)?;
        let own = self.store.member_id();
        let voters: Vec<_> = members.iter().filter(|member| member.role != Role::Learner).collect();
        let mut missing =
            (voters.len() / 2 + 1).saturating_sub(usize::from(voters.iter().any(|m| Some(m.id) == own)));
        let list: Vec<String> = content.iter().map(ToString::to_string).collect();
        let list = Bytes::from(serde_json::to_vec(&list).map_err(failed)?);
        let asked = voters.iter().filter(|member| Some(member.id) != own);
        let mut asked: FuturesUnordered<_> =
            asked.map(|member| self.lets_hold(member.id, list.clone())).collect();
        let mut whys = Vec::new();
        let majority = async {
            while missing > 0 {
                match asked.next().await {
                    Some(Ok(())) => missing -= 1,
                    Some(Err(why)) => whys.push(why),
                    None => return Err(CopyError(format!("too few members hold it: {}", whys.join("; ")))),
                }
            }
            Ok(())
        };
        let late = |_| CopyError(format!("too few members held it within {} s", HOLD_MAX.as_secs()));
        tokio::time::timeout(HOLD_MAX, majority).await.map_err(late)?
    }
}

/// Content as it arrives from a member.
struct Piecewise(Incoming);

impl Arriving for Piecewise {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, CopyError>> {
        Box::pin(async move {
            while let Some(frame) = self.0.frame().await {
                if let Ok(data) = frame.map_err(failed)?.into_data() {
                    return Ok(Some(data));
                }
            }
            Ok(None)
        })
    }
}

/// Answers other members: gives them content, and fetches what they ask this one to hold.
///
/// It does not keep the artifacts open, which know the members, who know this.
pub(crate) struct Holder(pub(crate) Weak<Artifacts>);

impl Handler for Holder {
    fn handle(&self, _: u64, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move {
            let Some(artifacts) = self.0.upgrade() else {
                return reply(StatusCode::SERVICE_UNAVAILABLE, "this member has ended");
            };
            if *request.method() == Method::POST {
                return match hold(&artifacts, request).await {
                    Ok(()) => reply(StatusCode::OK, ""),
                    Err(why) => reply(StatusCode::SERVICE_UNAVAILABLE, &why),
                };
            }
            let digest = request.uri().path().rsplit('/').next().unwrap_or_default().parse::<Digest>();
            let Ok(digest) = digest else { return reply(StatusCode::BAD_REQUEST, "that is no digest") };
            match artifacts.open_own(&digest).await {
                Ok((file, _)) => Response::new(StreamBody::new(pieces(file)).boxed_unsync()),
                Err(lichen_artifacts::BlobError::Unknown(_)) => {
                    reply(StatusCode::NOT_FOUND, "it is not here")
                }
                Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            }
        })
    }
}

async fn hold(artifacts: &Artifacts, request: Request<Incoming>) -> Result<(), String> {
    let list = Limited::new(request.into_body(), LIST_BYTES_MAX).collect().await;
    let list = list.map_err(|error| error.to_string())?.to_bytes();
    for digest in digests(&list)? {
        artifacts.hold(&digest).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Reads a list of what another member wants held, which may be anything.
fn digests(list: &[u8]) -> Result<Vec<Digest>, String> {
    let list: Vec<&str> = serde_json::from_slice(list).map_err(|error| error.to_string())?;
    list.into_iter().map(|digest| digest.parse().map_err(|error: DigestError| error.to_string())).collect()
}

/// A file piece by piece, read where blocking is allowed.
fn pieces(
    file: std::fs::File,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, lichen_peers::BodyError>> + Send {
    futures_util::stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::with_capacity(CHUNK_BYTES);
            let read = file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut piece);
            (read.map(|_| piece), file)
        });
        match read.await {
            Ok((Ok(piece), _)) if piece.is_empty() => None,
            Ok((Ok(piece), file)) => Some((Ok(Frame::data(Bytes::from(piece))), Some(file))),
            Ok((Err(error), _)) => Some((Err(error.into()), None)),
            Err(error) => Some((Err(error.into()), None)),
        }
    })
}

/// Keeps a copy of everything here that links lead to, until the store closes. Whoever was away when something was pushed
/// has it soon after, and a member that is removed takes nothing away.
pub(crate) async fn keep(artifacts: Arc<Artifacts>, store: Store) {
    while let Err(why) = import(&artifacts, &store).await {
        tracing::debug!(why, "the members do not know of this one's artifacts yet");
        tokio::time::sleep(RETRY).await;
    }
    loop {
        let Ok(mut watch) = store.watch(LINKS, store.revision()) else { continue };
        loop {
            let held = match artifacts.catch_up().await {
                Ok(()) => artifacts.hold_all().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let wait = match held {
                Ok(()) => Duration::MAX,
                Err(why) => {
                    tracing::debug!(why, "some artifacts are not here yet");
                    RETRY
                }
            };
            tokio::select! {
                next = watch.next() => match next {
                    Ok(_) => {}
                    Err(WatchError::Lagged) => break,
                    Err(WatchError::Closed) => return,
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// Lets the others know of what a server had before it was a member, once. Whoever was alone leads when it starts as a
/// member; who joins brings nothing.
async fn import(artifacts: &Artifacts, store: &Store) -> Result<(), String> {
    let done = Key::new(IMPORTED);
    store.barrier().await.map_err(|error| error.to_string())?;
    if store.get(&done).is_some() || !store.leadership().borrow().leader {
        return Ok(());
    }
    for link in artifacts.links().await.map_err(|error| error.to_string())? {
        let key = Key::from(format!("{LINKS}{}", link.path));
        if let Some(content) = link.content.filter(|_| store.get(&key).is_none()) {
            let txn = Txn::new().put(key, Precondition::Any, Draft::opaque(content.as_bytes()));
            store.commit(txn).await.map_err(|error| error.to_string())?;
        }
    }
    let txn = Txn::new().put(done, Precondition::Any, Draft::opaque(b""));
    store.commit(txn).await.map(drop).map_err(|error| error.to_string())
}

fn changed(change: &Change) -> Link {
    link(&change.key, change.new.as_ref().map(|record| record.body()))
}

fn link(key: &Key, content: Option<&[u8]>) -> Link {
    let path = key.as_str().strip_prefix(LINKS).unwrap_or_default().to_owned();
    Link { path, content: content.map(text) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn failed(error: impl ToString) -> CopyError {
    CopyError(error.to_string())
}

fn reply(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests;
