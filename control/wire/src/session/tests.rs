use crate::testing::{Faults, MemoryCarrier, Script, Suite};

use super::*;

const BAD: Faults =
    Faults { loss_percent: 15, repeat_percent: 10, damage_percent: 5, replay_percent: 10, delay_max_ms: 60 };

#[test]
fn both_sides_agree_after_everything_went_wrong() {
    for seed in 0..20 {
        let faults = if seed % 3 == 0 { Faults::default() } else { BAD };
        let mut carrier = MemoryCarrier::new(seed, faults);
        let outcome = Suite::<_, Growable>::new(&mut carrier, seed, Script::USUAL).run();
        assert!(outcome.sessions > 0 && outcome.reports > 0, "seed {seed}: {outcome:?}");
    }
}
