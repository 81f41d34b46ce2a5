//! The broker that is an enemy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lichen_mqtt::packet::{ConnAck, ConnectReturnCode, Packet, QoS, SubAck, SubscribeReasonCode};
use lichen_mqtt::{Access, Message, Outbox, Outgoing, PacketReader, PacketWriter};
use lichen_pki::{Authority, ClientTrust, server_config};
use tokio::io::split;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::NODES;

/// What is kept back at most, to be delivered in another order.
const HELD_MAX: usize = 16;

/// The broker.
pub(crate) struct Enemy {
    pub(crate) access: Access,
    pub(crate) state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(crate) struct State {
    clients: Vec<(Arc<Outbox>, Vec<String>)>,
    /// All that was ever published.
    pub(crate) log: Vec<Message>,
    held: Vec<Message>,
    hostile: bool,
    /// Deeds done, by kind.
    pub(crate) deeds: BTreeMap<&'static str, usize>,
    seed: u64,
}

impl State {
    pub(crate) fn random(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % below.max(1)
    }

    pub(crate) fn done(&mut self, deed: &'static str) {
        *self.deeds.entry(deed).or_default() += 1;
    }

    pub(crate) fn deliver(&self, message: &Message) {
        for (outbox, filters) in &self.clients {
            if filters.iter().any(|filter| matches(filter, &message.topic)) {
                let _ = outbox.push(Outgoing::Publish(message.clone(), QoS::AtMostOnce));
            }
        }
    }

    pub(crate) fn published(&mut self, message: Message) {
        self.log.push(message.clone());
        if !self.hostile {
            return self.deliver(&message);
        }
        match self.random(10) {
            0 | 1 => self.done("drop"),
            2 => {
                self.done("repeat");
                self.deliver(&message);
                self.deliver(&message);
            }
            3 if self.held.len() < HELD_MAX => {
                self.done("delay");
                self.held.push(message);
            }
            _ => self.deliver(&message),
        }
        if !self.held.is_empty() && self.random(3) == 0 {
            let at = self.random(self.held.len());
            let late = self.held.swap_remove(at);
            self.deliver(&late);
        }
        self.mischief();
    }

    /// One deed that no broker should do, with something that it has seen.
    pub(crate) fn mischief(&mut self) {
        let at = self.random(self.log.len());
        let Message { topic, payload } = self.log[at].clone();
        let mut bytes = payload.to_vec();
        let (deed, topic): (_, Arc<str>) = match self.random(8) {
            0 | 1 => ("replay", topic),
            2 => {
                let bit = self.random(bytes.len() * 8);
                if let Some(byte) = bytes.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
                ("forge", topic)
            }
            3 => {
                bytes.truncate(self.random(bytes.len()));
                ("cut short", topic)
            }
            4 => {
                bytes = (0..self.random(300)).map(|_| self.random(256) as u8).collect();
                ("make up", topic)
            }
            5 | 6 => {
                let node = NODES[self.random(NODES.len())];
                let channel = ["up", "down"][self.random(2)];
                ("deliver to another", format!("lichen/v1/n/{node}/{channel}").into())
            }
            _ => {
                let node = NODES[self.random(NODES.len())];
                bytes = [&b"down"[..], b"up", b"neither"][self.random(3)].to_vec();
                ("lie about presence", format!("lichen/v1/n/{node}/presence").into())
            }
        };
        self.done(deed);
        self.deliver(&Message { topic, payload: bytes.into() });
    }
}

fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

impl Enemy {
    /// A broker whose certificate is of an authority of its own.
    pub(crate) async fn start(seed: u64) -> Enemy {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path()).unwrap();
        let certificate = authority.issue_server(&["127.0.0.1".into()]).unwrap();
        let tls = Arc::new(server_config(&certificate, authority.ca_pem(), &[]).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let access = Access {
            ca_pem: Some(authority.ca_pem().to_owned()),
            ..Access::new(listener.local_addr().unwrap().to_string())
        };
        let state = Arc::new(Mutex::new(State { seed, ..State::default() }));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(TlsAcceptor::from(tls.clone()), socket, shared.clone()));
            }
        });
        Enemy { access, state }
    }

    pub(crate) fn tls(&self) -> Arc<rustls::ClientConfig> {
        // Nobody is believed here but the broker's own authority, so the cluster's does not matter.
        self.access.tls(&ClientTrust::Pinned([0; 32]), None).unwrap()
    }

    pub(crate) fn set_hostile(&self, hostile: bool) {
        let mut state = self.state.lock().unwrap();
        state.hostile = hostile;
        if !hostile {
            let held = std::mem::take(&mut state.held);
            held.iter().for_each(|message| state.deliver(message));
        }
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        for (outbox, _) in self.state.lock().unwrap().clients.drain(..) {
            outbox.close("cut");
        }
    }

    /// Says everything again that was ever said.
    pub(crate) fn replay_all(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.log.iter().for_each(|message| state.deliver(message));
        state.log.len()
    }
}

async fn serve(acceptor: TlsAcceptor, socket: TcpStream, state: Arc<Mutex<State>>) {
    socket.set_nodelay(true).unwrap();
    let Ok(stream) = acceptor.accept(socket).await else { return };
    let (reading, writing) = split(stream);
    let (mut reader, mut writer) = (PacketReader::new(reading, 1 << 20), PacketWriter::new(writing));
    let outbox = Outbox::new(16 << 20);
    let Ok(Packet::Connect(connect)) = reader.next().await else { return };
    let ack = ConnAck::new(ConnectReturnCode::Success, false);
    outbox.push(Outgoing::Packet(Packet::ConnAck(ack))).unwrap();
    state.lock().unwrap().clients.push((outbox.clone(), Vec::new()));
    let read = async {
        while let Ok(packet) = reader.next().await {
            let answer = match packet {
                Packet::Subscribe(subscribe) => {
                    let mut state = state.lock().unwrap();
                    if let Some((_, filters)) =
                        state.clients.iter_mut().find(|(o, _)| Arc::ptr_eq(o, &outbox))
                    {
                        filters.extend(subscribe.filters.iter().map(|filter| filter.path.clone()));
                    }
                    let granted = SubscribeReasonCode::Success(QoS::AtMostOnce);
                    Packet::SubAck(SubAck::new(subscribe.pkid, vec![granted; subscribe.filters.len()]))
                }
                Packet::Publish(publish) => {
                    let message = Message { topic: publish.topic.into(), payload: publish.payload };
                    state.lock().unwrap().published(message);
                    continue;
                }
                Packet::PingReq => Packet::PingResp,
                _ => break,
            };
            let _ = outbox.push(Outgoing::Packet(answer));
        }
    };
    let write = async {
        while let Ok(waiting) = outbox.take().await {
            if writer.write_all(waiting).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
    let mut state = state.lock().unwrap();
    state.clients.retain(|(other, _)| !Arc::ptr_eq(other, &outbox));
    if let Some(will) = connect.last_will {
        let payload = Bytes::from(will.message.to_vec());
        state.published(Message { topic: will.topic.into(), payload });
    }
}
