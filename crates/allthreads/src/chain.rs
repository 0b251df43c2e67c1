//! The handlers that were there before ours, and how a foreign signal gets to them without going round in
//! a circle.
//!
//! Several copies of this crate in one process (two plugins, two versions) find each other's handlers when
//! they look at the action, and hand foreign signals on to each other. A mark that all copies share would
//! say that some copy has seen an instance, not which one; with a mark for each copy in one place, the
//! copies would overwrite each other's. So each instance carries a list of the copies that it has been
//! through ([`Trail`]). The list lies in the kernel's `siginfo_t`, behind what any signal uses (48 of 128
//! bytes), where the kernel and other handlers leave it alone. A magic word marks it. It is empty again
//! when the handler returns: what an old kernel left there uncleared is no list.

use core::ffi::{c_int, c_void};
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use sigctx::sys::{SIG_DFL, SIG_IGN};

use crate::signals::SIGNALS;

type Action = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// The handlers that were there when ours was installed, by signal: the first one, and the last.
///
/// They differ when another handler is installed over ours and chains to it, and ours is then installed
/// again. The last one gets an instance first. When the instance comes back here it goes to the first one,
/// which would never see a signal otherwise.
pub(crate) struct Previous {
    first: [AtomicPtr<c_void>; SIGNALS],
    last: [AtomicPtr<c_void>; SIGNALS],
}

impl Previous {
    pub(crate) const fn new() -> Self {
        Self {
            first: [const { AtomicPtr::new(ptr::null_mut()) }; SIGNALS],
            last: [const { AtomicPtr::new(ptr::null_mut()) }; SIGNALS],
        }
    }

    /// Keeps a handler that ours is about to replace. Only the requester calls this. Release: pairs with
    /// `hand_on`.
    pub(crate) fn keep(&self, signal: usize, handler: usize) {
        let handler = ptr::with_exposed_provenance_mut(handler);
        if let Some(last) = self.last.get(signal) {
            last.store(handler, Ordering::Release);
        }
        if let Some(first) = self.first.get(signal)
            && is_function(handler)
            && first.load(Ordering::Relaxed).is_null()
        {
            first.store(handler, Ordering::Release);
        }
    }

    /// Hands a foreign instance to the handler that was there before; `cookie` is this copy of the crate.
    /// The handler's mask is ignored: it runs with all signals masked. Without a handler the instance is
    /// dropped, because the default action of a real-time signal would end the process.
    #[inline(always)]
    pub(crate) fn hand_on(
        &self,
        cookie: usize,
        signal: c_int,
        info: &mut libc::siginfo_t,
        context: *mut c_void,
    ) {
        let Some(last) = self.last.get(signal as usize) else { return };
        let Some(first) = self.first.get(signal as usize) else { return };
        // Acquire: pairs with `Previous::keep`.
        let (last, first) = (last.load(Ordering::Acquire), first.load(Ordering::Acquire));
        // A handler that was installed over ours may chain to ours, and ours to it since. The last one gets
        // the instance first. When it comes back it goes to the first one, which was there before ours and
        // so cannot lead back again.
        let trail = Trail::of(info);
        let visit = trail.visit(cookie);
        let next = match visit.before {
            0 => last,
            // It came from there, unless another copy of this crate did the same as this one.
            1 if first == last && !visit.others => ptr::null_mut(),
            1 => first,
            _ => ptr::null_mut(),
        };
        if !next.is_null() && is_function(next) {
            // SAFETY: it was the kernel's action for this signal, so it is a handler, of three arguments
            // or of one, which is the same to the code that calls it on every ABI of Linux.
            let action = unsafe { mem::transmute::<*mut c_void, Action>(next) };
            // SAFETY: called as the kernel would, with the kernel's own frame.
            unsafe { action(signal, info, context) };
        }
        Trail::of(info).leave(&visit);
    }
}

#[inline(always)]
fn is_function(handler: *mut c_void) -> bool {
    handler.addr() != SIG_DFL && handler.addr() != SIG_IGN
}

/// Bytes that the kernel's own structure takes (`struct kernel_siginfo`).
const USED: usize = 48;
const WORDS: usize = (size_of::<libc::siginfo_t>() - USED) / size_of::<usize>();
/// How often, in the low bits of a copy's word, which is an address that has none.
const TIMES: usize = 3;
const BEGIN: usize = 0x7461_7274;

/// The list in one instance; see the module.
pub(crate) struct Trail<'a>(&'a mut [usize; WORDS]);

/// One call of a copy's handler for an instance.
pub(crate) struct Visit {
    place: usize,
    /// How often this copy was visited before.
    pub(crate) before: usize,
    /// Whether another copy was.
    pub(crate) others: bool,
}

impl<'a> Trail<'a> {
    #[inline(always)]
    pub(crate) fn of(info: &'a mut libc::siginfo_t) -> Self {
        let begin = ptr::from_mut(info).cast::<usize>();
        // SAFETY: within the information.
        let words = unsafe { begin.add(USED / size_of::<usize>()) }.cast::<[usize; WORDS]>();
        // SAFETY: the rest of the information, which is borrowed for as long; any bits are integers.
        let words = unsafe { &mut *words };
        if words[0] != BEGIN {
            // Not `fill`, which may be a call.
            for word in words.iter_mut() {
                // SAFETY: a word of the list. Volatile, so that it does not become a call.
                unsafe { ptr::from_mut(word).write_volatile(0) };
            }
            words[0] = BEGIN;
        }
        Self(words)
    }

    /// Notes a visit of the copy whose word is `copy`. When the list is full the copy counts as visited.
    #[inline(always)]
    pub(crate) fn visit(self, copy: usize) -> Visit {
        let mut visit = Visit { place: 0, before: 1, others: false };
        for (place, word) in self.0.iter_mut().enumerate().skip(1) {
            if *word & !TIMES == copy {
                visit.place = place;
                visit.before = *word & TIMES;
            } else if *word != 0 {
                visit.others = true;
            } else if visit.place == 0 {
                *word = copy;
                visit.place = place;
                visit.before = 0;
            }
            if visit.place == place && visit.before < TIMES {
                *word += 1;
            }
        }
        visit
    }

    /// Takes the visit back.
    #[inline(always)]
    pub(crate) fn leave(self, visit: &Visit) {
        if visit.place == 0 || visit.before >= TIMES {
            return;
        }
        if let Some(word) = self.0.get_mut(visit.place) {
            *word = if visit.before == 0 { 0 } else { *word - 1 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_are_counted_for_each_copy_and_taken_back() {
        // SAFETY: integers and padding, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
        // What an old kernel left there.
        Trail::of(&mut info).0[3] = 0x4711;
        Trail::of(&mut info).0[0] = 0;
        let mut visit = |copy: usize| {
            let visit = Trail::of(&mut info).visit(copy);
            (visit.before, visit.others, visit.place)
        };
        assert_eq!(visit(64), (0, false, 1));
        assert_eq!(visit(128), (0, true, 2));
        assert_eq!(visit(64), (1, true, 1));
        assert_eq!(visit(64), (2, true, 1));
        for before in [2, 1, 0] {
            Trail::of(&mut info).leave(&Visit { place: 1, before, others: true });
        }
        Trail::of(&mut info).leave(&Visit { place: 2, before: 0, others: true });
        assert!(Trail::of(&mut info).0[1..].iter().all(|&word| word == 0));
        for copy in 1..WORDS {
            assert_eq!(Trail::of(&mut info).visit(copy * 64).before, 0);
        }
        // Full: it goes towards the first handler, which is an end.
        let visit = Trail::of(&mut info).visit(WORDS * 64);
        assert_eq!((visit.before, visit.place), (1, 0));
    }
}
