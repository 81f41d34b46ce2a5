//! What was written to a disk and is not at rest yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing was done.
    Refused,
    /// Half of a write was.
    Short,
    /// A sync fails, and what it should have written can be read, but is written by no other sync either.
    Forgotten,
    /// A sync fails, and what it should have written is gone.
    Reverted,
}

pub(super) const FAULTS: [Fault; 4] = [Fault::Refused, Fault::Short, Fault::Forgotten, Fault::Reverted];

pub(super) type Names = BTreeMap<String, usize>;
pub(super) type File = Journal<Vec<u8>>;

/// Something that is written to, and what of it is at rest.
#[derive(Debug)]
pub(super) struct Journal<T: Content> {
    rest: T,
    pub(super) current: T,
    /// What is not at rest, in order.
    steps: Vec<Step<T::Change>>,
}

#[derive(Clone, Debug)]
pub(super) struct Step<C> {
    change: C,
    /// When it is done.
    done: Instant,
    /// When it is at rest.
    rest: Option<Instant>,
    /// No sync will bring it to rest any more.
    forgotten: bool,
}

pub(super) trait Content: Clone + Default {
    type Change: Clone;

    fn change(&mut self, change: &Self::Change);

    /// As much of a change as a power cut left.
    fn torn(&mut self, change: &Self::Change, survives: &mut dyn FnMut() -> bool);
}

#[derive(Clone, Debug)]
pub(super) enum Write {
    Data(usize, Arc<[u8]>),
    Size(usize),
}

impl Content for Vec<u8> {
    type Change = Write;

    fn change(&mut self, change: &Write) {
        match change {
            Write::Size(size) => self.resize(*size, 0),
            Write::Data(at, data) => {
                if self.len() < at + data.len() {
                    self.resize(at + data.len(), 0);
                }
                self[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }

    fn torn(&mut self, change: &Write, survives: &mut dyn FnMut() -> bool) {
        match change {
            Write::Size(_) => {
                if survives() {
                    self.change(change);
                }
            }
            Write::Data(at, data) => {
                for (index, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                    let start = at + index * SECTOR_BYTES;
                    let end = start + sector.len();
                    if survives() && end <= self.len() {
                        self[start..end].copy_from_slice(sector);
                    }
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Naming {
    Created(String, usize),
    Renamed(String, String),
    Removed(String),
}

impl Content for Names {
    type Change = Naming;

    fn change(&mut self, change: &Naming) {
        match change {
            Naming::Created(name, file) => drop(self.insert(name.clone(), *file)),
            Naming::Renamed(from, to) => {
                if let Some(file) = self.remove(from) {
                    self.insert(to.clone(), file);
                }
            }
            Naming::Removed(name) => drop(self.remove(name)),
        }
    }

    fn torn(&mut self, change: &Naming, survives: &mut dyn FnMut() -> bool) {
        if survives() {
            self.change(change);
        }
    }
}

impl<T: Content> Default for Journal<T> {
    fn default() -> Self {
        Self { rest: T::default(), current: T::default(), steps: Vec::new() }
    }
}

impl<T: Content> Journal<T> {
    pub(super) fn change(&mut self, change: T::Change, done: Instant) {
        self.current.change(&change);
        self.steps.push(Step { change, done, rest: None, forgotten: false });
    }

    /// Everything until now is at rest then.
    pub(super) fn sync(&mut self, rest: Instant) {
        for step in self.steps.iter_mut().filter(|step| !step.forgotten) {
            step.rest.get_or_insert(rest);
        }
    }

    /// Moves what has come to rest by now.
    pub(super) fn settle(&mut self, now: Instant) {
        let settled = self.steps.iter().take_while(|step| step.rest.is_some_and(|rest| rest <= now)).count();
        for step in self.steps.drain(..settled) {
            self.rest.change(&step.change);
        }
    }

    pub(super) fn fail_sync(&mut self, fault: Fault) {
        match fault {
            Fault::Refused | Fault::Short => {}
            Fault::Forgotten => {
                self.steps
                    .iter_mut()
                    .filter(|step| step.rest.is_none())
                    .for_each(|step| step.forgotten = true);
            }
            Fault::Reverted => {
                self.steps.retain(|step| step.rest.is_some());
                self.replay();
            }
        }
    }

    fn replay(&mut self) {
        self.current = self.rest.clone();
        for step in &self.steps {
            self.current.change(&step.change);
        }
    }

    /// Undoes what would only have been done after the end of whoever did it.
    pub(super) fn crash(&mut self, now: Instant) {
        self.settle(now);
        self.steps.retain(|step| step.done <= now);
        for step in &mut self.steps {
            // Whoever asked for this sync did not live to see its end; the system writes it some time.
            step.rest = step.rest.filter(|rest| *rest <= now);
        }
        self.replay();
    }

    /// Leaves of what is not at rest what survives.
    pub(super) fn cut(&mut self, now: Instant, survives: &mut dyn FnMut() -> bool) {
        self.crash(now);
        for step in std::mem::take(&mut self.steps) {
            if step.rest.is_some() {
                self.rest.change(&step.change);
            } else if !step.forgotten {
                self.rest.torn(&step.change, survives);
            }
        }
        self.current = self.rest.clone();
    }
}
