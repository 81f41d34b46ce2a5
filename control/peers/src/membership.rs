//! Changes of the members: the leader makes them, and any member passes them on to it.

use std::collections::BTreeMap;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::http::Method;
use hyper::{Request, Response, StatusCode, Uri};
use lichen_store::{CommitError, Role, Store};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::client::{self, Lane};
use crate::record::{self, MemberRecord};
use crate::server::text;
use crate::{Body, Peers, PeersError, RequestError, calls, steward};

/// Where the members are asked about each other.
pub(crate) const PATH: &str = "/members";
/// Bytes of a question and of an answer.
const BYTES_MAX: usize = 1024 * 1024;
/// How long a change may look for a leader. Longer than two elections.
const LEADER_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a leader may take for a change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a change waits before it looks again who leads.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long another member may take to become the leader.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a member that was removed may take to hear it.
const TELL_TIMEOUT: Duration = Duration::from_secs(2);
/// A voter that did not answer the leader for this long does not count when the members are changed.
const SILENT_MAX: Duration = Duration::from_secs(3);

/// A member as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its id, as sixteen hexadecimal digits.
    pub id: String,
    /// What it is to the cluster.
    pub role: String,
    /// Whether the leader hears from it.
    pub status: Status,
    /// Where other members reach it.
    pub peer_address: String,
    /// What else is known of it.
    #[serde(flatten)]
    pub record: MemberRecord,
}

/// Whether the leader hears from a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It answered lately.
    Ready,
    /// It did not.
    NotReady,
}

/// What the leader is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Ask {
    /// Nothing, but to be told if one was removed.
    Hello,
    /// To say hello, because one was removed.
    Gone,
    List,
    Join {
        id: u64,
        address: String,
    },
    Move {
        id: u64,
        address: String,
    },
    Promote {
        id: u64,
    },
    Remove {
        id: u64,
    },
    Transfer {
        id: u64,
    },
}

impl Peers {
    /// The members, as the leader sees them.
    ///
    /// # Errors
    /// When no leader can be asked.
    pub async fn list(&self) -> Result<Vec<Member>, PeersError> {
        self.lead(Ask::List).await
    }

    /// Asks a cluster to take this member in, whose address is `address`. `known` are members of it and where they are;
    /// one that answers is enough. To ask again does no harm.
    ///
    /// # Errors
    /// When none of them can be asked, or the leader refuses.
    pub async fn join(&self, known: &[(u64, String)], address: &str) -> Result<(), PeersError> {
        let id = self.own()?.id;
        let ask = Ask::Join { id, address: address.to_owned() };
        let until = Instant::now() + LEADER_TIMEOUT;
        let mut last = PeersError::from(RequestError::NoLeader);
        loop {
            for (member, at) in known {
                match self.ask(*member, Some(at), &ask).await {
                    Err(error) if retryable(&error) => last = error,
                    outcome => return outcome,
                }
            }
            if Instant::now() >= until {
                return Err(last);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Tells the cluster that this member is reached at another address now, if it is.
    ///
    /// # Errors
    /// When no leader can be asked, or it refuses.
    pub async fn move_to(&self, address: &str) -> Result<(), PeersError> {
        let own = self.own()?;
        let known = own.store.members()?.into_iter().find(|member| member.id == own.id);
        match known.is_none_or(|known| known.address == address) {
            true => Ok(()),
            false => self.lead(Ask::Move { id: own.id, address: address.to_owned() }).await,
        }
    }

    /// Lets a member vote, once it has what the leader has.
    ///
    /// # Errors
    /// When no leader can be asked, or it refuses.
    pub async fn promote(&self, id: u64) -> Result<(), PeersError> {
        self.lead(Ask::Promote { id }).await
    }

    /// Removes a member for good.
    ///
    /// # Errors
    /// When no leader can be asked, or it refuses.
    pub async fn remove(&self, id: u64) -> Result<(), PeersError> {
        self.lead(Ask::Remove { id }).await
    }

    /// Lets another member lead, and waits until it does.
    ///
    /// # Errors
    /// When no leader can be asked, it refuses, or the other one does not take over.
    pub async fn transfer_leader(&self, id: u64) -> Result<(), PeersError> {
        self.lead(Ask::Transfer { id }).await
    }

    /// Tells the cluster what is to be known of this member, if that is not known yet.
    ///
    /// # Errors
    /// Those of writing its record.
    pub async fn announce(&self, record: &MemberRecord) -> Result<(), PeersError> {
        let own = self.own()?;
        Ok(record::change(&own.store, own.id, |kept| *kept = record.clone()).await?)
    }

    /// Lets another member tell this one whether it was removed.
    pub(crate) async fn greet(&self, member: u64) {
        // Whatever else is answered, the connection has learned of a removal.
        let _: Result<(), _> = self.ask(member, None, &Ask::Hello).await;
    }

    /// Asks the leader, whoever that is, and finds out who if it changes.
    async fn lead<T: DeserializeOwned + Serialize>(&self, ask: Ask) -> Result<T, PeersError> {
        let own = self.own()?;
        let until = Instant::now() + LEADER_TIMEOUT;
        loop {
            let outcome = match self.leader() {
                Some(leader) if leader == own.id => self.obey(&ask).await,
                Some(leader) => self.ask(leader, None, &ask).await,
                None => Err(RequestError::NoLeader.into()),
            };
            match outcome {
                Err(error) if retryable(&error) && Instant::now() < until => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        member: u64,
        address: Option<&str>,
        ask: &Ask,
    ) -> Result<T, PeersError> {
        let broken = |why: String| RequestError::Broken { member, why };
        let mut request = Request::new(calls::whole(serde_json::to_vec(ask).unwrap_or_default()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(PATH);
        let asked = async {
            let reply = client::send(&self.inner, member, Lane::Requests, address, request).await?;
            let status = reply.status();
            let body = Limited::new(reply.into_body(), BYTES_MAX).collect().await;
            let body = body.map_err(|error| broken(error.to_string()))?.to_bytes();
            if status != StatusCode::OK {
                let why = String::from_utf8_lossy(&body).into_owned();
                return Err(RequestError::Refused { member, why });
            }
            Ok(body)
        };
        let asked = tokio::time::timeout(CHANGE_TIMEOUT, asked).await;
        let body = asked.unwrap_or_else(|_| Err(broken("it takes too long".into())))?;
        let reply: Result<T, CommitError> = read(&body).map_err(|error| broken(error.to_string()))?;
        Ok(reply?)
    }

    /// Does what is asked, if this member leads.
    async fn obey<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, PeersError> {
        let value = self.decide(ask).await?;
        // What was made of it is what it was asked as.
        Ok(serde_json::from_value(value).map_err(|error| CommitError::Closed(error.to_string()))?)
    }

    async fn decide(&self, ask: &Ask) -> Result<serde_json::Value, CommitError> {
        let own = self.own().map_err(|error| CommitError::Unavailable(error.to_string()))?;
        let store = &own.store;
        if !store.leadership().borrow().leader {
            return Err(CommitError::NotLeader { leader: self.leader() });
        }
        store.barrier().await?;
        match ask {
            Ask::List => return Ok(serde_json::to_value(members(store)?).unwrap_or_default()),
            Ask::Join { id, address } => join(store, *id, address).await?,
            Ask::Move { id, address } => store.set_address(*id, address).await?,
            Ask::Promote { id } => store.promote(*id).await?,
            Ask::Remove { id } => {
                let address = remove(store, own.id, *id).await?;
                steward::note_removed(self, store);
                // It finds out by itself if it can't be told.
                let told = self.ask::<()>(*id, Some(&address), &Ask::Gone);
                let _ = tokio::time::timeout(TELL_TIMEOUT, told).await;
            }
            Ask::Transfer { id } => transfer(store, *id).await?,
            Ask::Hello | Ask::Gone => {}
        }
        Ok(serde_json::Value::Null)
    }
}

/// Whether another try may find another leader. What was refused or may have happened is not tried again.
fn retryable(error: &PeersError) -> bool {
    match error {
        PeersError::Request(error) => !matches!(error, RequestError::Refused { .. }),
        PeersError::Commit(error) => {
            matches!(error, CommitError::NotLeader { .. } | CommitError::Unavailable(_))
        }
    }
}

/// Answers another member.
pub(crate) async fn answer(peers: &Peers, member: u64, request: Request<Incoming>) -> Response<Body> {
    let Ok(body) = Limited::new(request.into_body(), BYTES_MAX).collect().await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "the question is too long");
    };
    let ask: Ask = match read(&body.to_bytes()) {
        Ok(ask) => ask,
        Err(error) => {
            return text(StatusCode::BAD_REQUEST, &format!("a question that can't be read: {error}"));
        }
    };
    let members = peers.own().ok().and_then(|own| own.store.members().ok()).unwrap_or_default();
    let known = members.iter().find(|known| known.id == member);
    if let (Some(known), Ask::Move { id, address }) = (known, &ask)
        && *id == member
    {
        peers.inner.note_moved(member, &known.address, address);
    }
    let belongs = known.is_some();
    let reply = match ask {
        Ask::Hello => Ok(serde_json::Value::Null),
        Ask::Gone => {
            peers.greet(member).await;
            Ok(serde_json::Value::Null)
        }
        // Who joins may ask anybody, who asks the leader.
        Ask::Join { id, .. } if !belongs && id == member => match peers.lead(ask).await {
            Err(PeersError::Request(error)) => Err(CommitError::Unavailable(error.to_string())),
            Err(PeersError::Commit(error)) => Err(error),
            Ok(done) => Ok(done),
        },
        Ask::Move { id, .. } if id != member => {
            refused(format!("member {member:016x} speaks for member {id:016x}"))
        }
        _ if !belongs => refused(format!("member {member:016x} does not belong to the cluster")),
        ask => peers.decide(&ask).await,
    };
    Response::new(calls::whole(serde_json::to_vec(&reply).unwrap_or_default()))
}

/// Reads a question or an answer, which may be anything.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(bytes)
}

/// The members as this one, which leads, sees them.
fn members(store: &Store) -> Result<Vec<Member>, CommitError> {
    let silent = store.silent_for();
    let records: BTreeMap<_, _> = MemberRecord::all(store).into_iter().collect();
    let shown = store.members()?.into_iter().map(|member| Member {
        id: format!("{:016x}", member.id),
        role: match member.role {
            Role::Leader => "leader",
            Role::Voter => "voter",
            Role::Learner => "learner",
        }
        .to_owned(),
        status: match member.role == Role::Leader || answers(&silent, member.id) {
            true => Status::Ready,
            false => Status::NotReady,
        },
        peer_address: member.address,
        record: records.get(&member.id).cloned().unwrap_or_default(),
    });
    Ok(shown.collect())
}

fn answers(silent: &BTreeMap<u64, Duration>, id: u64) -> bool {
    silent.get(&id).is_some_and(|silent| *silent < SILENT_MAX)
}

/// For how long members have been silent. A leader that has just taken over gives those a moment that it has not heard yet.
async fn silent_for(store: &Store, of: impl Iterator<Item = &u64> + Clone) -> BTreeMap<u64, Duration> {
    let until = Instant::now() + SILENT_MAX;
    loop {
        let silent = store.silent_for();
        if of.clone().all(|id| silent.contains_key(id)) || Instant::now() >= until {
            return silent;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn refused<T>(why: String) -> Result<T, CommitError> {
    Err(CommitError::Membership(why))
}

/// Takes a member in, unless it is there already.
async fn join(store: &Store, id: u64, address: &str) -> Result<(), CommitError> {
    if record::every(store).iter().any(|(known, record, _)| *known == id && record.removed) {
        return refused(crate::server::gone(id));
    }
    let members = store.members()?;
    if members.iter().any(|member| member.id == id && member.address == address) {
        return Ok(());
    }
    if let Some(member) = members.iter().find(|member| member.id != id && member.address == address) {
        return refused(format!(
            "member {:016x} is at {address} already. If its data is gone, remove it first: lichen member remove {0:016x}",
            member.id
        ));
    }
    store.add_learner(id, address).await
}

/// Removes a member, and tells where it was. The leader hands over first if it is the one.
async fn remove(store: &Store, own: u64, id: u64) -> Result<String, CommitError> {
    let members = store.members()?;
    let Some(member) = members.iter().find(|member| member.id == id) else {
        return refused(format!("there is no member {id:016x}"));
    };
    if member.role != Role::Learner {
        let rest: Vec<u64> = members
            .iter()
            .filter(|member| member.role != Role::Learner && member.id != id)
            .map(|member| member.id)
            .collect();
        let silent = silent_for(store, rest.iter().filter(|id| **id != own)).await;
        if rest.is_empty() {
            return refused(format!(
                "member {id:016x} is the last voter and can't be removed: add another one first"
            ));
        }
        let alive = rest.iter().filter(|id| **id == own || answers(&silent, **id)).count();
        if alive <= rest.len() / 2 {
            return refused(format!(
                "without member {id:016x} only {alive} of the {} voters left would answer, which is no majority: start \
                 those that are down, or remove them first",
                rest.len()
            ));
        }
    }
    if id == own {
        let Some(successor) = store.successor() else {
            return refused(format!("no other voter can lead in place of member {id:016x}"));
        };
        transfer(store, successor).await?;
        // The next leader is asked again.
        return Err(CommitError::NotLeader { leader: Some(successor) });
    }
    store.remove_member(id).await?;
    if let Err(error) = record::change(store, id, |record| record.removed = true).await {
        tracing::warn!(member = format!("{id:016x}"), %error, "a later leader notes that the member was removed");
    }
    Ok(member.address.clone())
}

/// Lets another member lead, and waits until it does.
async fn transfer(store: &Store, id: u64) -> Result<(), CommitError> {
    let leads = |members: &[lichen_store::MemberStatus]| {
        members.iter().any(|member| member.id == id && member.role == Role::Leader)
    };
    let mut members = store.members()?;
    if leads(&members) {
        return Ok(());
    }
    if members.iter().any(|member| member.id == id && member.role != Role::Learner)
        && !answers(&silent_for(store, [id].iter()).await, id)
    {
        return refused(format!("member {id:016x} does not answer: it can't lead"));
    }
    store.transfer_leader(id).await?;
    let led = async {
        while !leads(&members) {
            store.members_changed(&members).await;
            members = store.members().unwrap_or_default();
        }
    };
    let late = || CommitError::Unavailable(format!("member {id:016x} did not take over in time"));
    tokio::time::timeout(TRANSFER_TIMEOUT, led).await.map_err(|_| late())
}

#[cfg(test)]
mod fuzz;
