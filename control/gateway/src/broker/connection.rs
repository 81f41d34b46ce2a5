//! One client's connection, from TLS to its end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lichen_mqtt::packet::{
    ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, Publish, QoS, SubAck, Subscribe,
    SubscribeReasonCode, UnsubAck,
};
use lichen_mqtt::{Closed, Message, Outbox, Outgoing, PacketReader, PacketWriter, StreamError};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::admission::{Principal, Shown};
use super::hub::{Hub, send};
use super::trie::{SubscriberId, valid_filter, valid_topic};

/// Why a connection ended. None of these is the broker's fault, so they are logged quietly.
#[derive(Debug, Error)]
pub(super) enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("it took too long over TLS or CONNECT")]
    ConnectTimeout,
    #[error("nothing was heard for one and a half times its keepalive")]
    Silent,
    #[error("it may not publish to {0:?}")]
    NotAllowed(String),
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("{0}")]
    Cut(#[from] Closed),
}

/// How long a client that asks for no keepalive may stay silent.
const SILENCE_MAX: Duration = Duration::from_secs(900);

/// Serves one connection to its end.
pub(super) async fn serve(
    hub: Arc<Hub>,
    acceptor: TlsAcceptor,
    socket: TcpStream,
) -> Result<(), ConnectionError> {
    socket.set_nodelay(true)?;
    let limit = hub.limits.connect_timeout;
    let opening = async {
        let stream = acceptor.accept(socket).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let principal = Principal::of(certificates);
        let shown = Shown::of(certificates, principal.as_ref());
        let mut reader = PacketReader::new(stream, hub.limits.packet_bytes_max);
        match reader.next().await? {
            Packet::Connect(connect) => Ok((reader, principal, shown, connect)),
            _ => Err(ConnectionError::Protocol("its first packet is not CONNECT")),
        }
    };
    let (reader, principal, shown, connect) =
        timeout(limit, opening).await.map_err(|_| ConnectionError::ConnectTimeout)??;
    let counts = |hub: &Hub| shown.as_ref().is_none_or(|shown| shown.counts(&hub.admit));
    let (mut principal, code) = match principal {
        Some(principal) if counts(&hub) => (principal, ConnectReturnCode::Success),
        Some(principal) => {
            tracing::info!(?principal, "a node that was removed tries to connect");
            (principal, ConnectReturnCode::NotAuthorized)
        }
        None => (Principal::Joiner(None), ConnectReturnCode::NotAuthorized),
    };
    let code = admit(&connect, &mut principal, code);
    let (mut reader, writing) = reader.split(split);
    let mut writer = PacketWriter::new(writing);
    if code != ConnectReturnCode::Success {
        writer.write(Packet::ConnAck(ConnAck::new(code, false))).await?;
        return Err(ConnectionError::Protocol("its CONNECT was refused"));
    }
    let outbox = Outbox::new(hub.limits.queue_bytes_max);
    let mut client = Client::enter(hub, principal, &connect, Arc::clone(&outbox)).await;
    // One that was removed while it entered was not among those that were cut off then.
    if !counts(&client.hub) {
        outbox.close("its node was removed");
    }
    let ended = tokio::select! {
        ended = client.read(&mut reader, connect.keep_alive) => ended,
        ended = drain(&outbox, &mut writer) => ended,
    };
    client.leave().await;
    ended
}

/// Whether a CONNECT is acceptable.
fn admit(connect: &Connect, principal: &mut Principal, code: ConnectReturnCode) -> ConnectReturnCode {
    let will_allowed = match &connect.last_will {
        Some(will) => valid_topic(&will.topic) && principal.may_publish(&will.topic),
        None => true,
    };
    if code != ConnectReturnCode::Success {
        code
    } else if connect.client_id.is_empty() && !connect.clean_session || connect.client_id.len() > 256 {
        ConnectReturnCode::BadClientId
    } else if !will_allowed {
        ConnectReturnCode::NotAuthorized
    } else {
        ConnectReturnCode::Success
    }
}

struct Client {
    hub: Arc<Hub>,
    id: SubscriberId,
    key: (Principal, String),
    principal: Principal,
    outbox: Arc<Outbox>,
}

impl Client {
    async fn enter(hub: Arc<Hub>, principal: Principal, connect: &Connect, outbox: Arc<Outbox>) -> Self {
        let mut name = connect.client_id.clone();
        if name.is_empty() || matches!(principal, Principal::Joiner(_)) {
            // Nobody vouches for such a name, so it must not take over another's.
            name = format!("\0{:p}", Arc::as_ptr(&outbox));
        }
        let key = (principal.clone(), name);
        let (id, old_will) = hub.connect(key.clone(), Arc::clone(&outbox), connect.last_will.clone());
        hub.publish_will(old_will).await;
        send(&outbox, Outgoing::Packet(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))));
        Self { hub, id, key, principal, outbox }
    }

    async fn leave(self) {
        let will: Option<LastWill> = self.hub.disconnect(&self.key, self.id);
        self.hub.publish_will(will).await;
    }

    async fn read<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut PacketReader<R>,
        keepalive_s: u16,
    ) -> Result<(), ConnectionError> {
        let patience = match keepalive_s {
            0 => SILENCE_MAX,
            seconds => Duration::from_millis(u64::from(seconds) * 1_500),
        };
        loop {
            let packet = timeout(patience, reader.next()).await.map_err(|_| ConnectionError::Silent)??;
            match packet {
                Packet::Publish(publish) => self.publish(publish).await?,
                Packet::Subscribe(subscribe) => self.subscribe(subscribe),
                Packet::Unsubscribe(unsubscribe) => {
                    unsubscribe.topics.iter().for_each(|filter| self.hub.unsubscribe(self.id, filter));
                    self.answer(Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)));
                }
                Packet::PingReq => self.answer(Packet::PingResp),
                // Sent once over a connection that loses nothing, so there is nothing to repeat.
                Packet::PubAck(_) => {}
                Packet::Disconnect => {
                    self.hub.drop_will(&self.key, self.id);
                    return Ok(());
                }
                _ => return Err(ConnectionError::Protocol("a packet that a client does not send here")),
            }
        }
    }

    fn answer(&self, packet: Packet) {
        send(&self.outbox, Outgoing::Packet(packet));
    }

    async fn publish(&mut self, publish: Publish) -> Result<(), ConnectionError> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(ConnectionError::Protocol("QoS 2 is not served"));
        }
        if !valid_topic(&publish.topic) || !self.principal.may_publish(&publish.topic) {
            return Err(ConnectionError::NotAllowed(publish.topic));
        }
        let message = Message { topic: publish.topic.into(), payload: publish.payload };
        self.hub.publish(message, publish.qos).await;
        if publish.qos == QoS::AtLeastOnce {
            self.answer(Packet::PubAck(PubAck::new(publish.pkid)));
        }
        Ok(())
    }

    fn subscribe(&mut self, subscribe: Subscribe) {
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        for filter in &subscribe.filters {
            let qos = if filter.qos == QoS::AtMostOnce { QoS::AtMostOnce } else { QoS::AtLeastOnce };
            let granted = valid_filter(&filter.path)
                && self.principal.may_subscribe(&filter.path)
                && self.hub.subscribe(self.id, &filter.path, qos);
            codes.push(if granted {
                SubscribeReasonCode::Success(qos)
            } else {
                tracing::warn!(client = ?self.key, filter = filter.path, "a subscription was refused");
                SubscribeReasonCode::Failure
            });
        }
        self.answer(Packet::SubAck(SubAck::new(subscribe.pkid, codes)));
    }
}

/// Writes what waits for a client until it is cut off.
async fn drain<W: AsyncWrite + Unpin>(
    outbox: &Outbox,
    writer: &mut PacketWriter<W>,
) -> Result<(), ConnectionError> {
    loop {
        writer.write_all(outbox.take().await?).await?;
    }
}

#[cfg(test)]
mod fuzz;
