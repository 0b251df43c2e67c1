//! Where the vDSO is. Its code may be interrupted with the thread's registers in a state that only
//! it knows, so no call is injected there.

use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

cfg_select! {
    target_pointer_width = "64" => { use libc::{Elf64_Ehdr as Ehdr, Elf64_Phdr as Phdr}; }
    _ => { use libc::{Elf32_Ehdr as Ehdr, Elf32_Phdr as Phdr}; }
}

/// Written by `find` before the first handler is installed, and always with the same values, so
/// that no order between the two words matters; `rt_sigaction` is the barrier to handlers.
static START: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

/// Looks for the vDSO and keeps where it is.
pub(crate) fn find() {
    // SAFETY: reads the auxiliary vector.
    let base = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    if base == 0 {
        return;
    }
    // SAFETY: the kernel maps an ELF image there, for the life of the process.
    let header = unsafe { &*(base as *const Ehdr) };
    let table = base + header.e_phoff as usize;
    // What the image's addresses are off by: it need not have been linked for address 0.
    let mut bias = None;
    let mut end = base;
    for i in 0..usize::from(header.e_phnum) {
        let at = (table + i * usize::from(header.e_phentsize)) as *const Phdr;
        // SAFETY: the header says how many entries there are and how long each is.
        let entry = unsafe { &*at };
        if entry.p_type == libc::PT_LOAD {
            let (at, offset) = (entry.p_vaddr as usize, entry.p_offset as usize);
            let bias = *bias.get_or_insert(base.wrapping_add(offset).wrapping_sub(at));
            end = end.max(at.wrapping_add(bias).wrapping_add(entry.p_memsz as usize));
        }
    }
    END.store(end, Ordering::Relaxed);
    START.store(base, Ordering::Relaxed);
}

/// The addresses of the vDSO; empty when there is none.
#[inline(always)]
pub(crate) fn range() -> Range<usize> {
    START.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)
}
