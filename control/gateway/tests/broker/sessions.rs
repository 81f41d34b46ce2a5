//! The sessions' own conformance suite, carried by a broker: node and gateway over TLS and MQTT.

use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use lichen_mqtt::packet::Packet;
use lichen_wire::session::Growable;
use lichen_wire::testing::{Arrival, Carrier, Script, Side, Suite};
use tokio::sync::mpsc;

use crate::bed::{Bed, Kind};

const UP: &str = "lichen/v1/n/edge-1/up";
const DOWN: &str = "lichen/v1/n/edge-1/down";

struct Ends {
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    cut: mpsc::UnboundedSender<()>,
}

struct MqttCarrier {
    began: Instant,
    arrivals: blocking::Receiver<Arrival>,
    node: Ends,
    gateway: Ends,
}

impl MqttCarrier {
    fn new(runtime: &tokio::runtime::Runtime, bed: &Arc<Bed>) -> Self {
        let (arrive, arrivals) = blocking::channel();
        let side = |side| {
            let ((outgoing, out), (cut, cuts)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
            runtime.spawn(carry(bed.clone(), side, out, cuts, arrive.clone()));
            Ends { outgoing, cut }
        };
        let (gateway, node) = (side(Side::Gateway), side(Side::Agent));
        // The script's time begins when both can talk, however long a busy machine takes over that.
        for _ in 0..2 {
            assert!(matches!(arrivals.recv().unwrap(), Arrival::Up(_)));
        }
        for side in [Side::Gateway, Side::Agent] {
            arrive.send(Arrival::Up(side)).unwrap();
        }
        Self { began: Instant::now(), arrivals, node, gateway }
    }

    fn ends(&self, side: Side) -> &Ends {
        match side {
            Side::Agent => &self.node,
            Side::Gateway => &self.gateway,
        }
    }
}

/// One side's connection, made again whenever it is cut.
async fn carry(
    bed: Arc<Bed>,
    side: Side,
    mut outgoing: mpsc::UnboundedReceiver<Vec<u8>>,
    mut cuts: mpsc::UnboundedReceiver<()>,
    arrive: blocking::Sender<Arrival>,
) {
    let (hears, says) = match side {
        Side::Agent => (DOWN, UP),
        Side::Gateway => (UP, DOWN),
    };
    loop {
        let mut client = match side {
            Side::Agent => bed.connected("edge-1").await,
            Side::Gateway => bed.listening().await,
        };
        assert!(client.subscribe(hears).await);
        if arrive.send(Arrival::Up(side)).is_err() {
            return;
        }
        loop {
            tokio::select! {
                packet = client.next() => match packet {
                    Some(Packet::Publish(publish)) => {
                        let _ = arrive.send(Arrival::Frame(side, publish.payload.to_vec()));
                    }
                    other => panic!("{other:?}"),
                },
                frame = outgoing.recv() => match frame {
                    Some(frame) => client.publish(says, frame).await,
                    None => return,
                },
                Some(()) = cuts.recv() => break,
            }
        }
        client.cut();
        let _ = arrive.send(Arrival::Down(side));
    }
}

impl Carrier for MqttCarrier {
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn send(&mut self, from: Side, frame: &[u8]) {
        self.ends(from).outgoing.send(frame.to_vec()).unwrap();
    }

    fn next(&mut self, until_ms: u64) -> Option<Arrival> {
        let wait_ms = until_ms.saturating_sub(self.now_ms());
        self.arrivals.recv_timeout(Duration::from_millis(wait_ms)).ok()
    }

    fn cut(&mut self, side: Side) {
        self.ends(side).cut.send(()).unwrap();
    }

    fn heal(&mut self) {}
}

pub(crate) fn run(kind: Kind) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Some(bed) = runtime.block_on(Bed::new(kind)) else { return };
    let mut carrier = MqttCarrier::new(&runtime, &Arc::new(bed));
    // Short, and therefore rougher: trouble has to come.
    let script = Script {
        steps: 200,
        step_max_ms: 20,
        cuts_permille: 30,
        agent_restarts_permille: 15,
        takeovers_permille: 15,
        ..Script::USUAL
    };
    let outcome = Suite::<_, Growable>::new(&mut carrier, 5, script).run();
    assert!(outcome.sessions > 1 && outcome.reports > 0 && outcome.streams > 0, "{outcome:?}");
}
