//! The bounds of the calling thread's stack.
//!
//! libc knows the stacks that it made. The main thread's stack was made by the kernel, and grows; C
//! libraries differ about it. glibc takes `RLIMIT_STACK` for its size, up to the mapping below. musl
//! returns what is mapped at the moment, which is 132 KiB at the start of a program. If a stack is
//! taken for smaller than it is, its thread is never stopped on the rest of it. So the main thread's
//! stack is measured here by the rule by which the kernel lets it grow.
//!
//! References: `mm/vma.c` (before Linux 6.16 `mm/mmap.c`), `acct_stack_growth` and
//! `expand_downwards`; glibc `nptl/pthread_getattr_np.c`; musl `src/thread/pthread_getattr_np.c`.

use core::mem::MaybeUninit;
use core::ptr;

use sigctx::sys::{self, Errno, Tid};

use crate::procfs::maps::{self, Mapping};

/// The kernel's `stack_guard_gap`, in pages: the distance that a stack keeps from the mapping below it.
/// This is the default, which a parameter of the kernel can change.
const GAP_PAGES: usize = 256;

/// The stack of the calling thread, which has id `tid`: the lowest address, and the one past the highest.
///
/// For the main thread they include what the stack may grow to, with the limit of this moment.
pub(crate) fn bounds(tid: Tid) -> Result<(usize, usize), Errno> {
    let (low, high) = bounds_of_spawned()?;
    // The first thread of a fork's child may have a stack that libc made and knows: see `growing`.
    let main = tid == sys::getpid();
    // Without `/proc` the answer of libc is all that is known.
    let grown = if main { growing(high).unwrap_or(None) } else { None };
    Ok((grown.unwrap_or(low), high))
}

/// The lowest address that the stack which the kernel made for the process may grow to. `None` if
/// `high` is not the end of that stack.
fn growing(high: usize) -> Result<Option<usize>, Errno> {
    // SAFETY: reads the auxiliary vector.
    let page = unsafe { libc::getauxval(libc::AT_PAGESZ) } as usize;
    let page = page.max(4096);
    // The address of random bytes, which the kernel puts at the top of the stack of every program.
    // SAFETY: as above; 0 when the entry is not there.
    let on_it = unsafe { libc::getauxval(libc::AT_RANDOM) } as usize;
    let Some((below, stack)) = maps::around(on_it)? else { return Ok(None) };
    if !(stack.begin < high && high <= stack.end) {
        return Ok(None);
    }
    Ok(Some(lowest(stack, below, limit()?, page)))
}

/// The lowest address that `stack` may grow to.
fn lowest(stack: Mapping, below: Option<Mapping>, limit: u64, page: usize) -> usize {
    let by_limit = usize::try_from(limit).map_or(0, |limit| stack.end.saturating_sub(limit));
    let gap = |below: Mapping| if below.accessible { GAP_PAGES * page } else { 0 };
    let by_neighbour = below.map_or(0, |below| below.end.saturating_add(gap(below)));
    let lowest = by_limit.max(by_neighbour).checked_next_multiple_of(page).unwrap_or(usize::MAX);
    // What is mapped stays, also when the limit has been lowered since.
    lowest.min(stack.begin)
}

/// `RLIMIT_STACK` of this moment, in bytes.
fn limit() -> Result<u64, Errno> {
    // The system call, since libc's structure has two layouts on 32-bit architectures.
    let mut limits = [0_u64; 2];
    let place = (&raw mut limits).expose_provenance();
    let args = [0, libc::RLIMIT_STACK as usize, 0, place, 0, 0];
    // SAFETY: the kernel writes one `struct rlimit64`, two words of 64 bits.
    unsafe { sys::syscall(libc::SYS_prlimit64, args) }?;
    // The largest number stands for no limit.
    let [soft, _hard] = limits;
    Ok(soft)
}

/// As [`bounds`], of a thread that libc made: libc's answer.
pub(crate) fn bounds_of_spawned() -> Result<(usize, usize), Errno> {
    let mut attr = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: names the calling thread, which exists.
    let me = unsafe { libc::pthread_self() };
    // SAFETY: `attr` is room for the result; `me` is a living thread.
    let failed = unsafe { libc::pthread_getattr_np(me, attr.as_mut_ptr()) };
    if failed != 0 {
        return Err(Errno::new(failed));
    }
    let (mut low, mut size) = (ptr::null_mut(), 0);
    // SAFETY: `attr` was initialised by the call above, which succeeded.
    let failed = unsafe { libc::pthread_attr_getstack(attr.as_ptr(), &raw mut low, &raw mut size) };
    // SAFETY: as above; not used afterwards.
    unsafe { libc::pthread_attr_destroy(attr.as_mut_ptr()) };
    if failed != 0 {
        return Err(Errno::new(failed));
    }
    Ok((low.addr(), low.addr() + size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;
    const MIB: usize = 1 << 20;

    fn mapping(begin: usize, end: usize, accessible: bool) -> Mapping {
        Mapping { begin, end, accessible }
    }

    #[test]
    fn a_stack_grows_to_its_limit_or_to_its_neighbour() {
        let end = 1 << 30;
        let stack = mapping(end - 33 * PAGE, end, true);
        let far = Some(mapping(PAGE, 2 * PAGE, true));
        assert_eq!(lowest(stack, far, 8 << 20, PAGE), end - 8 * MIB);
        assert_eq!(lowest(stack, None, 8 << 20, PAGE), end - 8 * MIB);
        // The kernel counts in pages: a part of one does not help.
        assert_eq!(lowest(stack, far, (8 << 20) + 1, PAGE), end - 8 * MIB);
        // No limit: the neighbour with its gap, or without when nothing can be done with it.
        let near = mapping(end - 5 * MIB, end - 4 * MIB, true);
        assert_eq!(lowest(stack, Some(near), u64::MAX, PAGE), end - 3 * MIB);
        let guard = Mapping { accessible: false, ..near };
        assert_eq!(lowest(stack, Some(guard), u64::MAX, PAGE), end - 4 * MIB);
        // What is mapped stays.
        assert_eq!(lowest(stack, far, 4096, PAGE), stack.begin);
        let touching = mapping(stack.begin - PAGE, stack.begin, true);
        assert_eq!(lowest(stack, Some(touching), u64::MAX, PAGE), stack.begin);
    }
}
