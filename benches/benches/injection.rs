//! What an injected call costs above an empty handler, with the interrupted mask and with the handler's.
//! They run in turns, so that the ratio holds whatever else the machine does.

use benches::medians;
use benches::raised::{Call, Raiser};
use criterion::Criterion;

fn main() {
    let raiser = Raiser::new();
    let calls = [(Call::Plain, "injected call"), (Call::Masked, "masked call")];

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("signal");
    group.bench_function("empty handler", |b| b.iter(|| raiser.raise(Call::Empty)));
    for (call, name) in calls {
        group.bench_function(name, |b| b.iter(|| raiser.raise(call)));
    }
    group.finish();
    criterion.final_summary();

    for (call, name) in calls {
        // Else its time would be that of an empty handler.
        let _ = raiser.time(call, 500);
        let sides: &mut [&mut dyn FnMut(); 2] =
            &mut [&mut || raiser.raise(Call::Empty), &mut || raiser.raise(call)];
        let [empty, injected] = medians(500, 500, sides);
        println!("empty handler {empty:.0} ns, {name} {injected:.0} ns");
        println!("ratio {:.3}, difference {:+.0} ns", injected / empty, injected - empty);
    }
}
