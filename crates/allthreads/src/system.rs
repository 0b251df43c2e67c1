//! What the protocol needs from the kernel: sleeping and waking on a word.

#[cfg(not(loom))]
pub(crate) use kernel::{Kernel, Spinning, processors};

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
    use core::hint::spin_loop;
    use core::ptr;
    use core::sync::atomic::{AtomicU32, Ordering};
    use core::time::Duration;

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

    /// How often a thread looks at a word before it sleeps, in an operation on few threads: up to some 20 µs,
    /// which is what a sleep and a wake take, and as long as a signal is under way to a processor that sleeps.
    const LOOKS: u32 = 500;

    /// The kernel, but with a bounded time of looking at the word before each sleep. For an operation on no more
    /// threads than there are processors: elsewhere a thread that looks keeps a processor from those that it
    /// waits for.
    #[derive(Clone, Copy)]
    pub(crate) struct Spinning {
        looks: u32,
    }

    impl Spinning {
        /// For an operation on `threads` threads, the requester included, where there are so many processors.
        pub(crate) fn looks(threads: usize, processors: usize) -> u32 {
            if threads <= processors { LOOKS } else { 0 }
        }

        #[inline(always)]
        pub(crate) fn new(looks: u32) -> Self {
            Self { looks }
        }

        /// Whether the word changes soon.
        #[inline(always)]
        fn changes(self, word: &AtomicU32, from: u32) -> bool {
            for _ in 0..self.looks {
                // Relaxed: the caller looks again.
                if word.load(Ordering::Relaxed) != from {
                    return true;
                }
                spin_loop();
            }
            false
        }
    }

    impl System for Spinning {
        type Timeout = Duration;

        #[inline(always)]
        fn wait(&self, word: &AtomicU32, expected: u32, number: u32) -> bool {
            !self.changes(word, expected) && Kernel.wait(word, expected, number)
        }

        #[inline(always)]
        fn wait_for(&self, word: &AtomicU32, expected: u32, timeout: Self::Timeout) {
            if !self.changes(word, expected) {
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
        use super::*;

        /// A thread that spins takes a processor from one that is to come, unless there is one for each.
        #[test]
        fn threads_spin_only_where_each_has_a_processor() {
            assert_ne!(Spinning::looks(2, 2), 0);
            assert_eq!((Spinning::looks(3, 2), Spinning::looks(2, 1)), (0, 0));
            assert!(processors() >= 1);
            let word = AtomicU32::new(0);
            let spinning = Spinning::new(Spinning::looks(2, 2));
            // It ends by itself, and then sleeps.
            assert!(!spinning.changes(&word, 0) && spinning.changes(&word, 1));
            spinning.wait_for(&word, 0, Duration::from_micros(1));
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
