//! What the protocol needs from the kernel: sleeping and waking on a word.

#[cfg(not(loom))]
pub(crate) use kernel::{Kernel, Yielding, Yields, processors};

use sigctx::sync::AtomicU32;

/// The seam between the protocol and the kernel; loom brings another one.
pub(crate) trait System {
    /// How long the requester is ready to wait.
    type Timeout;
    /// Sleeps while `word` holds `expected`; may return early. Returns true after a sleep so long that the
    /// requester may be dead, or unable to wake others. How long depends on `number`, the thread's place in
    /// the order of joining.
    fn wait(&self, word: &AtomicU32, expected: u32, number: u32) -> bool;
    /// Like `wait`, and no longer than `timeout`.
    fn wait_for(&self, word: &AtomicU32, expected: u32, timeout: Self::Timeout);
    /// Wakes the one thread that may sleep on `word`.
    fn wake_one(&self, word: &AtomicU32);
    /// Wakes all threads that sleep on `word`.
    fn wake_all(&self, word: &AtomicU32);
}

#[cfg(not(loom))]
mod kernel {
    use core::cell::Cell;
    use core::ffi::{c_int, c_long};
    use core::ptr;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
    use core::time::Duration;
    use std::time::Instant;

    use sigctx::sys::syscall_raw;

    use super::System;

    /// In milliseconds: how long the first held thread sleeps without a look at the requester, and how much
    /// longer than its predecessor each further one does.
    const LOOK_AT_REQUESTER: u32 = 50;
    const LOOK_LATER: u32 = 1;

    /// Sleeping and waking by raw system calls, inlined into the handler. `sigctx::sync` does not say that a
    /// sleep ran out, and its functions are called by name.
    #[derive(Clone, Copy)]
    pub(crate) struct Kernel;

    impl Kernel {
        #[inline(always)]
        fn futex(
            word: &AtomicU32,
            operation: c_int,
            value: u32,
            time: Option<&[c_long; 2]>,
        ) -> isize {
            let operation = (operation | libc::FUTEX_PRIVATE_FLAG) as usize;
            let time = time.map_or(ptr::null(), ptr::from_ref) as usize;
            let args = [word.as_ptr() as usize, operation, value as usize, time, 0, 0];
            // SAFETY: the word and the time are alive during the call.
            unsafe { syscall_raw(libc::SYS_futex, args) }
        }
    }

    impl System for Kernel {
        type Timeout = Duration;

        #[inline(always)]
        fn wait(&self, word: &AtomicU32, expected: u32, number: u32) -> bool {
            // Early returns (EAGAIN, EINTR) only make the thread look at the word again. What else there is
            // is the end of the time, or a filter: a thread that cannot sleep looks at the requester.
            let result = Self::futex(word, libc::FUTEX_WAIT, expected, Some(&nap(number)));
            result != 0 && result != AGAIN && result != INTERRUPTED
        }

        #[inline(always)]
        fn wait_for(&self, word: &AtomicU32, expected: u32, timeout: Self::Timeout) {
            let seconds = c_long::try_from(timeout.as_secs()).unwrap_or(c_long::MAX);
            let time = [seconds, timeout.subsec_nanos().cast_signed().into()];
            // Early returns are as good as late ones.
            let _ = Self::futex(word, libc::FUTEX_WAIT, expected, Some(&time));
        }

        #[inline(always)]
        fn wake_one(&self, word: &AtomicU32) {
            // A thread that is not woken, because a filter forbids it, looks again.
            let _ = Self::futex(word, libc::FUTEX_WAKE, 1, None);
        }

        #[inline(always)]
        fn wake_all(&self, word: &AtomicU32) {
            let _ = Self::futex(word, libc::FUTEX_WAKE, i32::MAX as u32, None);
        }
    }

    /// How often a thread gives way to others before it sleeps.
    const YIELDS: u32 = 8;
    /// The same where each thread may have a processor of its own. No other thread runs there, and it takes
    /// some 15 µs: as long as a signal is under way to a processor that sleeps.
    const YIELDS_ALONE: u32 = 50;
    /// How many threads on a processor give way to each other: those that come last. The first of more would
    /// have many turns for nothing, and each finds its memory in no cache.
    const LAST: usize = 64;
    /// The longest that a requester gives way.
    const LONGEST: Duration = Duration::from_micros(50);
    /// A turn that takes longer: a thread that computes has had the processor.
    const SLOW: Duration = Duration::from_micros(500);
    /// Bounds how many operations do without, at 2⁴ − 1.
    const MOST_VAIN: u32 = 4;

    /// The kernel, but each sleep is put off: the thread looks at the word, and gives way to another one, some
    /// times. What it waits for has often come by then, and then its sleep and its wake, some 4 µs, are one
    /// switch of threads, about 1 µs. The thread that it waits for may be in line for the same processor, which
    /// it would not get from one that only looks.
    ///
    /// A thread that computes takes a slice of milliseconds when another gives way to it, where one that sleeps
    /// would have the processor when it is woken. The requester finds that by the clock, and then none gives
    /// way any more, nor in the next operations: one, three, seven, fifteen, until it was of use again.
    ///
    /// One word says how often which threads give way: `the first that does not (24) | how often (8)`. It and
    /// what is kept beside it are hints, all accesses relaxed.
    #[derive(Clone, Copy)]
    pub(crate) struct Yielding<'a> {
        word: &'a AtomicU32,
    }

    /// What the threads of an operation share of it. The requester writes, before the gate opens.
    pub(crate) struct Yields {
        word: AtomicU32,
        /// What the word was set to for the last operation.
        set: AtomicU32,
        /// Operations in a row in which it was set to 0 again, at most [`MOST_VAIN`].
        vain: AtomicU32,
        /// Operations still to do without.
        left_out: AtomicU32,
    }

    impl Yields {
        pub(crate) const fn new() -> Self {
            Self {
                word: AtomicU32::new(0),
                set: AtomicU32::new(0),
                vain: AtomicU32::new(0),
                left_out: AtomicU32::new(0),
            }
        }

        #[inline(always)]
        pub(crate) fn system(&self) -> Yielding<'_> {
            Yielding { word: &self.word }
        }

        /// For an operation on `threads` threads, the requester included, where there are so many processors.
        /// `holds`: threads wait in it. Where only the requester does, it sleeps, and leaves the processors to
        /// those that it waits for, unless each may have its own.
        pub(crate) fn begin(&self, threads: usize, processors: usize, holds: bool) {
            let mut left_out = self.left_out.load(Ordering::Relaxed);
            if self.set.load(Ordering::Relaxed) != 0 {
                let was_of_use = self.word.load(Ordering::Relaxed) != 0;
                let vain = self.vain.load(Ordering::Relaxed);
                let vain = if was_of_use { 0 } else { MOST_VAIN.min(vain + 1) };
                self.vain.store(vain, Ordering::Relaxed);
                left_out = (1 << vain) - 1;
            }
            self.left_out.store(left_out.saturating_sub(1), Ordering::Relaxed);
            let of_use = holds || threads <= processors;
            let word = if left_out == 0 && of_use { among(threads, processors) } else { 0 };
            self.set.store(word, Ordering::Relaxed);
            self.word.store(word, Ordering::Relaxed);
        }
    }

    fn among(threads: usize, processors: usize) -> u32 {
        let yields = if threads <= processors { YIELDS_ALONE } else { YIELDS };
        (threads.saturating_sub(LAST * processors) as u32) << 8 | yields
    }

    impl Yielding<'_> {
        /// Gives way to other threads, as often as it may, `until` it is time to go on. Whether it was.
        #[inline(always)]
        pub(crate) fn give_way(self, until: impl Fn() -> bool) -> bool {
            let mut turn = 0;
            while turn < self.word.load(Ordering::Relaxed) & 0xff {
                if until() {
                    return true;
                }
                give_way();
                turn += 1;
            }
            false
        }

        /// The same for the requester, which looks at the clock.
        fn give_way_in_time(self, until: impl Fn() -> bool, now: impl Fn() -> Instant) -> bool {
            let start = now();
            let last = Cell::new(start);
            let is_over = || {
                let now = now();
                if now.saturating_duration_since(last.replace(now)) >= SLOW {
                    self.word.store(0, Ordering::Relaxed);
                }
                until() || now.saturating_duration_since(start) >= LONGEST
            };
            self.give_way(is_over) && until()
        }
    }

    /// Lets another thread have the processor, if one waits for it. A filter may refuse it.
    #[inline(always)]
    fn give_way() {
        // SAFETY: no arguments.
        let _ = unsafe { syscall_raw(libc::SYS_sched_yield, [0; 6]) };
    }

    impl System for Yielding<'_> {
        type Timeout = Duration;

        #[inline(always)]
        fn wait(&self, word: &AtomicU32, expected: u32, number: u32) -> bool {
            // Relaxed: the caller looks again.
            let changed = || word.load(Ordering::Relaxed) != expected;
            let before = self.word.load(Ordering::Relaxed) >> 8;
            !(number > before && self.give_way(changed)) && Kernel.wait(word, expected, number)
        }

        #[inline(always)]
        fn wait_for(&self, word: &AtomicU32, expected: u32, timeout: Self::Timeout) {
            let changed = || word.load(Ordering::Relaxed) != expected;
            // For many it waits long.
            let few = self.word.load(Ordering::Relaxed) >> 8 == 0;
            if !(few && self.give_way_in_time(changed, Instant::now)) {
                Kernel.wait_for(word, expected, timeout);
            }
        }

        #[inline(always)]
        fn wake_one(&self, word: &AtomicU32) {
            Kernel.wake_one(word);
        }

        #[inline(always)]
        fn wake_all(&self, word: &AtomicU32) {
            Kernel.wake_all(word);
        }
    }

    /// How many processors a thread may run on, as the first operation found; 1 where the kernel does not tell.
    /// `std`'s function reads files, which an operation in a handler must not.
    pub(crate) fn processors() -> usize {
        static FOUND: AtomicUsize = AtomicUsize::new(0);

        // Relaxed: only the number is handed over, and any of them will do.
        let found = FOUND.load(Ordering::Relaxed);
        if found != 0 {
            return found;
        }
        let found = count_processors();
        FOUND.store(found, Ordering::Relaxed);
        found
    }

    fn count_processors() -> usize {
        let mut set = [0_u64; 16];
        let args = [0, size_of_val(&set), (&raw mut set).expose_provenance(), 0, 0, 0];
        // SAFETY: the kernel writes no more than the set.
        let _ = unsafe { syscall_raw(libc::SYS_sched_getaffinity, args) };
        set.iter().map(|word| word.count_ones() as usize).sum::<usize>().max(1)
    }

    /// How long a held thread sleeps without a look, as the kernel takes it. The later it joined the longer:
    /// if all looked equally often, thousands of them would leave no processor to those that they wait for.
    #[inline(always)]
    fn nap(number: u32) -> [c_long; 2] {
        let milliseconds = (LOOK_AT_REQUESTER + LOOK_LATER * number).cast_signed();
        [(milliseconds / 1000).into(), (milliseconds % 1000 * 1_000_000).into()]
    }

    const AGAIN: isize = -(libc::EAGAIN as isize);
    const INTERRUPTED: isize = -(libc::EINTR as isize);

    #[cfg(test)]
    mod tests {
        use super::*;

        /// Thousands that give way to each other would take turns for nothing.
        #[test]
        fn only_the_last_threads_give_way() {
            assert!(processors() >= 1);
            let often = |word: u32| word & 0xff;
            let before = |word: u32| word >> 8;
            let (alone, few) = (among(2, 2), among(2 * LAST, 2));
            assert!(often(alone) > often(few) && often(few) > 0);
            let words = [few, among(2 * LAST + 1, 2), among(1000, 2)];
            assert_eq!(words.map(before), [0, 1, 1000 - 2 * LAST as u32]);
            assert!(before(among(crate::threads::SLOTS, 1)) > crate::threads::SLOTS as u32 / 2);
            // It ends by itself, and then sleeps.
            let yields = Yields::new();
            yields.begin(10, 2, true);
            let looks = Cell::new(0);
            let never = || {
                looks.set(looks.get() + 1);
                false
            };
            assert!(!yields.system().give_way(never));
            assert_eq!(looks.get(), YIELDS);
            assert!(yields.system().give_way(|| true));
            yields.system().wait_for(&AtomicU32::new(0), 0, Duration::from_micros(1));
            let first_look = |threads| {
                let yields = Yields::new();
                yields.begin(threads, 2, false);
                !yields.system().give_way(|| true)
            };
            assert_eq!([2, 3].map(first_look), [false, true], "none is held");
        }

        /// Where threads compute, each has a slice of milliseconds in every turn.
        #[test]
        fn after_a_slow_turn_threads_sleep_at_once() {
            let yields = Yields::new();
            let start = Instant::now();
            let turns = |a_turn| {
                let (clock, turns) = (Cell::new(start), Cell::new(0));
                let now = || {
                    clock.set(clock.get() + a_turn);
                    clock.get()
                };
                let never = || {
                    turns.set(turns.get() + 1);
                    false
                };
                assert!(!yields.system().give_way_in_time(never, now));
                turns.get()
            };
            yields.begin(10, 2, true);
            assert_eq!(turns(Duration::ZERO), YIELDS);
            assert!(turns(LONGEST / 2) < YIELDS, "it sleeps when its time is over");
            let mut made = Vec::new();
            for operation in 0..60 {
                yields.begin(10, 2, true);
                if turns(SLOW) > 0 {
                    made.push(operation);
                }
                assert_eq!(turns(Duration::ZERO), 0, "others give way still");
            }
            assert_eq!(made, [0, 2, 6, 14, 30, 46], "one, three, seven, fifteen do without");
            while made.last() == Some(&46) {
                yields.begin(10, 2, true);
                made.extend((turns(Duration::ZERO) > 0).then_some(60));
            }
            yields.begin(10, 2, true);
            assert!(turns(Duration::ZERO) > 0, "the one before was of use");
        }

        /// What the held threads cost together, while the requester waits for more to come, has a bound.
        #[test]
        fn however_many_are_held_few_of_them_look_at_the_requester_in_a_second() {
            let in_milliseconds = |number| {
                let [seconds, nanoseconds] = nap(number);
                assert!((0..1_000_000_000).contains(&nanoseconds), "{number}: {nanoseconds}");
                seconds as u64 * 1000 + nanoseconds as u64 / 1_000_000
            };
            assert_eq!([1, 950].map(in_milliseconds), [51, 1000]);
            let held = crate::threads::SLOTS as u32;
            let in_a_second: u64 =
                (1..=held).map(|number| 1000 / in_milliseconds(number).max(1)).sum();
            assert!(in_a_second < 6000, "{in_a_second} looks");
            assert!(in_milliseconds(held) < 20_000);
        }
    }
}
