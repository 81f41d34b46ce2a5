//! The sessions' conformance suite, carried by this broker: the node over TLS and MQTT, the gateway in-process.

use std::sync::mpsc as blocking;
use std::time::Instant;

use lichen_wire::session::Growable;
use lichen_wire::testing::{Arrival, Carrier, Script, Side, Suite};
use tokio::runtime::Runtime;

use super::*;

const UP: &str = "lichen/v1/n/edge-1/up";
const DOWN: &str = "lichen/v1/n/edge-1/down";

struct MqttCarrier {
    began: Instant,
    arrivals: blocking::Receiver<Arrival>,
    arrive: blocking::Sender<Arrival>,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    cut: mpsc::UnboundedSender<()>,
    publisher: Publisher,
}

impl MqttCarrier {
    fn new(runtime: &Runtime, world: &Arc<World>) -> Self {
        let (arrive, arrivals) = blocking::channel();
        let (outgoing, out) = mpsc::unbounded_channel();
        let (cut, cuts) = mpsc::unbounded_channel();
        let publisher = world.broker.port().publisher();
        let (mut port, to) = (port(world, UP), arrive.clone());
        runtime.spawn(async move {
            while let Some(message) = port.recv().await {
                let _ = to.send(Arrival::Frame(Side::Gateway, message.payload.to_vec()));
            }
        });
        runtime.spawn(node(Arc::clone(world), out, cuts, arrive.clone()));
        arrive.send(Arrival::Up(Side::Gateway)).unwrap();
        Self { began: Instant::now(), arrivals, arrive, outgoing, cut, publisher }
    }
}

/// The node's connection, made again whenever it is cut.
async fn node(
    world: Arc<World>,
    mut outgoing: mpsc::UnboundedReceiver<Vec<u8>>,
    mut cuts: mpsc::UnboundedReceiver<()>,
    arrive: blocking::Sender<Arrival>,
) {
    loop {
        let mut client = world.connected("edge-1").await;
        assert!(matches!(client.subscribe(DOWN).await, SubscribeReasonCode::Success(_)));
        if arrive.send(Arrival::Up(Side::Agent)).is_err() {
            return;
        }
        loop {
            tokio::select! {
                packet = client.next() => match packet {
                    Some(Packet::Publish(publish)) => {
                        let _ = arrive.send(Arrival::Frame(Side::Agent, publish.payload.to_vec()));
                    }
                    other => panic!("{other:?}"),
                },
                frame = outgoing.recv() => match frame {
                    Some(frame) => client.publish(UP, QoS::AtMostOnce, &frame).await,
                    None => return,
                },
                Some(()) = cuts.recv() => break,
            }
        }
        drop(client);
        let _ = arrive.send(Arrival::Down(Side::Agent));
    }
}

impl Carrier for MqttCarrier {
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn send(&mut self, from: Side, frame: &[u8]) {
        match from {
            Side::Agent => self.outgoing.send(frame.to_vec()).unwrap(),
            Side::Gateway => self.publisher.publish(DOWN, Bytes::copy_from_slice(frame)).unwrap(),
        }
    }

    fn next(&mut self, until_ms: u64) -> Option<Arrival> {
        let wait_ms = until_ms.saturating_sub(self.now_ms());
        self.arrivals.recv_timeout(Duration::from_millis(wait_ms)).ok()
    }

    fn cut(&mut self, side: Side) {
        match side {
            Side::Agent => self.cut.send(()).unwrap(),
            Side::Gateway => {
                self.arrive.send(Arrival::Down(side)).unwrap();
                self.arrive.send(Arrival::Up(side)).unwrap();
            }
        }
    }

    fn heal(&mut self) {}
}

#[test]
fn sessions_over_this_broker_keep_their_promises() {
    let runtime = Runtime::new().unwrap();
    let world = Arc::new(runtime.block_on(World::new(Limits::default())));
    let mut carrier = MqttCarrier::new(&runtime, &world);
    let script = Script { steps: 200, step_max_ms: 20, ..Script::USUAL };
    let outcome = Suite::<_, Growable>::new(&mut carrier, 5, script).run();
    assert!(outcome.sessions > 1 && outcome.reports > 0 && outcome.streams > 0, "{outcome:?}");
}
