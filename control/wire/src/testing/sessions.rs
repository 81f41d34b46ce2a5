//! The tests of sessions, for every target: those without a test harness go through [`TESTS`].

use alloc::vec;
use alloc::vec::Vec;

use super::{Faults, MemoryCarrier, Script, Suite};
use crate::FRAME_BYTES_MAX;
use crate::frame::FrameError;
use crate::keys::NodeKey;
use crate::session::{
    AgentConfig, Config, Event, Fixed, GatewayConfig, Growable, Limits, LostReason, ReceiveError, SendError,
    Session, Storage, Timing,
};

macro_rules! table {
    ($($name:ident)*) => {
        /// Every test, by name. One that fails panics.
        pub const TESTS: &[(&str, fn())] = &[$((stringify!($name), $name)),*];
    };
}

table! {
    both_sides_agree_after_everything_went_wrong
    the_same_seed_plays_the_same_run
    an_agent_in_fixed_memory_agrees_too
    replayed_frames_change_nothing_in_either_session
    a_replayed_hello_does_not_end_the_session
    every_flipped_bit_and_every_cut_is_refused
    a_gateway_of_an_older_epoch_is_refused
    what_still_waits_is_replaced_and_what_is_full_says_so
    silence_ends_a_session_and_a_probe_ends_it_sooner
    a_goodbye_ends_both_sides_and_a_settlement_of_an_earlier_session_means_nothing
}

/// Runs with seeds of their own: fewer where an emulator plays them.
const SEEDS: u64 = if cfg!(target_os = "none") { 10 } else { 100 };

const BAD: Faults =
    Faults { loss_percent: 15, repeat_percent: 10, damage_percent: 5, replay_percent: 10, delay_max_ms: 60 };

#[cfg_attr(test, test)]
fn both_sides_agree_after_everything_went_wrong() {
    let (mut resumed, mut streams) = (0, 0);
    for seed in 0..SEEDS {
        let faults = if seed % 3 == 0 { Faults::default() } else { BAD };
        let mut carrier = MemoryCarrier::new(seed, faults);
        let outcome = Suite::<_, Growable>::new(&mut carrier, seed, Script::USUAL).run();
        assert!(outcome.sessions > 0 && outcome.reports > 0, "seed {seed}: {outcome:?}");
        resumed += outcome.resumed;
        streams += outcome.streams;
    }
    assert!(resumed > 0 && streams > 0, "the runs did not do what they are for");
}

#[cfg_attr(test, test)]
fn the_same_seed_plays_the_same_run() {
    let run = || {
        let mut carrier = MemoryCarrier::new(11, BAD);
        (Suite::<_, Growable>::new(&mut carrier, 11, Script::USUAL).run(), carrier.sent())
    };
    assert_eq!(run(), run());
}

#[cfg_attr(test, test)]
fn an_agent_in_fixed_memory_agrees_too() {
    let script = Script { objects: 4, body_bytes_max: 300, limits: Limits::SMALL, ..Script::USUAL };
    for seed in 0..SEEDS.min(30) {
        let mut carrier = MemoryCarrier::new(seed, BAD);
        let outcome = Suite::<_, Fixed<8, 640>>::new(&mut carrier, seed, script).run();
        assert!(outcome.sessions > 0 && outcome.reports > 0, "seed {seed}: {outcome:?}");
    }
}

fn agent(key: u8, epoch_seen: u64) -> Session<Growable> {
    let config = AgentConfig {
        node: "edge-1".try_into().unwrap(),
        key: NodeKey::from_bytes([key; 32]),
        boot_id: [0; 16],
        agent_version: "1.0.0".try_into().unwrap(),
        profile: "".try_into().unwrap(),
        epoch_seen,
        synced: None,
        limits: Limits::SERVER,
        timing: Timing::DEFAULT,
    };
    Session::new(Config::Agent(config), [1; 32])
}

fn gateway(node: &str, key: u8, epoch: u64, seed: u8) -> Session<Growable> {
    let config = GatewayConfig {
        node: node.try_into().unwrap(),
        key: NodeKey::from_bytes([key; 32]),
        epoch,
        incarnation: 1,
        limits: Limits::SERVER,
        timing: Timing::DEFAULT,
    };
    Session::new(Config::Gateway(config), [seed; 32])
}

fn frames<S: Storage>(session: &mut Session<S>, now_ms: u64) -> Vec<Vec<u8>> {
    let mut out = vec![0; FRAME_BYTES_MAX];
    core::iter::from_fn(|| session.transmit(now_ms, &mut out).map(|len| out[..len].to_vec())).collect()
}

/// Gives frames to a session; returns the results, and fails if one that was refused brought an event.
fn give<S: Storage>(
    session: &mut Session<S>,
    now_ms: u64,
    frames: &[Vec<u8>],
) -> Vec<Result<(), ReceiveError>> {
    let mut results = Vec::new();
    for frame in frames {
        let mut events = 0;
        let result = session.receive(now_ms, &mut frame.clone(), &mut |event| {
            events += usize::from(!matches!(event, Event::EpochRefused { .. }));
        });
        assert!(result.is_ok() || events == 0, "a refused frame did something");
        results.push(result);
    }
    results
}

/// Exchanges frames until both are quiet; returns all that were sent, each way.
fn settle(agent: &mut Session<Growable>, gateway: &mut Session<Growable>, now_ms: u64) -> [Vec<Vec<u8>>; 2] {
    let mut sent = [Vec::new(), Vec::new()];
    loop {
        let (up, down) = (frames(agent, now_ms), frames(gateway, now_ms));
        if up.is_empty() && down.is_empty() {
            return sent;
        }
        give(gateway, now_ms, &up);
        give(agent, now_ms, &down);
        sent[0].extend(up);
        sent[1].extend(down);
    }
}

fn connected() -> (Session<Growable>, Session<Growable>, [Vec<Vec<u8>>; 2]) {
    let (mut a, mut g) = (agent(1, 0), gateway("edge-1", 1, 1, 2));
    a.link_up(0);
    g.link_up(0);
    let sent = settle(&mut a, &mut g, 0);
    assert!(a.is_up() && g.is_up());
    (a, g, sent)
}

#[cfg_attr(test, test)]
fn replayed_frames_change_nothing_in_either_session() {
    let (mut a, mut g, mut sent) = connected();
    a.report("Node", "edge-1", "", b"1").unwrap();
    g.snapshot_begin(1, 0).unwrap();
    g.snapshot_end(1).unwrap();
    for (all, more) in sent.iter_mut().zip(settle(&mut a, &mut g, 1)) {
        all.extend(more);
    }
    for result in give(&mut g, 2, &sent[0]).into_iter().chain(give(&mut a, 2, &sent[1])) {
        let refused = matches!(
            result,
            Err(ReceiveError::Frame(FrameError::Replayed { .. }) | ReceiveError::Unexpected)
        );
        assert!(refused, "{result:?}");
    }
    // To another session of the same node, and to another node, they are noise as well.
    for mut other in [gateway("edge-1", 1, 2, 9), gateway("edge-2", 1, 1, 9), gateway("edge-1", 7, 1, 9)] {
        other.link_up(2);
        for (frame, result) in sent[0].iter().zip(give(&mut other, 2, &sent[0])) {
            // A replayed hello is answered, and leads nowhere without the node's key.
            assert!(result.is_err() || frame[1] == 0, "{result:?}");
        }
        assert!(!other.is_up());
    }
}

#[cfg_attr(test, test)]
fn a_replayed_hello_does_not_end_the_session() {
    let (mut a, mut g, _) = connected();
    a.link_down(1, &mut |_| {});
    a.link_up(1);
    let hello = frames(&mut a, 1);
    give(&mut g, 1, &hello);
    // The node says hello once more and is welcomed; the first hello comes again much later.
    a.link_up(2);
    settle(&mut a, &mut g, 2);
    let mut lost = 0;
    g.receive(3, &mut hello[0].clone(), &mut |_| lost += 1).unwrap();
    assert!(g.is_up() && lost == 0);
    a.report("Node", "edge-1", "", b"2").unwrap();
    let mut reports = 0;
    for mut frame in frames(&mut a, 3) {
        g.receive(3, &mut frame, &mut |event| reports += u32::from(matches!(event, Event::Report { .. })))
            .unwrap();
    }
    assert_eq!(reports, 1);
}

#[cfg_attr(test, test)]
fn every_flipped_bit_and_every_cut_is_refused() {
    let (mut a, mut g, _) = connected();
    a.report("Node", "edge-1", "", b"status").unwrap();
    let frame = frames(&mut a, 1).pop().unwrap();
    for bit in 0..frame.len() * 8 {
        let mut bad = frame.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(give(&mut g, 1, &[bad])[0].is_err(), "bit {bit}");
    }
    for len in 0..frame.len() {
        assert!(give(&mut g, 1, &[frame[..len].to_vec()])[0].is_err(), "{len} bytes");
    }
    assert_eq!(give(&mut g, 1, &[frame]), [Ok(())]);
}

#[cfg_attr(test, test)]
fn a_gateway_of_an_older_epoch_is_refused() {
    let (mut a, mut old) = (agent(1, 0), gateway("edge-1", 1, 4, 2));
    let mut new = gateway("edge-1", 1, 5, 3);
    a.link_up(0);
    old.link_up(0);
    new.link_up(0);
    settle(&mut a, &mut old, 0);
    new.solicit(1);
    let solicit = frames(&mut new, 1);
    assert_eq!(give(&mut a, 1, &solicit), [Ok(())]);
    let hello = frames(&mut a, 1_100 + Timing::DEFAULT.solicit_jitter_ms);
    give(&mut old, 2_200, &hello);
    give(&mut new, 2_200, &hello);
    let refused = give(&mut a, 2_200, &frames(&mut old, 2_200));
    assert_eq!(refused, [Err(ReceiveError::Epoch { offered: 4, seen: 5 })]);
    old.solicit(2_300);
    let refused = give(&mut a, 2_300, &frames(&mut old, 2_300));
    assert_eq!(refused, [Err(ReceiveError::Epoch { offered: 4, seen: 5 })]);
    // The hello was used up by the refusal; the next one reaches the new gateway alone.
    a.tick(40_000, &mut |_| {});
    settle(&mut a, &mut new, 40_000);
    assert!(a.is_up() && new.is_up());
    assert_eq!(a.epoch(), 5);
}

#[cfg_attr(test, test)]
fn what_still_waits_is_replaced_and_what_is_full_says_so() {
    let mut limits = Limits::SERVER;
    limits.outbox_entries_max = 3;
    let Config::Agent(mut config) = agent(1, 0).config().clone() else { unreachable!() };
    config.limits = limits;
    let mut a = Session::<Growable>::new(Config::Agent(config), [1; 32]);
    for key in ["a", "b", "c"] {
        a.report("Pod", key, "1", b"old").unwrap();
    }
    a.report("Pod", "b", "1", b"new").unwrap();
    assert_eq!(a.report("Pod", "b", "2", b"another pod"), Err(SendError::Full));
    assert_eq!(a.item("Pod", "a", 1, b""), Err(SendError::Role));
    let too_large = vec![0; Limits::SERVER.message_bytes_max as usize + 1];
    assert!(matches!(a.report("Pod", "a", "1", &too_large), Err(SendError::TooLarge(_))));
    let mut g = gateway("edge-1", 1, 1, 2);
    a.link_up(0);
    g.link_up(0);
    let (mut got, mut last, mut room) = (Vec::new(), None, 0);
    for _ in 0..8 {
        for mut frame in frames(&mut a, 0) {
            let _ = g.receive(0, &mut frame, &mut |event| {
                if let Event::Report { id, body, .. } = event {
                    got.push(body.to_vec());
                    last = Some(id);
                }
            });
        }
        if let Some(id) = last {
            g.settle(id);
        }
        for mut frame in frames(&mut g, 0) {
            let _ = a.receive(0, &mut frame, &mut |event| room += u32::from(event == Event::Room));
        }
    }
    assert_eq!(got, [b"old", b"new", b"old"]);
    assert_eq!((a.outbox_room(), room), (3, 1));
}

#[cfg_attr(test, test)]
fn silence_ends_a_session_and_a_probe_ends_it_sooner() {
    let (_, mut g, _) = connected();
    let mut lost = None;
    g.probe(10);
    assert_eq!(frames(&mut g, 10).len(), 1);
    g.tick(10 + Timing::DEFAULT.probe_ms, &mut |event| {
        lost = Some(event == Event::Lost(LostReason::Silence))
    });
    assert_eq!((lost, g.is_up()), (Some(true), false));

    let (mut a, _, _) = connected();
    let mut now_ms = 0;
    while a.is_up() && now_ms < 1_000_000 {
        now_ms = a.next_timeout().unwrap().max(now_ms + 1);
        a.tick(now_ms, &mut |_| {});
        frames(&mut a, now_ms);
    }
    assert_eq!(now_ms, Timing::DEFAULT.silence_max_ms);
}

#[cfg_attr(test, test)]
fn a_goodbye_ends_both_sides_and_a_settlement_of_an_earlier_session_means_nothing() {
    let (mut a, mut g, _) = connected();
    a.report("Pod", "a", "", b"1").unwrap();
    let mut id = None;
    for mut frame in frames(&mut a, 0) {
        g.receive(0, &mut frame, &mut |e| id = if let Event::Report { id, .. } = e { Some(id) } else { id })
            .unwrap();
    }
    a.close(&mut |_| {});
    let mut lost = false;
    for mut frame in frames(&mut a, 0) {
        g.receive(0, &mut frame, &mut |event| lost = event == Event::Lost(LostReason::Bye)).unwrap();
    }
    assert!(lost && !g.is_up() && !a.is_up());
    a.link_up(5_000);
    settle(&mut a, &mut g, 5_000);
    assert!(a.is_up());
    g.settle(id.unwrap());
    settle(&mut a, &mut g, 5_001);
    assert_eq!(a.outbox_room(), Limits::SERVER.outbox_entries_max - 1, "the report is still kept");
}

#[test]
fn a_renewed_key_counts_from_its_first_use_and_the_old_one_until_then() {
    let key = |byte| NodeKey::from_bytes([byte; 32]);
    let (mut a, mut g, _) = connected();
    g.offer_key(key(9));
    g.offer_key(key(2));
    let reconnect = |a: &mut Session<Growable>, g: &mut Session<Growable>, now_ms| {
        a.link_down(now_ms, &mut |_| {});
        a.link_up(now_ms);
        settle(a, g, now_ms);
        a.is_up()
    };
    assert!(reconnect(&mut a, &mut g, 1), "the agent may not have heard of the new key");
    // A report that was made before the key was replaced is not lost.
    a.report("Node", "edge-1", "", b"1").unwrap();
    a.replace_key(key(2), &mut |event| assert_eq!(event, Event::Lost(LostReason::Closed)));
    let goodbye = frames(&mut a, 2);
    assert_eq!(give(&mut g, 2, &goodbye), [Ok(())]);
    assert!(!g.is_up());
    a.link_up(3);
    let mut reports = 0;
    for _ in 0..3 {
        for frame in frames(&mut a, 3) {
            g.receive(3, &mut frame.clone(), &mut |event| {
                reports += usize::from(matches!(event, Event::Report { .. }));
            })
            .unwrap();
        }
        let down = frames(&mut g, 3);
        give(&mut a, 3, &down);
    }
    assert!(a.is_up() && reports == 1);
    let Config::Gateway(config) = g.config() else { panic!() };
    assert_eq!(config.key, key(2));
    // From then on neither the old key nor one that was never used opens anything.
    for old in [1, 9] {
        a.replace_key(key(old), &mut |_| {});
        assert!(!reconnect(&mut a, &mut g, 4), "key {old}");
    }
    a.replace_key(key(2), &mut |_| {});
    assert!(reconnect(&mut a, &mut g, 5));
}

#[test]
fn an_agent_is_told_to_leave() {
    let (mut a, mut g, _) = connected();
    assert_eq!(a.leave(), Err(SendError::Role));
    g.leave().unwrap();
    let mut told = 0;
    for frame in frames(&mut g, 1) {
        a.receive(1, &mut frame.clone(), &mut |event| told += usize::from(event == Event::Leave)).unwrap();
    }
    assert_eq!(told, 1);
}
