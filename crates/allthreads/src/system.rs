//! What the protocol needs from the kernel: sleeping and waking on a word.

#[cfg(not(loom))]
pub(crate) use kernel::{Kernel, Yielding, processors};

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
    use core::ffi::{c_int, c_long};
    use core::ptr;
    use core::sync::atomic::{AtomicU32, Ordering};
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
    /// The most threads on a processor that give way to each other. More of them have left each other's caches
    /// when their turns come again, and a turn for nothing costs as much as a sleep.
    const CROWD: usize = 128;
    /// The longest that a requester gives way. Where threads compute, each takes a slice of milliseconds, and a
    /// sleeper that is woken has the processor sooner.
    const PATIENCE: Duration = Duration::from_micros(50);

    /// The kernel, but each sleep is put off: the thread looks at the word, and gives way to another one, some
    /// times. What it waits for has often come by then, and then its sleep and its wake, some 4 µs, are one
    /// switch of threads, about 1 µs. The thread that it waits for may be in line for the same processor, which
    /// it would not get from one that only looks.
    #[derive(Clone, Copy)]
    pub(crate) struct Yielding {
        yields: u32,
    }

    impl Yielding {
        /// For an operation on `threads` threads, the requester included, where there are so many processors.
        pub(crate) fn yields(threads: usize, processors: usize) -> u32 {
            if threads <= processors {
                YIELDS_ALONE
            } else if threads <= CROWD * processors {
                YIELDS
            } else {
                0
            }
        }

        #[inline(always)]
        pub(crate) fn new(yields: u32) -> Self {
            Self { yields }
        }

        /// Gives way to other threads, as often as it may, `until` it is time to go on. Whether it was.
        #[inline(always)]
        pub(crate) fn give_way(self, until: impl Fn() -> bool) -> bool {
            for _ in 0..self.yields {
                if until() {
                    return true;
                }
                give_way();
            }
            false
        }
    }

    /// Lets another thread have the processor, if one waits for it. A filter may refuse it.
    #[inline(always)]
    fn give_way() {
        // SAFETY: no arguments.
        let _ = unsafe { syscall_raw(libc::SYS_sched_yield, [0; 6]) };
    }

    impl System for Yielding {
        type Timeout = Duration;

        #[inline(always)]
        fn wait(&self, word: &AtomicU32, expected: u32, number: u32) -> bool {
            // Relaxed: the caller looks again.
            let changed = || word.load(Ordering::Relaxed) != expected;
            !self.give_way(changed) && Kernel.wait(word, expected, number)
        }

        #[inline(always)]
        fn wait_for(&self, word: &AtomicU32, expected: u32, timeout: Self::Timeout) {
            let (start, patience) = (Instant::now(), PATIENCE.min(timeout));
            let changed = || word.load(Ordering::Relaxed) != expected;
            if !self.give_way(|| changed() || start.elapsed() >= patience) || !changed() {
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

    /// How many processors the calling thread may run on; 1 where the kernel does not tell. `std`'s function
    /// reads files, which an operation in a handler must not.
    pub(crate) fn processors() -> usize {
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
        use core::cell::Cell;

        use super::*;

        /// Thousands that give way to each other would take turns for nothing.
        #[test]
        fn threads_give_way_only_where_their_turns_come_soon() {
            let often = Yielding::yields(2, 2);
            let some = Yielding::yields(3, 2);
            assert!(often > some && some > 0);
            assert_eq!(Yielding::yields(2 * CROWD, 2), some);
            assert_eq!((Yielding::yields(2 * CROWD + 1, 2), Yielding::yields(1000, 1)), (0, 0));
            assert!(processors() >= 1);
            // It ends by itself, and then sleeps.
            let looks = Cell::new(0);
            let never = || {
                looks.set(looks.get() + 1);
                false
            };
            assert!(!Yielding::new(some).give_way(never));
            assert_eq!(looks.get(), some);
            assert!(Yielding::new(some).give_way(|| true));
            Yielding::new(some).wait_for(&AtomicU32::new(0), 0, Duration::from_micros(1));
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
