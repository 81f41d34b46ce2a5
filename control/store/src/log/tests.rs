//! The log's files through crashes at every step, and with damage anywhere.

use std::io;
use std::sync::Arc;

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use super::files::Files;
use super::find::{Contents, find};
use super::segment::{Facts, Record};
use super::writer::{Encoded, Write, encode};
use crate::disk::DiskError;
use crate::encryption::Vault;
use crate::tests::disk::{Fault, Machine};
use crate::tests::{noise, put};
use crate::types::{Command, Entry, LogId, Payload, Vote};
use crate::volume::Volume;

const BROKEN: Fault = Fault::Refused(5);

/// What a log is told, in one batch.
#[derive(Clone, Debug)]
enum Op {
    Vote(u64),
    /// Entries from an index on, so many of so many bytes.
    Append(u64, usize, usize),
    Truncate(u64),
    Purge(u64),
    Committed(u64),
}
use Op::{Append, Committed, Purge, Truncate};

/// What a log holds: entries with what makes each of them another one.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    vote: Option<u64>,
    purged: Option<u64>,
    /// From the first that is not purged on.
    entries: Vec<(u64, u64, usize)>,
}

/// The term is that of the last vote, so that what replaces an entry is another one.
fn log_id(index: u64, term: u64) -> LogId {
    LogId { leader_id: term.into(), index }
}

fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    let payload = Payload::Normal(Command(put("k", &noise(bytes)).into()));
    Entry { log_id: log_id(index, term), payload }
}

impl Model {
    fn term(&self) -> u64 {
        self.vote.unwrap_or(0)
    }

    fn admit(&mut self, op: &Op) {
        match *op {
            Op::Vote(term) => self.vote = Some(term),
            Append(from, count, bytes) => {
                let term = self.term();
                let size = put("k", &noise(bytes)).size();
                self.entries.extend((from..).take(count).map(|index| (index, term, size)));
            }
            Truncate(from) => self.entries.retain(|(index, ..)| *index < from),
            Purge(upto) => {
                self.purged = Some(upto);
                self.entries.retain(|(index, ..)| *index > upto);
            }
            Committed(_) => {}
        }
    }

    /// The batch for some operations that happen in this state.
    fn batch(&self, ops: &[Op]) -> (Vec<Write>, Option<LogId>) {
        let ack = || oneshot::channel::<io::Result<()>>().0;
        let mut committed = None;
        let mut model = self.clone();
        let mut batch = Vec::new();
        for op in ops {
            let term = model.term();
            match *op {
                Op::Vote(term) => batch.push(Write::Vote(Vote::new(term, 1), ack())),
                Append(from, count, bytes) => {
                    let entries = (from..).take(count).map(|index| entry(index, term, bytes)).collect();
                    batch.push(Write::Append(entries, count * bytes, IOFlushed::noop()));
                }
                Truncate(from) => batch.push(Write::Truncate(from, ack())),
                Purge(upto) => batch.push(Write::Purge(log_id(upto, term))),
                Committed(index) => committed = Some(log_id(index, term)),
            }
            model.admit(op);
        }
        (batch, committed)
    }
}

struct Log {
    files: Files,
    facts: Facts,
}

impl Log {
    fn open(machine: &Machine) -> Result<(Self, Model), DiskError> {
        let fresh = || Ok((Facts { member: 7, ..Facts::default() }, Vec::new()));
        let (files, contents) = Files::open(&machine.volume(), Arc::default(), fresh)?;
        assert_eq!(contents.facts.member, 7);
        let model = model(&files, &contents);
        Ok((Self { files, facts: contents.facts }, model))
    }

    fn write(&mut self, state: &Model, ops: &[Op]) -> Result<(), DiskError> {
        let (batch, committed) = state.batch(ops);
        let Encoded { body, facts, .. } = encode(&batch, self.facts, committed, &Vault::default()).unwrap();
        self.files.append(&body, &facts)?;
        self.facts = facts;
        if ops.iter().any(|op| matches!(op, Purge(_))) {
            self.files.recycle();
        }
        Ok(())
    }
}

/// What a log holds, with each entry read from where it is said to be.
fn model(files: &Files, contents: &Contents) -> Model {
    let Contents { facts, index } = contents;
    let places: Vec<_> = (index.first()..index.next()).map(|at| (at, index.get(at).unwrap())).collect();
    let sought = files.of(&places);
    assert_eq!(sought.len(), places.len());
    let entries = sought.iter().map(|sought| {
        let entry = sought.read(&Vault::default()).unwrap();
        let Payload::Normal(command) = &entry.payload else { panic!() };
        (entry.log_id.index, entry.log_id.leader_id.term, command.0.size())
    });
    Model {
        vote: facts.vote.map(|vote| vote.leader_id.term),
        purged: facts.purged.map(|purged| purged.index),
        entries: entries.collect(),
    }
}

/// Batches that lead through several segments, and use them again.
fn script() -> Vec<Vec<Op>> {
    vec![
        vec![Op::Vote(1)],
        vec![Append(0, 3, 100)],
        vec![Append(3, 2, 9_000), Committed(2)],
        vec![Append(5, 1, 10), Append(6, 1, 5_000)],
        vec![Truncate(6), Op::Vote(2), Append(6, 2, 20)],
        // More than the smallest segment has room for.
        vec![Append(8, 4, 30_000)],
        vec![Append(12, 1, 40_000)],
        vec![Append(13, 1, 40_000)],
        vec![Purge(11)],
        vec![Append(14, 1, 40_000), Committed(13)],
        vec![Truncate(13), Op::Vote(3)],
        vec![Append(13, 2, 50)],
        vec![Append(15, 1, 50_000)],
        vec![Append(16, 1, 50_000), Purge(15)],
        vec![Append(17, 1, 50_000)],
        vec![Append(18, 1, 50_000)],
        // A snapshot from another member: further than the log.
        vec![Op::Vote(4), Purge(40)],
        vec![Append(41, 2, 300)],
    ]
}

/// Plays the script until something fails. Tells what is acknowledged, and what may or may not have happened.
fn play(log: &mut Log, state: Model, script: &[Vec<Op>]) -> (Model, Model, usize) {
    let mut state = state;
    for (step, ops) in script.iter().enumerate() {
        let mut next = state.clone();
        ops.iter().for_each(|op| next.admit(op));
        if log.write(&state, ops).is_err() {
            return (state, next, step);
        }
        state = next;
    }
    (state.clone(), state, script.len())
}

/// Which of what was not synced survives a crash.
fn survivors(seed: u64) -> impl FnMut() -> bool {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || match seed {
        0 => false,
        1 => true,
        _ => {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.is_multiple_of(2)
        }
    }
}

/// The log after a crash: nothing that was acknowledged is missing, and what was under way happened or did not.
fn reopen(machine: &Machine, before: &Model, after: &Model, context: &str) -> (Log, Model) {
    let (log, found) = Log::open(machine).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(found == *before || found == *after, "{context}: found {found:?}, not {before:?} or {after:?}");
    (log, found)
}

#[test]
fn a_crash_at_any_step_loses_nothing_acknowledged() {
    let script = script();
    let steps = {
        let machine = Machine::new();
        let (mut log, fresh) = Log::open(&machine).unwrap();
        let (end, _, played) = play(&mut log, fresh, &script);
        assert_eq!(played, script.len());
        reopen(&machine, &end, &end, "no crash");
        machine.done()
    };
    assert!(steps > 80, "{steps}");
    for crash in 0..steps {
        for seed in 0..6 {
            let context = format!("crash at {crash}, survivors {seed}");
            let machine = Machine::new();
            machine.fail(crash, u64::MAX, BROKEN);
            let (mut before, mut after, mut done) = (Model::default(), Model::default(), 0);
            if let Ok((mut log, fresh)) = Log::open(&machine) {
                (before, after, done) = play(&mut log, fresh, &script);
            }
            let machine = machine.after_power_cut(survivors(seed));
            // The next start is cut short as well.
            machine.fail(crash % 7, u64::MAX, BROKEN);
            let _ = Log::open(&machine);
            let machine = machine.after_power_cut(survivors(seed + 100));
            let (mut log, found) = reopen(&machine, &before, &after, &context);
            // It goes on from there.
            let rest = script.get(if found == before { done } else { done + 1 }..).unwrap_or_default();
            let (end, _, played) = play(&mut log, found, rest);
            assert_eq!(played, rest.len(), "{context}");
            let machine = machine.after_power_cut(|| false);
            reopen(&machine, &end, &end, &context);
        }
    }
}

/// The retry of what failed does not do it twice, whatever the disk made of it.
#[test]
fn what_failed_can_be_done_again() {
    use crate::health::Reopen as _;
    for fault in crate::tests::disk::FAULTS {
        for from in 0..40 {
            let machine = Machine::new();
            let (mut log, mut state) = Log::open(&machine).unwrap();
            machine.fail(from, 1, fault);
            for ops in script() {
                while log.write(&state, &ops).is_err() {
                    while log.files.reopen(log.files.generation()).is_err() {}
                    log.facts = log.files.facts().unwrap();
                }
                ops.iter().for_each(|op| state.admit(op));
            }
            let machine = machine.after_power_cut(|| false);
            reopen(&machine, &state, &state, &format!("{fault:?} from {from} on"));
        }
    }
}

/// A log of several segments, one of which was used before.
fn written(finish: bool) -> (Machine, Model) {
    let machine = Machine::new();
    let (mut log, fresh) = Log::open(&machine).unwrap();
    let (end, ..) = play(&mut log, fresh, &script()[..16]);
    if finish {
        log.files.finish().unwrap();
    }
    (machine, end)
}

#[test]
fn a_flipped_bit_is_found_or_does_not_matter() {
    for finish in [true, false] {
        let (machine, model) = written(finish);
        let names = machine.volume().list().unwrap();
        let segments: Vec<_> = names.into_iter().filter(|name| name.starts_with("log-")).collect();
        assert!(segments.len() > 1, "{segments:?}");
        let mut refused = 0;
        for name in &segments {
            let size = machine.volume().open(name).unwrap().size().unwrap() as usize;
            for at in (0..64).chain((64..size).step_by(1009)) {
                machine.flip(name, at);
                match Log::open(&machine.after_power_cut(|| false)) {
                    Err(DiskError::Corrupt { .. }) => refused += 1,
                    Err(error) => panic!("{name} at {at}: {error}"),
                    // The last write of a log that was not closed may have been cut short.
                    Ok((_, found)) => {
                        let last = found.entries.len() + 1 >= model.entries.len();
                        let same = found.entries[..] == model.entries[..found.entries.len()];
                        assert!(found == model || (!finish && last && same), "{name} at {at}: {found:?}");
                    }
                }
                machine.flip(name, at);
            }
        }
        assert!(refused > 100, "{refused}");
    }
}

#[test]
fn files_that_are_missing_are_missed() {
    let (machine, model) = written(true);
    let volume = machine.volume();
    let mut names: Vec<_> =
        volume.list().unwrap().into_iter().filter(|name| name.starts_with("log-")).collect();
    names.sort_unstable();
    for name in &names[..names.len() - 1] {
        let machine = machine.after_power_cut(|| false);
        machine.volume().remove(name).unwrap();
        let error = Log::open(&machine).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("missing"), "{name}: {error}");
    }
    reopen(&machine, &model, &model, "all there");
}

/// The same few files are used again and again, and a log that hardly holds anything is small.
#[test]
fn the_files_level_off() {
    let machine = Machine::new();
    let (mut log, mut state) = Log::open(&machine).unwrap();
    let size = |machine: &Machine| -> u64 {
        let volume = machine.volume();
        let names = volume.list().unwrap();
        names.iter().map(|name| volume.open(name).unwrap().size().unwrap()).sum()
    };
    assert_eq!(size(&machine), 64 * 1024);
    let mut sizes = Vec::new();
    for round in 0..30u64 {
        for ops in [vec![Append(round * 40, 40, 3_000)], vec![Purge(round * 40 + 35)]] {
            log.write(&state, &ops).unwrap();
            ops.iter().for_each(|op| state.admit(op));
        }
        sizes.push(size(&machine));
    }
    assert_eq!(sizes[10..20].iter().max(), sizes[20..].iter().max(), "{sizes:?}");
    assert!(*sizes.iter().max().unwrap() < 1024 * 1024, "{sizes:?}");
    // None was made but in the beginning.
    let files = machine.files();
    assert!(files < 12, "{files} files were made");
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let records = [
        Record::Entry { at: 5, sealed: b"sealed" },
        Record::Vote(Vote::new_committed(3, 9)),
        Record::Truncate(17),
        Record::Purge(log_id(4, 2)),
        Record::Committed(log_id(5, 2)),
        Record::Closed,
    ];
    let mut body = Vec::new();
    for record in &records {
        record.encode(&mut body).unwrap();
    }
    let mut at = 0;
    Record::each(&body, |record| {
        assert_eq!(record, records[at]);
        at += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(at, records.len());
    for cut in 0..body.len() {
        let mut seen = 0;
        let read = Record::each(&body[..cut], |_| {
            seen += 1;
            Ok(())
        });
        assert!(read.is_err() || seen < records.len(), "cut at {cut}");
    }
}

/// A check reads what is there and makes nothing.
#[test]
fn an_empty_volume_has_no_log() {
    let machine = Machine::new();
    let volume: Arc<dyn Volume> = machine.volume();
    assert!(find(&*volume).unwrap().is_none());
    assert_eq!(machine.done(), 0);
}
