//! What an injected call costs above an empty handler.

use benches::Series;
use benches::raised::{Call, Raiser};

use crate::threads::Limits;

/// Signals a sample.
const BATCH: u32 = 100;

/// `ours`: the time of a call as `preempt` makes it, less that of an empty handler measured right before it;
/// `plain`: of one that begins with the interrupted mask.
pub(crate) fn calls(limits: &Limits) -> Vec<Series> {
    let raiser = Raiser::new();
    let (mut ours, mut plain) = (Series::new("ours"), Series::new("plain"));
    let mut empty = Series::new("empty");
    limits.repeat(3, |counts| {
        let without = raiser.time(Call::Empty, BATCH);
        let masked = raiser.time(Call::Masked, BATCH);
        let open = raiser.time(Call::Plain, BATCH);
        if counts {
            empty.add_nanoseconds(without);
            ours.add_nanoseconds(masked - without);
            plain.add_nanoseconds(open - without);
        }
    });
    vec![ours, plain, empty]
}
