//! The other members: how raft, and a member that does not lead, reach them.

use std::future::Future;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::CommitError;
use crate::messages::{Envelope, Request, decode_reply};
use crate::runner::Runner;
use crate::snapshot::{Snapshot, SnapshotData};
use crate::types::{SnapshotMeta, Types, Vote};

/// Bytes of a snapshot that are sent at once.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that are read ahead of the network, or received ahead of what reads them.
const PIECES_AHEAD: usize = 4;
/// How long a member may take for a piece of a snapshot, and to install it.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a member may be out of reach in the midst of a snapshot before it is sent from its beginning.
const RESUME_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause before a member is asked again that was not reached.
const RESUME_PAUSE: Duration = Duration::from_millis(200);

/// Carries requests to other members.
///
/// An implementation hands the request, unchanged, to [`Store::serve`](crate::Store::serve) of the member at the address,
/// with the id of who asks, and brings back what that returns. It may lose, delay and repeat; it must not let anybody but
/// a member of the cluster ask or answer, nor one of them ask for another. Who waits no longer drops the future. An error of
/// the kind [`io::ErrorKind::NotConnected`] promises that the member has not heard of the request, and never will.
pub trait Network: Send + Sync + 'static {
    /// Asks a member, and waits for its reply.
    fn call<'a>(&'a self, member: u64, address: &'a str, request: Bytes) -> BoxFuture<'a, io::Result<Bytes>>;
}

/// Reaches the other members.
#[derive(Clone)]
pub(crate) struct Peers {
    own: u64,
    /// `None` for a member that knows no other.
    network: Option<Arc<dyn Network>>,
    runner: Runner,
}

impl Peers {
    pub(crate) fn new(own: u64, network: Option<Arc<dyn Network>>, runner: Runner) -> Self {
        Self { own, network, runner }
    }

    /// A snapshot that begins to arrive.
    pub(crate) fn incoming(&self, transfer: u64) -> Incoming {
        Incoming::new(transfer, &self.runner)
    }

    /// Asks a member. The outer error means that it is not known whether it heard of it.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        to: u64,
        address: &str,
        request: Request,
        timeout: Duration,
    ) -> io::Result<Result<T, CommitError>> {
        let network = self.network.as_ref().ok_or_else(|| io::Error::other("this member knows no other"))?;
        let envelope = Envelope { from: self.own, to, request }.encode()?;
        let reply = tokio::time::timeout(timeout, network.call(to, address, envelope)).await??;
        decode_reply(&reply).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer { peers: self.clone(), id: target, address: node.addr.clone() }
    }
}

/// The way to one member.
pub(crate) struct Peer {
    peers: Peers,
    id: u64,
    address: String,
}

impl Peer {
    async fn ask<T: DeserializeOwned>(
        &self,
        request: Request,
        timeout: Duration,
    ) -> Result<T, Unreachable<Types>> {
        let reply = self.peers.ask(self.id, &self.address, request, timeout).await;
        reply.map_err(|error| Unreachable::new(&error))?.map_err(|error| Unreachable::new(&error))
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        data: SnapshotData,
    ) -> Result<SnapshotResponse<Types>, Unreachable<Types>> {
        let runner = self.peers.runner.clone();
        let (queue, mut pieces) = mpsc::channel(runner.ahead(PIECES_AHEAD));
        let writer = PieceWriter { queue, runner: runner.clone() };
        let reading = runner.lend(async move {
            let mut out = io::BufWriter::with_capacity(PIECE_BYTES, writer);
            data.write_to(&mut out)?;
            out.flush()
        });
        let (transfer, _) = uuid::Uuid::new_v4().as_u64_pair();
        let sending = async {
            let mut number = 0;
            while let Some(bytes) = pieces.recv().await {
                let piece = || Request::Piece { transfer, number, bytes: bytes.clone() };
                let () = self.insist(piece).await?;
                number += 1;
            }
            Ok(number)
        };
        let failed = |error: io::Error| Unreachable::new(&error);
        let reading = async { reading.await.flatten().map_err(failed) };
        let ((), pieces) = tokio::try_join!(reading, sending)?;
        self.insist(|| Request::Install { transfer, pieces, vote, meta: meta.clone() }).await
    }

    /// Asks until the member answers, so that a snapshot goes on where a connection broke; not for ever.
    async fn insist<T: DeserializeOwned>(
        &self,
        request: impl Fn() -> Request,
    ) -> Result<T, Unreachable<Types>> {
        let until = Instant::now() + RESUME_TIMEOUT;
        loop {
            match self.peers.ask(self.id, &self.address, request(), PIECE_TIMEOUT).await {
                Ok(reply) => return reply.map_err(|error| Unreachable::new(&error)),
                Err(_) if Instant::now() < until => tokio::time::sleep(RESUME_PAUSE).await,
                Err(error) => return Err(Unreachable::new(&error)),
            }
        }
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Ok(self.ask(Request::Append(rpc), option.hard_ttl()).await?)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Ok(self.ask(Request::Vote(rpc), option.hard_ttl()).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Ok(self.ask(Request::PreVote(rpc), option.hard_ttl()).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            biased;
            sent = self.send_snapshot(vote, snapshot.meta, snapshot.snapshot) => Ok(sent?),
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        Ok(self.ask(Request::Transfer(rpc), option.hard_ttl()).await?)
    }
}

/// Hands each piece to the network.
struct PieceWriter {
    queue: mpsc::Sender<Bytes>,
    runner: Runner,
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = &bytes[..bytes.len().min(PIECE_BYTES)];
        let handed = self.runner.wait(self.queue.send(Bytes::copy_from_slice(sent)));
        match handed {
            Some(Ok(())) => Ok(sent.len()),
            Some(Err(_)) | None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A snapshot that arrives.
pub(crate) struct Incoming {
    transfer: u64,
    pieces: u64,
    queue: mpsc::Sender<Bytes>,
    reading: BoxFuture<'static, io::Result<io::Result<SnapshotData>>>,
}

impl Incoming {
    fn new(transfer: u64, runner: &Runner) -> Self {
        let (queue, pieces) = mpsc::channel(runner.ahead(PIECES_AHEAD));
        let mut input = PieceReader { pieces, runner: runner.clone(), rest: Bytes::new() };
        let reading = runner.lend(async move { SnapshotData::read_from(&mut input) });
        Self { transfer, pieces: 0, queue, reading }
    }

    pub(crate) fn transfer(&self) -> u64 {
        self.transfer
    }

    /// Takes in the next piece; one that came before is ignored.
    pub(crate) async fn take(&mut self, number: u64, bytes: Bytes) -> Result<(), &'static str> {
        if number > self.pieces {
            return Err("a piece of the snapshot is missing");
        }
        if number == self.pieces {
            self.queue.send(bytes).await.map_err(|_| "the snapshot is damaged")?;
            self.pieces += 1;
        }
        Ok(())
    }

    /// What the pieces make together.
    pub(crate) async fn finish(self, pieces: u64) -> io::Result<SnapshotData> {
        drop(self.queue);
        let data = self.reading.await??;
        if pieces == self.pieces { Ok(data) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

struct PieceReader {
    pieces: mpsc::Receiver<Bytes>,
    runner: Runner,
    rest: Bytes,
}

impl Read for PieceReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            self.rest = self.runner.wait(self.pieces.recv()).flatten().unwrap_or_default();
        }
        let size = self.rest.len().min(out.len());
        self.rest.copy_to_slice(&mut out[..size]);
        Ok(size)
    }
}
