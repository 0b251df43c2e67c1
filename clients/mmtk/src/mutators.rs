//! Four kinds of threads that make garbage, and look at what they have kept.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crate::thread::{Attached, Env, Foreign};
use crate::vm::counts;

/// What a thread does between its allocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Polls.
    Polls,
    /// Computes in registered code, where it never polls: a stop has it nudged.
    Computes,
    /// Waits in `read(2)`, in a safe region, with its objects in its roots.
    Reads,
    /// Sorts by foreign code, which calls back for each comparison.
    CallsBack,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Polls, Self::Computes, Self::Reads, Self::CallsBack];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Polls => "polls",
            Self::Computes => "computes",
            Self::Reads => "reads",
            Self::CallsBack => "calls-back",
        }
    }
}

/// What a thread shares with the main thread.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) kind: Kind,
    pub(crate) seed: u64,
    /// What [`Kind::Reads`] reads from.
    pub(crate) pipe: OwnedFd,
    /// How many bytes it has read.
    pub(crate) read: AtomicUsize,
}

/// Set when enough was collected.
pub(crate) static OVER: AtomicBool = AtomicBool::new(false);

/// How many lists a thread keeps, and the longest.
const LISTS: usize = 32;
const LENGTH: u64 = 400;
/// The root for what callbacks make.
const SCRATCH: usize = LISTS;
/// How many objects are sorted at a time.
const SORTED: usize = 24;
/// A millisecond of computing, or so.
const STEPS: u64 = 1 << 20;

/// The body of a thread.
///
/// # Panics
///
/// If an object is not what it was, or a system call was interrupted by a stop.
pub(crate) fn run(work: &Work) {
    let mut attached = Attached::new(LISTS + 1).expect("the world runs, and has room");
    let mut env = attached.env();
    let mut lists = Lists { random: work.seed, made: [(0, 0); LISTS] };
    while !OVER.load(Relaxed) {
        lists.change_one(&mut env);
        match work.kind {
            Kind::Polls => env.poll(),
            Kind::Computes => lists.random = compute(lists.random, STEPS),
            Kind::Reads => {
                if env.blocking(|| read(&work.pipe)) == 0 {
                    break;
                }
                work.read.fetch_add(1, Relaxed);
            }
            Kind::CallsBack => lists.sort_one(&mut env),
        }
    }
    for at in 0..LISTS {
        lists.look_at(&env, at);
    }
}

/// Numbers that a seed determines (xorshift64).
fn next(mut number: u64) -> u64 {
    number ^= number << 13;
    number ^= number >> 7;
    number ^ (number << 17)
}

/// [`next`], many times; every instruction is a safe point.
#[unsafe(link_section = "preemptible")]
#[inline(never)]
fn compute(mut number: u64, steps: u64) -> u64 {
    let mut step = 0;
    while step < steps {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        step += 1;
    }
    number
}

/// Reads one byte: 1, or 0 at the end.
fn read(pipe: &OwnedFd) -> isize {
    let mut byte = 0_u8;
    // SAFETY: room for one byte, and a descriptor that is open.
    let read = unsafe { libc::read(pipe.as_raw_fd(), (&raw mut byte).cast(), 1) };
    assert!(read >= 0, "a stop has interrupted it: {}", io::Error::last_os_error());
    read
}

/// What a thread knows of its lists without looking at them.
#[derive(Debug)]
struct Lists {
    random: u64,
    /// The seed and the length of each.
    made: [(u64, usize); LISTS],
}

impl Lists {
    fn pick(&mut self) -> usize {
        self.random = next(self.random);
        (self.random >> 33) as usize % LISTS
    }

    /// Looks at a list for the last time, and makes another.
    fn change_one(&mut self, env: &mut Env<'_>) {
        let at = self.pick();
        self.look_at(env, at);
        env.clear(at);
        let seed = self.random;
        let length = (seed >> 20) % LENGTH + 1;
        let mut value = seed;
        for _ in 0..length {
            value = next(value);
            env.push(at, value);
        }
        self.made[at] = (seed, length as usize);
    }

    /// A list has the values that it was made with, and no others.
    fn look_at(&self, env: &Env<'_>, at: usize) {
        let (seed, length) = self.made[at];
        let values = std::iter::successors(Some(next(seed)), |&value| Some(next(value)));
        let mut expected: Vec<_> = values.take(length).collect();
        expected.reverse();
        assert!(env.values(at).eq(expected), "list {at}, made from {seed:#x}, has changed");
        counts().looked_at.fetch_add(length, Relaxed);
    }

    /// Sorts what a list begins with: the places of objects, by the values of the objects.
    fn sort_one(&mut self, env: &mut Env<'_>) {
        let list = self.pick();
        let mut places: Vec<usize> = (0..self.made[list].1.min(SORTED)).collect();
        env.foreign(|foreign| sort(&mut places, &mut Sorting { foreign, list }));
        env.clear(SCRATCH);
        let values: Vec<_> = env.values(list).take(SORTED).collect();
        assert!(places.is_sorted_by_key(|&place| values[place]), "list {list} is sorted wrongly");
    }
}

/// What a comparison has to know.
struct Sorting<'a, 'f, 'm> {
    foreign: &'a mut Foreign<'f, 'm>,
    list: usize,
}

/// Sorts with the C library's code.
fn sort(places: &mut [usize], by: &mut Sorting<'_, '_, '_>) {
    let (size, by) = (size_of::<usize>(), (&raw mut *by).cast());
    // SAFETY: as many places of that size, and `compare` takes two of them and this.
    unsafe { libc::qsort_r(places.as_mut_ptr().cast(), places.len(), size, Some(compare), by) };
}

/// Compares two objects by their values, in the VM. Makes garbage.
///
/// # Safety
///
/// Two places, and a [`Sorting`].
unsafe extern "C" fn compare(a: *const c_void, b: *const c_void, by: *mut c_void) -> c_int {
    // SAFETY: the caller's obligation.
    let a = unsafe { *a.cast::<usize>() };
    // SAFETY: the caller's obligation.
    let b = unsafe { *b.cast::<usize>() };
    // SAFETY: the caller's obligation, and nothing else uses it while the foreign code runs.
    let by = unsafe { &mut *by.cast::<Sorting<'_, '_, '_>>() };
    by.foreign.call_back(|env| {
        env.push(SCRATCH, (a ^ b) as u64);
        let value = |place| env.values(by.list).nth(place);
        value(a).cmp(&value(b)) as c_int
    })
}
