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
    let image = unsafe { extent(base) };
    END.store(image.end, Ordering::Relaxed);
    START.store(image.start, Ordering::Relaxed);
}

/// The addresses that an ELF image takes.
///
/// # Safety
///
/// It is mapped at `base`.
unsafe fn extent(base: usize) -> Range<usize> {
    // SAFETY: the caller's obligation.
    let header = unsafe { &*(base as *const Ehdr) };
    let table = base + header.e_phoff as usize;
    // What its addresses are off by: it need not have been linked for address 0.
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
    base..end
}

/// The addresses of the vDSO; empty when there is none.
#[inline(always)]
pub(crate) fn range() -> Range<usize> {
    START.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Old kernels of x86-64 and ppc64 have one.
    #[test]
    fn an_image_linked_for_another_address_is_where_it_was_mapped() {
        #[repr(C)]
        struct Image {
            header: Ehdr,
            entries: [Phdr; 2],
        }
        // SAFETY: all are integers, for which zeroes are values.
        let mut image: Image = unsafe { core::mem::zeroed() };
        image.header.e_phoff = core::mem::offset_of!(Image, entries) as _;
        image.header.e_phentsize = size_of::<Phdr>() as u16;
        image.header.e_phnum = 2;
        for (i, entry) in image.entries.iter_mut().enumerate() {
            entry.p_type = libc::PT_LOAD;
            // Near the top of the address space; the second one is a page further.
            entry.p_vaddr = (usize::MAX - 0xf_ffff + 0x1000 * i) as _;
            entry.p_offset = (0x1000 * i) as _;
            entry.p_memsz = 0x800;
        }
        let base = &raw const image as usize;
        // SAFETY: its headers are all that is looked at.
        assert_eq!(unsafe { extent(base) }, base..base + 0x1800);
    }
}
