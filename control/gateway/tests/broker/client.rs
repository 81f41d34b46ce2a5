//! A client that does exactly what it is told, unlike a well-behaved one.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use lichen_mqtt::packet::{
    ConnAck, Connect, ConnectReturnCode, Error, LastWill, Packet, Publish, QoS, Subscribe,
    SubscribeReasonCode,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::bed::{Bed, Who};

/// Long enough for a busy machine; nothing waits for it unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Client {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
    who: Who,
    subscriptions: u16,
    /// Messages that came before a subscription was confirmed, which MQTT allows.
    early: VecDeque<Packet>,
}

impl Client {
    /// Connects as far as TLS.
    pub(crate) async fn open(bed: &Bed, who: &Who) -> std::io::Result<Client> {
        let socket = TcpStream::connect(bed.address()).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(bed.tls(who)).connect(name, socket).await?;
        Ok(Client {
            stream,
            buffer: BytesMut::new(),
            who: who.clone(),
            subscriptions: 0,
            early: VecDeque::new(),
        })
    }

    pub(crate) async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX).unwrap();
        // The other side may have closed already, which is for the reader to find.
        let _ = self.stream.write_all(&bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next packet; `None` if the connection was closed.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        match self.early.pop_front() {
            Some(packet) => Some(packet),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.buffer, 1 << 20) {
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("the broker sent {error}"),
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await.expect("in time");
            if read.unwrap_or(0) == 0 {
                return None;
            }
            if self.buffer.is_empty() {
                self.buffer = BytesMut::new();
            }
        }
    }

    /// Sends CONNECT and returns the answer, if there is one.
    pub(crate) async fn connect(&mut self, mut connect: Connect) -> Option<ConnectReturnCode> {
        if let Some(login) = &self.who.login {
            connect.set_login(&login.username, &login.password);
        }
        self.send(Packet::Connect(connect)).await;
        match self.next().await {
            Some(Packet::ConnAck(ConnAck { code, session_present: false })) => Some(code),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn connected(&mut self, id: &str) {
        let mut connect = Connect::new(id);
        connect.keep_alive = 600;
        assert_eq!(self.connect(connect).await, Some(ConnectReturnCode::Success));
    }

    /// Connects with a will of quality 1 on a node's presence.
    pub(crate) async fn connected_with_will(&mut self, id: &str, node: &str, said: &str) {
        let topic = format!("lichen/v1/n/{node}/presence");
        let mut connect = Connect::new(id);
        connect.last_will = Some(LastWill::new(topic, said.as_bytes().to_vec(), QoS::AtLeastOnce, false));
        // A broker may refuse a will that is not the client's to leave.
        let _ = self.connect(connect).await;
    }

    /// Subscribes at quality 1; false if that was refused.
    pub(crate) async fn subscribe(&mut self, filter: &str) -> bool {
        self.subscriptions += 1;
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = self.subscriptions;
        self.send(Packet::Subscribe(subscribe)).await;
        loop {
            match self.read().await {
                Some(Packet::SubAck(ack)) if ack.pkid == self.subscriptions => {
                    return matches!(ack.return_codes[0], SubscribeReasonCode::Success(_));
                }
                Some(packet @ Packet::Publish(_)) => self.early.push_back(packet),
                None => return false,
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.send(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, payload))).await;
    }

    /// The next message; other packets are passed over, and a quality of 1 is acknowledged.
    pub(crate) async fn heard(&mut self) -> (String, Vec<u8>) {
        loop {
            match self.next().await.expect("a message, not the end") {
                Packet::Publish(publish) => {
                    if publish.qos == QoS::AtLeastOnce {
                        self.send(Packet::PubAck(lichen_mqtt::packet::PubAck::new(publish.pkid))).await;
                    }
                    return (publish.topic, publish.payload.to_vec());
                }
                _ => continue,
            }
        }
    }

    /// Ends without a word.
    pub(crate) fn cut(self) {}

    /// Says goodbye, and waits for the broker to close.
    pub(crate) async fn goodbye(mut self) {
        self.send(Packet::Disconnect).await;
        while self.next().await.is_some() {}
    }
}
