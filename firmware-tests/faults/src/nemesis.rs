//! Makes the faults of a schedule happen, each in a thread of its own, and ends each.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::schedule::{Fault, Planned, Way, Whom};
use crate::world::{Claim, World};

/// How often servers are looked after.
const LOOK: Duration = Duration::from_millis(100);

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
    let Some(claim) = index.and_then(|index| world.claim(index)) else {
        world.say(&format!("nobody {}", planned.fault));
        return Ok(());
    };
    let name = &world.places[claim.index].name;
    let leads = if planned.whom == Whom::Leader { ", which leads," } else { "" };
    world.say(&format!("{name}{leads} {}, for {:.1} s", planned.fault, planned.lasts.as_secs_f64()));
    match planned.fault {
        Fault::Kill => down(world, &[&claim], planned.lasts)?,
        Fault::KillAll => {
            let others: Vec<Claim<'_>> =
                world.places.iter().filter_map(|_| world.claim(claim.index)).collect();
            let all: Vec<&Claim<'_>> = others.iter().chain([&claim]).collect();
            down(world, &all, planned.lasts)?;
        }
        Fault::Pause => {
            world.signal(&claim, "-STOP")?;
            thread::sleep(planned.lasts);
            world.signal(&claim, "-CONT")?;
        }
        Fault::Isolate(way) => {
            cut(world, &[claim.index], &others(world, &[claim.index]), way, planned.lasts)?
        }
        Fault::Part(way) => {
            let other = (claim.index + 1) % world.places.len();
            cut(world, &[claim.index], &[other], way, planned.lasts)?;
        }
        Fault::Split => {
            let count = world.places.len();
            let minority: Vec<usize> =
                (0..(count - 1) / 2).map(|step| (claim.index + step) % count).collect();
            cut(world, &minority, &others(world, &minority), Way::Both, planned.lasts)?;
        }
        Fault::Transfer => {
            // Whoever is asked may be unable to.
            let asked = world.id_of(claim.index).map(|id| world.lichen(&["member", "transfer-leader", &id]));
            let how = match asked {
                Some(Ok(_)) => "leads".to_owned(),
                Some(Err(error)) => format!("does not lead: {error:#}"),
                None => "can't be asked".to_owned(),
            };
            world.say(&format!("{name} {}", how.trim_end()));
            return Ok(());
        }
    }
    world.say(&format!("{name} is well again"));
    Ok(())
}

/// Kills members, and starts them once that time is over.
fn down(world: &World, claims: &[&Claim<'_>], time: Duration) -> Result<()> {
    for claim in claims {
        world.kill(claim)?;
    }
    thread::sleep(time);
    thread::scope(|scope| {
        let started: Vec<_> = claims.iter().map(|claim| scope.spawn(|| world.restart(claim))).collect();
        started
            .into_iter()
            .try_for_each(|started| started.join().unwrap_or_else(|_| anyhow::bail!("a start panicked")))
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
