//! A hundred nodes lose their broker for ten minutes, at the grace that ships.

use std::time::Duration;

use lichen_simulation::{Assets, Cut, broker_loss};

const NODES: u64 = 100;
/// Fifteen times the 40 s after which a node that could be heard is called silent.
const AWAY: Duration = Duration::from_secs(600);

#[test]
fn a_hundred_nodes_outlast_ten_minutes_without_their_broker() {
    let assets = Assets::new().expect("a temporary directory");
    let (report, lost) = broker_loss(1, NODES, Cut::All, AWAY, &assets);
    assert_eq!(report.violation, None, "all is as wanted again, on every node, and then nothing is written");
    let lost = lost.expect("it was played to its end");
    assert_eq!(lost.running as u64, 2 * NODES, "all pods ran");
    assert_eq!(lost.started, 0, "no container is started again, no pod is replaced");
    assert!(lost.written_away.is_empty(), "nothing is written meanwhile: {:?}", lost.written_away);
    assert!(lost.written_back.is_empty(), "nothing is written afterwards: {:?}", lost.written_back);
    assert_eq!(lost.sessions as u64, NODES, "each node has one new session");
}

/// The gateway could have heard them, so they are called silent. Since all of them are, it is the network's fault rather
/// than theirs, and nothing is taken from them.
#[test]
fn nodes_that_all_fall_silent_are_called_so_and_keep_their_pods() {
    const NODES: u64 = 20;
    let assets = Assets::new().expect("a temporary directory");
    let (report, lost) = broker_loss(1, NODES, Cut::Nodes, AWAY, &assets);
    assert_eq!(report.violation, None, "all is as wanted again, on every node, and then nothing is written");
    let lost = lost.expect("it was played to its end");
    assert_eq!(lost.started, 0, "no container is started again, no pod is replaced");
    assert_eq!(lost.sessions as u64, NODES, "each node has one new session");
    let nodes =
        |written: &[String]| written.iter().filter(|key| key.starts_with("/core/nodes/")).count() as u64;
    for written in [&lost.written_away, &lost.written_back] {
        // A verdict and taints, of which those that evict are taken back when it turns out that all nodes are lost.
        let nodes = nodes(written);
        assert!((NODES..=4 * NODES).contains(&nodes), "{nodes} writes of nodes");
        // Two pods and the Service's slices and Endpoints, which may tell of each pod by itself, and as many events.
        assert!(written.len() as u64 <= 14 * NODES, "what is written is bounded: {}", written.len());
    }
}
