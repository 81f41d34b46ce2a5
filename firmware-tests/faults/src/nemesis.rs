//! Makes the faults of a schedule happen, each in a thread of its own, and ends each.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::disk::Levels;
use crate::schedule::{Fault, Planned, Way, Whom};
use crate::world::{Claim, World};

/// How often servers are looked after.
const LOOK: Duration = Duration::from_millis(100);
/// By how much a clock is wrong: less than certificates are dated back.
const CLOCK_SECONDS_MAX: u64 = 3_600;

/// Plays a schedule to its end, or until something is wrong.
pub(crate) fn play(world: &World, schedule: &[Planned]) {
    let began = Instant::now();
    thread::scope(|scope| {
        for planned in schedule {
            while began.elapsed() < planned.at {
                thread::sleep(LOOK.min(planned.at.saturating_sub(began.elapsed())));
                world.watch_over();
                if !world.failures().is_empty() {
                    return;
                }
            }
            scope.spawn(move || {
                if let Err(error) = befall(world, planned) {
                    world.fail(format!("{:?}: {error:#}", planned.fault));
                }
            });
        }
    });
    world.watch_over();
}

fn befall(world: &World, planned: &Planned) -> Result<()> {
    let index = match planned.whom {
        Whom::Leader => world.leader().map(|(index, _)| index),
        Whom::Member(index) => Some(index),
    };
    let nobody = || world.say(&format!("nobody {}", planned.fault));
    let Some(index) = index else {
        nobody();
        return Ok(());
    };
    // Others may befall a member whose disk is slow, so that it is no claim to it.
    let claim = match planned.fault {
        Fault::SlowDisk(_) => None,
        _ => match world.claim(index) {
            Some(claim) => Some(claim),
            None => {
                nobody();
                return Ok(());
            }
        },
    };
    let leader = (planned.whom == Whom::Leader).then_some(index);
    let index = claim.as_ref().map_or(index, |claim| claim.index);
    let levels = levels(planned)?;
    let name = &world.places[index].name;
    let leads = if leader == Some(index) { ", which leads," } else { "" };
    let how = levels.map(|levels| format!(": {levels}")).unwrap_or_default();
    world.say(&format!("{name}{leads} {}{how}, for {:.1} s", planned.fault, planned.lasts.as_secs_f64()));
    match claim {
        Some(claim) if levels.is_none() => happen(world, &claim, planned)?,
        _ => {
            let disk = &world.places[index].disk;
            disk.set(&levels.unwrap_or_default())?;
            thread::sleep(planned.lasts);
            disk.set(&Levels::default())?;
        }
    }
    world.say(&format!("{name} is well again"));
    Ok(())
}

/// What a server is made to believe, if that is the fault.
fn levels(planned: &Planned) -> Result<Option<Levels>> {
    let calm = Levels::default();
    let lot = planned.lot;
    Ok(Some(match planned.fault {
        Fault::SlowDisk(sync_ms) => Levels { sync_ms, ..calm },
        Fault::FailingDisk => Levels { fail_after: lot % 60, fail_count: 1 + lot / 60 % 4, ..calm },
        Fault::Clock => {
            let seconds = 1 + i64::try_from(lot / 2 % CLOCK_SECONDS_MAX)?;
            Levels { clock_seconds: if lot.is_multiple_of(2) { seconds } else { -seconds }, ..calm }
        }
        _ => return Ok(None),
    }))
}

fn happen(world: &World, claim: &Claim<'_>, planned: &Planned) -> Result<()> {
    let (index, count, time) = (claim.index, world.places.len(), planned.lasts);
    match planned.fault {
        Fault::Kill => down(world, &[claim], time),
        Fault::KillAll => {
            let others: Vec<Claim<'_>> = world.places.iter().filter_map(|_| world.claim(index)).collect();
            let all: Vec<&Claim<'_>> = others.iter().chain([claim]).collect();
            down(world, &all, time)
        }
        Fault::Pause => {
            world.signal(claim, "-STOP")?;
            thread::sleep(time);
            world.signal(claim, "-CONT")
        }
        Fault::Isolate(way) => cut(world, &[index], &others(world, &[index]), way, time),
        Fault::Part(way) => cut(world, &[index], &[(index + 1) % count], way, time),
        Fault::Split => {
            let minority: Vec<usize> = (0..(count - 1) / 2).map(|step| (index + step) % count).collect();
            cut(world, &minority, &others(world, &minority), Way::Both, time)
        }
        Fault::Transfer => {
            // Whoever is asked may be unable to.
            let asked = world.id_of(index).map(|id| world.lichen(&["member", "transfer-leader", &id]));
            let how = match asked {
                Some(Ok(_)) => "leads".to_owned(),
                Some(Err(error)) => format!("does not lead: {error:#}"),
                None => "can't be asked".to_owned(),
            };
            world.say(&format!("{} {}", world.places[index].name, how.trim_end()));
            Ok(())
        }
        Fault::FullDisk => {
            let disk = &world.places[index].disk;
            disk.fill()?;
            thread::sleep(time);
            disk.free()
        }
        Fault::Replace => replace(world, claim, time),
        Fault::SlowDisk(_) | Fault::FailingDisk | Fault::Clock => bail!("it is what a server believes"),
    }
}

/// Kills members, and starts them once that time is over.
fn down(world: &World, claims: &[&Claim<'_>], time: Duration) -> Result<()> {
    for claim in claims {
        world.kill(claim)?;
    }
    thread::sleep(time);
    thread::scope(|scope| {
        let started: Vec<_> = claims.iter().map(|claim| scope.spawn(|| world.restart(claim))).collect();
        let mut started = started.into_iter().map(|started| started.join());
        started.try_for_each(|started| started.unwrap_or_else(|_| bail!("a start panicked")))
    })
}

fn others(world: &World, few: &[usize]) -> Vec<usize> {
    (0..world.places.len()).filter(|index| !few.contains(index)).collect()
}

fn cut(world: &World, few: &[usize], others: &[usize], way: Way, time: Duration) -> Result<()> {
    let set = |is_cut: bool| -> Result<()> {
        for one in few {
            for other in others {
                if way != Way::In {
                    world.cut(*one, *other, is_cut)?;
                }
                if way != Way::Out {
                    world.cut(*other, *one, is_cut)?;
                }
            }
        }
        Ok(())
    };
    set(true)?;
    thread::sleep(time);
    set(false)
}

/// Removes a member, which ends and says why, and lets another one join in its place.
fn replace(world: &World, claim: &Claim<'_>, time: Duration) -> Result<()> {
    let place = &world.places[claim.index];
    let mut found = None;
    world.until("the members are known", || {
        found = world.id_of(claim.index);
        found.is_some()
    })?;
    let id = found.unwrap_or_default();
    // From here on it may end by itself.
    let server = world.release(claim)?;
    let mut told = Vec::new();
    let removed = world.until("a member is removed", || {
        // A request that was not answered may have removed it.
        let members = world.members();
        if !members.is_empty() && members.iter().all(|member| member["id"] != *id) {
            return true;
        }
        told.extend(world.lichen(&["member", "remove", &id]).err().map(|error| error.to_string()));
        false
    });
    removed.with_context(|| told.join("\n"))?;
    let said = world.ended(server)?;
    ensure!(said.contains("was removed from the cluster"), "{} ended otherwise:\n{said}", place.name);
    place.disk.wipe()?;
    thread::sleep(time);
    told.clear();
    let by = (claim.index + 1) % world.places.len();
    let joined = world.until("a machine joins anew", || match world.join(claim, by) {
        Ok(()) => true,
        Err(error) => {
            told.push(format!("{error:#}"));
            false
        }
    });
    joined.with_context(|| told.join("\n"))
}
