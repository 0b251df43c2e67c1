//! The calls of an operation, where held threads find them.
//!
//! The requester writes the calls before the gate opens, and the expected results before it tells the held
//! threads to run them. The release of the command publishes both (I3 in `hold`), so relaxed accesses are
//! enough. By I5 no handler reads while the requester writes; the types are atomic so that a stray one
//! could at worst read a mixture, which is no undefined behaviour.

use core::ffi::{c_int, c_long, c_void};
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicIsize, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use sigctx::sys::{Errno, Tid, id_calls, syscall_raw};

use crate::options::Results;

/// The most calls in one batch.
pub const MAX_CALLS: usize = 64;
/// How many threads with a different result are named.
pub(crate) const NAMED: usize = 4;

/// A function that runs on every thread.
pub(crate) type Function = unsafe extern "C" fn(*mut c_void);

/// One call of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    /// A system call.
    Syscall(c_long, [usize; 6]),
    /// A system call that only the requester makes, because it changes the process.
    Once(c_long, [usize; 6]),
    /// A function and its argument. Its result is always 0.
    Function(Function, *mut c_void),
}

// SAFETY: the builder of the call promised that it may run on every thread, with its pointers.
unsafe impl Send for Call {}
// SAFETY: it is only read.
unsafe impl Sync for Call {}

impl Call {
    /// What fills a batch up.
    pub(crate) const NONE: Self = Self::Once(0, [0; 6]);

    /// Makes the call on this thread.
    #[inline(always)]
    fn run(&self) -> isize {
        match *self {
            // SAFETY: the builder of the call promised that it may run on every thread.
            Self::Syscall(number, args) | Self::Once(number, args) => unsafe {
                syscall_raw(number, args)
            },
            Self::Function(function, data) => {
                // SAFETY: the builder of the call promised that it may run on every thread.
                unsafe { function(data) };
                0
            }
        }
    }

    /// Whether the thread's ids and capabilities decide whether it may make this call.
    pub(crate) fn needs_credentials(&self) -> bool {
        let Self::Syscall(number, args) = *self else { return false };
        let option = args[0] as c_int;
        if number == libc::SYS_prctl {
            return PRIVILEGED_OPTIONS.contains(&option);
        }
        PRIVILEGED.contains(&number)
    }
}

/// System calls that change ids or capabilities, and need some for it.
const PRIVILEGED: [c_long; 13] = [
    id_calls::SETGROUPS,
    id_calls::SETRESGID,
    id_calls::SETRESUID,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setregid,
    libc::SYS_setreuid,
    libc::SYS_setgid,
    libc::SYS_setuid,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_capset,
];

/// Options of `prctl` that do the same.
const PRIVILEGED_OPTIONS: [c_int; 4] =
    [libc::PR_CAPBSET_DROP, libc::PR_SET_SECUREBITS, libc::PR_CAP_AMBIENT, libc::PR_SET_KEEPCAPS];

/// What a call of a batch does, in words for an error: `drop_bounding(63)`.
///
/// A call for which [`Batch`](crate::Batch) has a method has the method's name, however it was added; any
/// other has its number.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallName {
    /// -1 for a function.
    number: i32,
    option: u32,
    value: u32,
}

impl CallName {
    pub(crate) const UNKNOWN: Self = Self { number: -1, option: 1, value: 0 };

    pub(crate) fn of(calls: &[Call], index: usize) -> Self {
        match calls.get(index) {
            Some(Call::Syscall(number, args) | Call::Once(number, args)) => {
                Self { number: *number as i32, option: args[0] as u32, value: args[1] as u32 }
            }
            Some(Call::Function(..)) => Self { number: -1, option: 0, value: 0 },
            None => Self::UNKNOWN,
        }
    }

    /// The number of the system call; `None` for a function.
    #[must_use]
    pub fn number(&self) -> Option<c_long> {
        (self.number >= 0).then_some(self.number.into())
    }
}

impl fmt::Display for CallName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.number < 0 {
            return f.pad(if *self == Self::UNKNOWN { "a call" } else { "a function" });
        }
        match self.number.into() {
            id_calls::SETGROUPS => f.pad("set_groups"),
            id_calls::SETRESGID => f.pad("set_resgid"),
            id_calls::SETRESUID => f.pad("set_resuid"),
            libc::SYS_chroot => f.pad("chroot"),
            libc::SYS_chdir => f.pad("chdir"),
            libc::SYS_prctl => match self.option as c_int {
                libc::PR_SET_NO_NEW_PRIVS => f.pad("no_new_privs"),
                libc::PR_SET_KEEPCAPS if self.value == 0 => f.pad("keep_caps(Off)"),
                libc::PR_SET_KEEPCAPS => f.pad("keep_caps(On)"),
                libc::PR_CAPBSET_DROP => write!(f, "drop_bounding({})", self.value),
                option => write!(f, "prctl({option})"),
            },
            number => write!(f, "system call {number}"),
        }
    }
}

impl fmt::Debug for CallName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether what a system call returned is an error.
#[inline(always)]
fn is_error(value: isize) -> bool {
    matches!(value, -4095..=-1)
}

/// Makes the calls on the requester, in order, up to the first that the kernel refuses. No other thread
/// tries that one: the others make exactly the calls that went well here. `seen` gets each result;
/// `function` runs a call that is a function.
pub(crate) fn rehearse(
    calls: &[Call],
    mut function: impl FnMut(usize, &dyn Fn() -> isize) -> isize,
    mut seen: impl FnMut(usize, isize),
) -> Rehearsal {
    let mut values = [0; MAX_CALLS];
    for (index, (call, value)) in calls.iter().zip(&mut values).enumerate() {
        *value = match call {
            Call::Function(..) => function(index, &|| call.run()),
            _ => call.run(),
        };
        if is_error(*value) {
            let refused = Some(Errno::new(-*value as i32));
            return Rehearsal { applied: index, values, refused };
        }
        seen(index, *value);
    }
    Rehearsal { applied: calls.len(), values, refused: None }
}

const SYSCALL: u32 = 0;
const ONCE: u32 = 1;
const FUNCTION: u32 = 2;

struct CallSlot {
    kind: AtomicU32,
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

/// The calls, their results on the requester, and the threads with other results.
pub(crate) struct Calls {
    slots: [CallSlot; MAX_CALLS],
    /// How many of the calls the held threads run.
    count: AtomicUsize,
    /// Not 0: any result that is no error is equal.
    success: AtomicU32,
    /// The requester, while it is to run one of the functions in its handler; else 0. Which one is in
    /// `own_call`.
    own: AtomicU32,
    own_call: AtomicUsize,
    different: AtomicUsize,
    first: [Different; NAMED],
}

impl CallSlot {
    const fn new() -> Self {
        Self {
            kind: AtomicU32::new(ONCE),
            function: AtomicPtr::new(ptr::null_mut()),
            number: AtomicIsize::new(0),
            args: [const { AtomicUsize::new(0) }; 6],
            expected: AtomicIsize::new(0),
        }
    }

    fn set(&self, call: &Call) {
        let kind = match *call {
            Call::Syscall(number, args) => {
                self.number.store(number as isize, Ordering::Relaxed);
                for (slot, arg) in self.args.iter().zip(args) {
                    slot.store(arg, Ordering::Relaxed);
                }
                SYSCALL
            }
            Call::Once(..) => ONCE,
            Call::Function(function, data) => {
                self.function.store(function as *mut c_void, Ordering::Relaxed);
                self.args[0].store(data.expose_provenance(), Ordering::Relaxed);
                FUNCTION
            }
        };
        self.kind.store(kind, Ordering::Relaxed);
    }

    /// The call; `None` when only the requester makes it.
    #[inline(always)]
    fn get(&self) -> Option<Call> {
        let [first, ..] = &self.args;
        match self.kind.load(Ordering::Relaxed) {
            SYSCALL => {
                let number = self.number.load(Ordering::Relaxed) as c_long;
                let arg = |slot: &AtomicUsize| slot.load(Ordering::Relaxed);
                Some(Call::Syscall(number, self.args.each_ref().map(arg)))
            }
            FUNCTION => {
                let function = self.function.load(Ordering::Relaxed);
                // SAFETY: stored from a `Function` by `set`, with this kind.
                let function = unsafe { core::mem::transmute::<*mut c_void, Function>(function) };
                let data = ptr::with_exposed_provenance_mut(first.load(Ordering::Relaxed));
                Some(Call::Function(function, data))
            }
            _ => None,
        }
    }
}

impl Calls {
    pub(crate) const fn new() -> Self {
        Self {
            slots: [const { CallSlot::new() }; MAX_CALLS],
            count: AtomicUsize::new(0),
            success: AtomicU32::new(0),
            own: AtomicU32::new(0),
            own_call: AtomicUsize::new(0),
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
    pub(crate) fn load(&self, calls: &[Call], results: Results) {
        self.success.store(u32::from(results == Results::Succeed), Ordering::Relaxed);
        self.own.store(0, Ordering::Relaxed);
        for (slot, call) in self.slots.iter().zip(calls) {
            slot.set(call);
        }
        self.count.store(calls.len(), Ordering::Relaxed);
        self.different.store(0, Ordering::Relaxed);
    }

    /// Keeps the result of a call on the requester.
    pub(crate) fn expect(&self, call: usize, value: isize) {
        if let Some(slot) = self.slots.get(call) {
            slot.expected.store(value, Ordering::Relaxed);
        }
    }

    /// Says how many of the calls the held threads are to run.
    pub(crate) fn limit(&self, count: usize) {
        self.count.store(count, Ordering::Relaxed);
    }

    /// Runs the calls on a held thread, up to the first whose result differs from the requester's.
    #[inline(always)]
    pub(crate) fn run(&self, tid: Tid) {
        let count = self.count.load(Ordering::Relaxed);
        let success = self.success.load(Ordering::Relaxed) != 0;
        for (index, slot) in self.slots.iter().take(count).enumerate() {
            let Some(call) = slot.get() else { continue };
            let value = call.run();
            let expected = slot.expected.load(Ordering::Relaxed);
            if if success { is_error(value) } else { value != expected } {
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

    /// Has the requester's handler run a call that is a function.
    pub(crate) fn ask_own(&self, requester: Tid, call: usize) {
        self.own_call.store(call, Ordering::Relaxed);
        self.own.store(requester as u32, Ordering::Relaxed);
    }

    /// Runs what `ask_own` asked for, if this thread is the requester: it reads its own writes.
    #[inline(always)]
    pub(crate) fn run_own(&self, tid: Tid) -> bool {
        if self.own.load(Ordering::Relaxed) != tid as u32 {
            return false;
        }
        self.own.store(0, Ordering::Relaxed);
        let slot = self.slots.get(self.own_call.load(Ordering::Relaxed));
        if let Some(call) = slot.and_then(CallSlot::get) {
            call.run();
        }
        true
    }

    /// Whether what `ask_own` asked for was done. If it was not, it will not be.
    pub(crate) fn was_own_run(&self) -> bool {
        self.own.swap(0, Ordering::Relaxed) == 0
    }

    /// The threads with a different result: how many, and the first of them.
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

/// How the calls went on the requester.
pub(crate) struct Rehearsal {
    pub(crate) applied: usize,
    pub(crate) values: [isize; MAX_CALLS],
    pub(crate) refused: Option<Errno>,
}
