//! The registry of interruptible code.

use preempt::{CodeError, is_registered_code, register_code};

#[test]
fn ranges_are_found_by_their_addresses_and_only_while_registered() {
    // SAFETY: nothing runs at these addresses.
    let b = unsafe { register_code(200..300) }.expect("free");
    // SAFETY: as above.
    let a = unsafe { register_code(100..200) }.expect("beside it");
    let hits: Vec<_> = [99, 100, 199, 200, 299, 300].map(is_registered_code).into();
    assert_eq!(hits, [false, true, true, true, true, false]);
    drop(b);
    assert!(is_registered_code(199));
    assert!(!is_registered_code(200));
    drop(a);
    assert!(!is_registered_code(150));
}

#[test]
fn empty_and_overlapping_ranges_are_refused() {
    #[expect(clippy::reversed_empty_ranges, reason = "the bad input that is tested")]
    // SAFETY: nothing runs at these addresses.
    let backwards = unsafe { register_code(20..10) };
    assert_eq!(backwards.expect_err("backwards").to_string(), "code range 0x14..0xa is empty");
    // SAFETY: as above.
    let _code = unsafe { register_code(1000..2000) }.expect("free");
    for range in [900..1001, 1999..2001, 1200..1300, 900..2100] {
        // SAFETY: as above.
        let error = unsafe { register_code(range.clone()) }.expect_err("overlaps");
        assert_eq!(error, CodeError::Overlaps { range, registered: 1000..2000 });
    }
}

/// Lookups go on while ranges come and go; under a memory checker or with poisoned frees this
/// would show a snapshot freed too early.
#[test]
fn stress_lookups_while_ranges_come_and_go() {
    // SAFETY: nothing runs at these addresses.
    let _kept = unsafe { register_code(10_000..10_100) }.expect("free");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(is_registered_code(10_050));
                    assert!(!is_registered_code(10_100));
                }
            });
        }
        for i in 0..testkit::budget(20_000) as usize {
            // SAFETY: as above.
            let range = unsafe { register_code(20_000 + i..20_001 + i) }.expect("free");
            assert!(is_registered_code(20_000 + i));
            drop(range);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
