//! The calls of an operation, where held threads find them.
//!
//! The owner writes the calls before the gate opens and the expected results before it commands
//! to run; both are published by the release of the command (I3 in `hold`). Relaxed accesses are
//! enough. The types are atomic so that a stray handler could at worst read a mixture, never be
//! undefined; by I5 there is none while they are written.

use core::ffi::{c_long, c_void};
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicIsize, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use sigctx::sys::{Errno, Tid, syscall_raw};

/// The most calls in one batch.
pub const MAX_CALLS: usize = 16;
/// How many threads with a different result are named.
pub(crate) const NAMED: usize = 4;

/// A function that runs on every thread.
pub(crate) type Function = unsafe extern "C" fn(*mut c_void);

/// One call of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    /// A system call.
    Syscall(c_long, [usize; 6]),
    /// A function and its argument. Its result is always 0.
    Function(Function, *mut c_void),
}

impl Call {
    /// Makes the call on this thread.
    #[inline(always)]
    fn run(&self) -> isize {
        match *self {
            // SAFETY: who built the call promised that it may run on every thread.
            Self::Syscall(number, args) => unsafe { syscall_raw(number, args) },
            Self::Function(function, data) => {
                // SAFETY: who built the call promised that it may run on every thread.
                unsafe { function(data) };
                0
            }
        }
    }
}

/// Makes the calls on the owner, in order, up to the first that the kernel refuses: what it
/// refuses once is not tried on another thread. What follows for everybody else is exactly what
/// went well here. `seen` gets each result.
pub(crate) fn rehearse(calls: &[Call], mut seen: impl FnMut(usize, isize)) -> Rehearsal {
    let mut values = [0; MAX_CALLS];
    for (index, (call, value)) in calls.iter().zip(&mut values).enumerate() {
        *value = call.run();
        if let -4095..=-1 = *value {
            let refused = Some(Errno::new(-*value as i32));
            return Rehearsal { applied: index, values, refused };
        }
        seen(index, *value);
    }
    Rehearsal { applied: calls.len(), values, refused: None }
}

struct Slot {
    function: AtomicPtr<c_void>,
    number: AtomicIsize,
    args: [AtomicUsize; 6],
    expected: AtomicIsize,
}

struct Different {
    tid: AtomicI32,
    call: AtomicU32,
    value: AtomicIsize,
}

/// The calls, what they returned on the owner, and who got something else.
pub(crate) struct Calls {
    slots: [Slot; MAX_CALLS],
    /// How many of the calls the held threads run.
    count: AtomicUsize,
    different: AtomicUsize,
    first: [Different; NAMED],
}

impl Slot {
    const fn new() -> Self {
        Self {
            function: AtomicPtr::new(ptr::null_mut()),
            number: AtomicIsize::new(0),
            args: [const { AtomicUsize::new(0) }; 6],
            expected: AtomicIsize::new(0),
        }
    }

    fn set(&self, call: &Call) {
        match *call {
            Call::Syscall(number, args) => {
                self.function.store(ptr::null_mut(), Ordering::Relaxed);
                self.number.store(number as isize, Ordering::Relaxed);
                for (slot, arg) in self.args.iter().zip(args) {
                    slot.store(arg, Ordering::Relaxed);
                }
            }
            Call::Function(function, data) => {
                self.function.store(function as *mut c_void, Ordering::Relaxed);
                self.args[0].store(data.expose_provenance(), Ordering::Relaxed);
            }
        }
    }

    #[inline(always)]
    fn get(&self) -> Call {
        let [first, ..] = &self.args;
        let function = self.function.load(Ordering::Relaxed);
        if function.is_null() {
            let number = self.number.load(Ordering::Relaxed) as c_long;
            let arg = |slot: &AtomicUsize| slot.load(Ordering::Relaxed);
            Call::Syscall(number, self.args.each_ref().map(arg))
        } else {
            // SAFETY: a non-null word was stored from a `Function` by `set`.
            let function = unsafe { core::mem::transmute::<*mut c_void, Function>(function) };
            Call::Function(
                function,
                ptr::with_exposed_provenance_mut(first.load(Ordering::Relaxed)),
            )
        }
    }
}

impl Calls {
    pub(crate) const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; MAX_CALLS],
            count: AtomicUsize::new(0),
            different: AtomicUsize::new(0),
            first: [const {
                Different {
                    tid: AtomicI32::new(0),
                    call: AtomicU32::new(0),
                    value: AtomicIsize::new(0),
                }
            }; NAMED],
        }
    }

    /// Takes the calls of a new operation. Only while no thread can have joined.
    pub(crate) fn load(&self, calls: &[Call]) {
        for (slot, call) in self.slots.iter().zip(calls) {
            slot.set(call);
        }
        self.count.store(calls.len(), Ordering::Relaxed);
        self.different.store(0, Ordering::Relaxed);
    }

    /// Keeps what a call returned on the owner.
    pub(crate) fn expect(&self, call: usize, value: isize) {
        if let Some(slot) = self.slots.get(call) {
            slot.expected.store(value, Ordering::Relaxed);
        }
    }

    /// Says how many of the calls the held threads are to run.
    pub(crate) fn limit(&self, count: usize) {
        self.count.store(count, Ordering::Relaxed);
    }

    /// Runs the calls on a held thread, up to the first whose result differs from the owner's.
    #[inline(always)]
    pub(crate) fn run(&self, tid: Tid) {
        let count = self.count.load(Ordering::Relaxed);
        for (index, slot) in self.slots.iter().take(count).enumerate() {
            let value = slot.get().run();
            if value != slot.expected.load(Ordering::Relaxed) {
                let number = self.different.fetch_add(1, Ordering::Relaxed);
                if let Some(first) = self.first.get(number) {
                    first.tid.store(tid, Ordering::Relaxed);
                    first.call.store(index as u32, Ordering::Relaxed);
                    first.value.store(value, Ordering::Relaxed);
                }
                break;
            }
        }
    }

    /// Who got a different result: how many threads, and the first of them.
    pub(crate) fn different(&self) -> (usize, impl Iterator<Item = (Tid, usize, isize)>) {
        let count = self.different.load(Ordering::Relaxed);
        let first = self.first.iter().take(count).map(|first| {
            (
                first.tid.load(Ordering::Relaxed),
                first.call.load(Ordering::Relaxed) as usize,
                first.value.load(Ordering::Relaxed),
            )
        });
        (count, first)
    }
}

/// How the calls went on the owner.
pub(crate) struct Rehearsal {
    pub(crate) applied: usize,
    pub(crate) values: [isize; MAX_CALLS],
    pub(crate) refused: Option<Errno>,
}
