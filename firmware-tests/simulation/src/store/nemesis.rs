//! What goes wrong, one thing after the other, until all of it is healed.

use std::time::Duration;

use super::cluster::{Cluster, State};
use super::disk;
use super::journal::FAULTS;
use super::net;
use crate::dice::Dice;
use crate::trace::{Trace, note};

/// How many members there may be.
const MEMBERS: (usize, usize) = (3, 5);

pub(super) struct Nemesis {
    dice: Dice,
    trace: Trace,
    cluster: Cluster,
}

impl Nemesis {
    pub(super) fn new(dice: Dice, trace: Trace, cluster: Cluster) -> Self {
        Self { dice, trace, cluster }
    }

    /// Lets so many things go wrong in about that time.
    pub(super) async fn trouble(&self, faults: u64, time: Duration) {
        let between_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX) / faults.max(1) * 2;
        for _ in 0..faults {
            tokio::time::sleep(Duration::from_millis(self.dice.between(0, between_ms))).await;
            self.act();
        }
    }

    fn act(&self) {
        let names = self.cluster.names();
        let Some(name) = self.dice.pick(&names) else { return };
        match self.dice.between(0, 99) {
            0..=14 => self.cluster.kill(name, self.dice.chance(400)),
            15..=29 => self.restart(),
            30..=32 => {
                for name in &names {
                    self.cluster.kill(name, self.dice.chance(700));
                }
            }
            33..=47 => self.partition(name, &names),
            48..=56 => {
                note!(self.trace, "all cuts are mended");
                self.cluster.net.mend();
            }
            57..=63 => self.slow_network(),
            64..=70 => self.pause(name),
            71..=82 => self.disk(name),
            83..=86 => self.clock(name),
            87..=91 => self.membership(&names),
            92..=95 => self.outage(names),
            _ => self.transfer(),
        }
    }

    /// Everybody's power fails, while the disks are busy.
    fn outage(&self, names: Vec<String>) {
        let (cluster, power) = (self.cluster.clone(), Duration::from_millis(self.dice.between(100, 1_500)));
        for name in &names {
            cluster.change(name, |member| {
                member.disk.set(disk::Levels { sync_ms: (80, 400), ..disk::Levels::CALM });
                Some(())
            });
        }
        tokio::spawn(async move {
            tokio::time::sleep(power).await;
            for name in names {
                cluster.kill(&name, true);
                cluster.change(&name, |member| {
                    member.disk.heal();
                    Some(())
                });
            }
        });
    }

    fn restart(&self) {
        for name in self.cluster.down() {
            let cluster = self.cluster.clone();
            tokio::spawn(async move { cluster.start(&name, true).await });
        }
    }

    /// Cuts a member off: from everybody or from some, both ways or one way.
    fn partition(&self, name: &str, names: &[String]) {
        let name = match self.cluster.leader() {
            Some((leader, ..)) if self.dice.chance(500) => leader,
            _ => name.to_owned(),
        };
        let (from, to) = *self
            .dice
            .pick(&[(true, true), (true, true), (true, false), (false, true)])
            .unwrap_or(&(true, true));
        let everybody = self.dice.chance(700);
        for other in names.iter().filter(|other| **other != name) {
            if !everybody && self.dice.chance(500) {
                continue;
            }
            note!(self.trace, "{name} is cut off {other}: from {from}, to {to}");
            if from {
                self.cluster.net.cut(&name, other);
            }
            if to {
                self.cluster.net.cut(other, &name);
            }
        }
    }

    fn slow_network(&self) {
        let levels = net::Levels {
            loss: *self.dice.pick(&[0, 20, 200]).unwrap_or(&0),
            repeat: *self.dice.pick(&[0, 50, 300]).unwrap_or(&0),
            delay_ms: *self.dice.pick(&[(0, 2), (0, 50), (20, 400), (0, 3_000)]).unwrap_or(&(0, 2)),
        };
        note!(self.trace, "{levels:?}");
        self.cluster.net.set(levels);
    }

    fn pause(&self, name: &str) {
        let up = self.cluster.up();
        let Some((_, process, _)) = up.iter().find(|(up, ..)| up == name) else { return };
        let (process, trace, name) = (process.clone(), self.trace.clone(), name.to_owned());
        let time = Duration::from_millis(self.dice.between(100, 10_000));
        note!(trace, "{name} is paused");
        process.pause();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            note!(trace, "{name} goes on");
            process.resume();
        });
    }

    fn disk(&self, name: &str) {
        let calm = disk::Levels::CALM;
        let levels = match self.dice.between(0, 7) {
            0 | 1 => disk::Levels { sync_ms: (80, 120), ..calm },
            2 => disk::Levels { sync_ms: (6_000, 7_000), ..calm },
            3 => disk::Levels { full: true, ..calm },
            4 => disk::Levels { broken: true, ..calm },
            5 => {
                let (from, count) = (self.dice.between(0, 60), self.dice.between(1, 4));
                let fault = *self.dice.pick(&FAULTS).unwrap_or(&FAULTS[0]);
                note!(self.trace, "{count} operations of {name}'s disk will be {fault:?} after {from}");
                self.cluster.change(name, |member| {
                    member.ill = true;
                    member.disk.fail(from, count, fault);
                    Some(())
                });
                return;
            }
            _ => calm,
        };
        note!(self.trace, "{name}'s disk: {levels:?}");
        self.cluster.change(name, |member| {
            if levels == calm {
                member.disk.heal();
            } else {
                member.disk.set(levels);
            }
            member.ill = levels != calm;
            Some(())
        });
    }

    fn clock(&self, name: &str) {
        let permille = *self.dice.pick(&[500, 900, 1000, 1100, 2000]).unwrap_or(&1000);
        self.cluster.change(name, |member| {
            if let State::Up(process, _) = &member.state {
                note!(self.trace, "a second of {name} lasts {permille} ms");
                process.set_clock(permille);
            }
            Some(())
        });
    }

    fn membership(&self, names: &[String]) {
        let (cluster, name) = (self.cluster.clone(), self.dice.pick(names).cloned().unwrap_or_default());
        let (fewest, most) = MEMBERS;
        match self.dice.between(0, 2) {
            0 if names.len() < most => drop(tokio::spawn(async move { cluster.add().await })),
            1 if names.len() > fewest => drop(tokio::spawn(async move { cluster.remove(&name).await })),
            // Its disk is replaced: whoever comes back is another member.
            2 if names.len() < most => drop(tokio::spawn(async move {
                if cluster.add().await {
                    cluster.remove(&name).await;
                }
            })),
            _ => {}
        }
    }

    fn transfer(&self) {
        let Some((name, _, store)) = self.cluster.pick(&self.dice) else { return };
        note!(self.trace, "{name} is asked to lead");
        let cluster = self.cluster.clone();
        tokio::spawn(async move { cluster.transfer(&store).await });
    }

    /// Makes everything well.
    pub(super) async fn heal(&self) {
        self.cluster.net.set(net::Levels::CALM);
        self.cluster.net.mend();
        for name in self.cluster.names() {
            self.cluster.change(&name, |member| {
                member.disk.heal();
                member.ill = false;
                if let State::Up(process, _) = &member.state {
                    process.set_clock(1000);
                    process.resume();
                }
                Some(())
            });
        }
        // One that is starting may fail to, from before.
        for _ in 0..2 {
            for name in self.cluster.down() {
                self.cluster.start(&name, true).await;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}
