//! An alternate signal stack that is large enough for nested handlers, with a guard page.
//!
//! `std` gives its threads 8 KiB, which one frame of a CPU with AMX fills alone. A handler that
//! injects a call needs an alternate stack: on the interrupted stack the copy of the frame would
//! overwrite the frame.

use core::ffi::c_int;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{self, size_of};
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::arch::{self, SignalStack};
use crate::sys::{self, Errno, MaskHow, SigSet};

/// The least size in bytes.
pub const MIN_SIZE: usize = 64 * 1024;

/// The calling thread's alternate stack, as long as this value lives. Dropping it puts the previous one
/// back.
///
/// # Signal safety
///
/// No method is async-signal-safe (AS-Unsafe), nor is dropping it, except [`bounds`](Self::bounds): a thread
/// that runs on an alternate stack cannot change it.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), sigctx::altstack::AltStackError> {
/// let stack = sigctx::altstack::AltStack::install()?;
/// assert!(stack.bounds().1 - stack.bounds().0 >= sigctx::altstack::MIN_SIZE);
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it puts the previous alternate stack back"]
pub struct AltStack {
    /// The guard page, followed by the stack.
    map: usize,
    length: usize,
    stack: SignalStack,
    previous: SignalStack,
    /// It is the alternate stack of this thread: neither `Send` nor `Sync`.
    _thread: PhantomData<*mut ()>,
}

/// How often an [`AltStack`] was installed or removed, on any thread.
static CHANGES: AtomicUsize = AtomicUsize::new(0);

impl AltStack {
    /// Maps a stack and makes it the calling thread's alternate stack.
    ///
    /// Its size is the larger of [`MIN_SIZE`] and four of the largest frames that the CPU can need
    /// (`AT_MINSIGSTKSZ`), plus the state that the kernel leaves out of that number and that can be live
    /// in one frame at a time: the matrix ZA of aarch64. Below is a guard page. A few dropped stacks are
    /// kept and used again, and are not cleared.
    ///
    /// # Memory
    ///
    /// The pages of the largest frame, at the top, have memory from the start: one page of 4 KiB on most
    /// CPUs, also with AVX-512, three with AMX, up to 19 with the matrix ZA. So the kernel needs none when a
    /// signal arrives. It cannot wait for memory there as it does for a program: where it cannot write the
    /// frame it ends the process with `SIGSEGV`.
    ///
    /// The other pages get memory when they are touched first. The handler's own code is a program's, which
    /// the kernel lets wait. For the frame of a signal that interrupts a handler nothing is promised, as on
    /// any other stack; nor where the system has swapped the pages out, since they are not locked, or a
    /// process that has forked shares them with its child, until each has written to its own.
    ///
    /// # Errors
    ///
    /// [`AltStackError`]: there is no memory, or the thread runs on an alternate stack (`EPERM`).
    ///
    /// # References
    ///
    /// `sigaltstack(2)`, `getauxval(3)`, `madvise(2)`, `MADV_POPULATE_WRITE`
    pub fn install() -> Result<Self, AltStackError> {
        let page = page_size();
        let told = auxiliary(libc::AT_MINSIGSTKSZ);
        let size = (MIN_SIZE.max(4 * told) + arch::left_out(told)).next_multiple_of(page);
        let length = size + page;
        let map = match pooled() {
            Some(map) => map,
            None => new(length, page)?,
        };
        let stack = SignalStack { sp: map + page, flags: 0, size };
        // SAFETY: the mapping outlives its use: `drop` takes it back first.
        let installed = unsafe { set(&stack) };
        // Relaxed here, in `drop` and in `changes`: what is compared is the same thread's, or that
        // of a task that a scheduler orders when it changes threads.
        CHANGES.fetch_add(1, Ordering::Relaxed);
        match installed {
            Ok(previous) => Ok(Self { map, length, stack, previous, _thread: PhantomData }),
            Err(errno) => {
                give_back(map, length);
                Err(AltStackError { step: Step::Install, errno })
            }
        }
    }

    /// The bounds, lowest address first, without the guard page.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn bounds(&self) -> (usize, usize) {
        (self.stack.sp, self.stack.sp + self.stack.size)
    }
}

impl AltStack {
    /// Puts the previous alternate stack back, as dropping does, for a caller that has all signals
    /// blocked: spares two system calls.
    ///
    /// # Safety
    ///
    /// The calling thread has all signals blocked whose handlers inject a call, or move what they
    /// interrupted to another thread.
    pub unsafe fn remove_blocked(self) {
        let this = mem::ManuallyDrop::new(self);
        this.put_back();
    }

    /// Leaves the calling thread without an alternate stack, for one that ends: spares one system call more
    /// than [`remove_blocked`](Self::remove_blocked). Another stack that was installed over this one stays.
    ///
    /// # Safety
    ///
    /// As for [`remove_blocked`](Self::remove_blocked).
    pub unsafe fn disable_blocked(self) {
        const NONE: SignalStack = SignalStack { sp: 0, flags: libc::SS_DISABLE, size: 0 };

        let this = mem::ManuallyDrop::new(self);
        CHANGES.fetch_add(1, Ordering::Relaxed);
        // It fails when the thread runs on it.
        // SAFETY: no memory for handlers.
        let Ok(last) = (unsafe { set(&NONE) }) else { return };
        if last.flags & libc::SS_DISABLE != 0 || last.sp == this.stack.sp {
            give_back(this.map, this.length);
        } else {
            // As in `put_back`, this one stays mapped.
            // SAFETY: it was the thread's alternate stack a moment ago.
            let _ = unsafe { set(&last) };
        }
    }

    /// Called with signals blocked.
    fn put_back(&self) {
        CHANGES.fetch_add(1, Ordering::Relaxed);
        // The previous stack is installed only when it is known to be mapped still: handlers could run on
        // it at once, since not all signals are blocked.
        let Ok(now) = current() else { return };
        if now.flags & libc::SS_DISABLE != 0 {
            // The code that disabled it has ended the use of alternate stacks on this thread, and of the
            // previous one: `std` does so, and unmaps its own, before thread-locals are destroyed.
            give_back(self.map, self.length);
        } else if now.sp == self.stack.sp {
            // It fails when the thread runs on it.
            // SAFETY: it was the thread's alternate stack before this one.
            if unsafe { set(&self.previous) }.is_ok() {
                give_back(self.map, self.length);
            }
        }
        // Else another stack was installed over this one, and its end may put this one back: the memory
        // stays mapped.
    }
}

impl Drop for AltStack {
    fn drop(&mut self) {
        // A call injected in between would install the stack again that is about to go.
        let mask = sys::sigprocmask(MaskHow::Block, &SigSet::deferrable());
        self.put_back();
        sys::sigprocmask(MaskHow::Set, &mask);
    }
}

impl fmt::Debug for AltStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lo, hi) = self.bounds();
        write!(f, "AltStack({lo:#x}..{hi:#x})")
    }
}

/// Why there is no alternate stack.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AltStackError {
    step: Step,
    errno: Errno,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Map,
    Guard,
    Populate,
    Install,
}

impl AltStackError {
    /// What the kernel said.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl fmt::Display for AltStackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            Step::Map => "map",
            Step::Guard => "guard",
            Step::Populate => "populate",
            Step::Install => "install",
        };
        write!(f, "cannot {step} an alternate signal stack: {}", self.errno)
    }
}

impl core::error::Error for AltStackError {}

fn auxiliary(kind: core::ffi::c_ulong) -> usize {
    // SAFETY: reads the auxiliary vector; 0 when the entry is not there.
    unsafe { libc::getauxval(kind) as usize }
}

fn page_size() -> usize {
    auxiliary(libc::AT_PAGESZ).max(4096)
}

/// Bytes of the largest frame that the kernel writes for a thread on this machine.
fn largest_frame() -> usize {
    /// More than the frames of kernels that do not tell: x86 before Linux 5.14 (3.6 KiB with AVX-512),
    /// powerpc64 before 5.18 (under 5 KiB, with a transaction), and architectures whose frames are small.
    const UNTOLD: usize = 8 * 1024;

    let told = auxiliary(libc::AT_MINSIGSTKSZ);
    let frame = if told == 0 { UNTOLD } else { told };
    frame + arch::left_out(told)
}

/// Mappings that no thread uses, by their address, to be used again: to map a stack and to unmap it
/// takes longer than to make a thread. All are of one length.
static POOL: [AtomicUsize; 16] = [const { AtomicUsize::new(0) }; 16];
/// Mappings that there are, in use and in the pool.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// How many stacks of this module are mapped: those in use, up to 16 that wait to be used again, and
/// those that stay mapped because another stack was installed over them.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
#[must_use]
pub fn mapped() -> usize {
    // Relaxed: out of date at once.
    MAPPED.load(Ordering::Relaxed)
}

fn pooled() -> Option<usize> {
    // A look first: an empty place need not be written. Acquire: pairs with `give_back`; what the
    // last user wrote is written.
    POOL.iter()
        .filter(|place| place.load(Ordering::Relaxed) != 0)
        .map(|place| place.swap(0, Ordering::Acquire))
        .find(|&map| map != 0)
}

/// Maps a stack with a guard page below it, and memory for a frame at its top.
fn new(length: usize, page: usize) -> Result<usize, AltStackError> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
    // libc's, because the system call takes its arguments in three ways: an offset in bytes, one in
    // pages, or the address of all of them.
    // SAFETY: a new mapping, wherever the kernel likes.
    let map = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
    if map == libc::MAP_FAILED {
        let errno = Errno::new(sys::errno());
        return Err(AltStackError { step: Step::Map, errno });
    }
    MAPPED.fetch_add(1, Ordering::Relaxed);
    let map = map as usize;
    let guard = [map, page, libc::PROT_NONE as usize, 0, 0, 0];
    // SAFETY: the first page of the mapping just made, which no code uses.
    let guarded = unsafe { sys::syscall(libc::SYS_mprotect, guard) };
    let ready = match guarded {
        Ok(_) => populate(map + length, page).map_err(|errno| (Step::Populate, errno)),
        Err(errno) => Err((Step::Guard, errno)),
    };
    ready.map(|()| map).map_err(|(step, errno)| {
        unmap(map, length);
        AltStackError { step, errno }
    })
}

/// Has the kernel find memory for the largest frame, below `top`, which is a new stack's end.
fn populate(top: usize, page: usize) -> Result<(), Errno> {
    let length = largest_frame().next_multiple_of(page);
    let bottom = top - length;
    let args = [bottom, length, libc::MADV_POPULATE_WRITE as usize, 0, 0, 0];
    // SAFETY: pages of a mapping of this module's, which has room for more than one frame.
    let populated = unsafe { sys::syscall(libc::SYS_madvise, args) };
    if populated == Err(Errno::ENOMEM) {
        return Err(Errno::ENOMEM);
    }
    // Linux before 5.14 does not know the advice, and an emulator may take it and do nothing.
    for at in (bottom..top).step_by(page) {
        // SAFETY: as above; no code uses the stack yet.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(at).write_volatile(0) };
    }
    Ok(())
}

/// Takes a mapping back that is no longer used.
fn give_back(map: usize, length: usize) {
    let free = |place: &AtomicUsize| {
        place.load(Ordering::Relaxed) == 0
            // Release: pairs with `pooled`.
            && place.compare_exchange(0, map, Ordering::Release, Ordering::Relaxed).is_ok()
    };
    if !POOL.iter().any(free) {
        unmap(map, length);
    }
}

/// Unmaps what `new` mapped.
fn unmap(map: usize, length: usize) {
    // SAFETY: the caller's mapping, which is not the thread's alternate stack (any more).
    let unmapped = unsafe { sys::syscall(libc::SYS_munmap, [map, length, 0, 0, 0, 0]) };
    debug_assert!(unmapped.is_ok(), "munmap of an own mapping");
    MAPPED.fetch_sub(1, Ordering::Relaxed);
}

/// A number that changes whenever an [`AltStack`] is installed or removed.
#[inline(always)]
pub(crate) fn changes() -> usize {
    CHANGES.load(Ordering::Relaxed)
}

/// The calling thread's alternate stack, as it is to be installed again.
pub(crate) fn current() -> Result<SignalStack, Errno> {
    let mut now = SignalStack { sp: 0, flags: 0, size: 0 };
    // SAFETY: the kernel writes one `stack_t`.
    unsafe { sys::syscall(libc::SYS_sigaltstack, [0, &raw mut now as usize, 0, 0, 0, 0]) }?;
    // "In use" is an answer of the kernel's; it cannot be set.
    now.flags &= !libc::SS_ONSTACK;
    Ok(now)
}

/// Installs an alternate stack again that the kernel disarmed for its handler (`SS_AUTODISARM`), now that
/// the handler has left it. Nothing is done with any other.
#[inline(always)]
pub(crate) fn rearm(stack: SignalStack) {
    /// `SS_AUTODISARM` of `linux/signal.h`.
    const AUTODISARM: c_int = 1 << 31;

    if stack.flags & AUTODISARM != 0 {
        // The kernel took the same before. Handlers that come without it run on the thread's own stack.
        // SAFETY: the thread's alternate stack, by the frame, which no handler uses now.
        let _ = unsafe { set(&stack) };
    }
}

/// Replaces the calling thread's alternate stack and returns the previous one.
///
/// # Safety
///
/// `stack` is memory for handlers as long as it stays installed.
unsafe fn set(stack: &SignalStack) -> Result<SignalStack, Errno> {
    // "In use" is an answer of the kernel's; it cannot be set.
    let mut new = *stack;
    new.flags &= !libc::SS_ONSTACK;
    let mut old = SignalStack { sp: 0, flags: 0, size: 0 };
    let args = [&raw const new as usize, &raw mut old as usize, 0, 0, 0, 0];
    // SAFETY: the kernel reads and writes one `stack_t`; the memory is the caller's obligation.
    unsafe { sys::syscall(libc::SYS_sigaltstack, args) }?;
    Ok(old)
}

const _: () = assert!(size_of::<SignalStack>() == size_of::<libc::stack_t>());

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;

    /// How much of the memory between two addresses, ends of pages, is resident, page by page.
    fn resident(low: usize, high: usize) -> Vec<bool> {
        let mut pages = vec![0_u8; (high - low) / page_size()];
        let args = [low, high - low, pages.as_mut_ptr().expose_provenance(), 0, 0, 0];
        // SAFETY: writes a byte for each page.
        unsafe { sys::syscall(libc::SYS_mincore, args) }.expect("mapped");
        pages.into_iter().map(|page| page & 1 != 0).collect()
    }

    #[test]
    fn a_new_stack_has_memory_for_one_frame_and_no_more() {
        if testkit::emulator().is_some() {
            return testkit::skip("an emulator does not tell what its guest has in memory");
        }
        let name = "altstack::tests::a_new_stack_has_memory_for_one_frame_and_no_more";
        testkit::in_child(name, std::time::Duration::from_secs(20), || {
            let stacks: Vec<_> = (0..8).map(|_| AltStack::install().expect("installs")).collect();
            let frame = largest_frame().div_ceil(page_size());
            for stack in stacks.iter().rev() {
                let (low, high) = stack.bounds();
                let pages = resident(low, high);
                let (rest, top) = pages.split_at(pages.len() - frame);
                assert!(top.iter().all(|&page| page), "{top:?}");
                assert!(!rest.contains(&true), "{} pages, {frame} for a frame", pages.len());
            }
            // Each puts the one before it back.
            stacks.into_iter().rev().for_each(drop);
        });
    }
}
