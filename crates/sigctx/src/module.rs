//! The program or library that a piece of code is in: kept loaded, and named.
//!
//! The kernel, and every handler that chains to one of ours, keep addresses of this crate's code
//! forever. So its library stays loaded, also after `dlclose`: putting the previous action back does not
//! reach the copies of an address that other handlers keep.

use core::ffi::{CStr, c_void};
use core::fmt;
use core::mem::MaybeUninit;

/// Keeps the library that has the code at `code` loaded until the process ends, whatever `dlclose`
/// is told. Code of the program itself, and what no dynamic linker loaded, stays anyway.
///
/// For code whose address the kernel or other code remembers: above all for handlers of signals, for
/// which [`handler::install`](crate::handler::install) calls it.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock): takes the dynamic linker's lock.
///
/// # Errors
///
/// The dynamic linker does not find the library again (with musl, when its file has gone).
///
/// # References
///
/// `dlopen(3)`: `RTLD_NODELETE`, `RTLD_NOLOAD`
pub fn keep_loaded(code: *const ()) -> Result<(), KeepError> {
    let Some(module) = Module::of(code) else { return Ok(()) };
    // SAFETY: reads the auxiliary vector.
    let program = unsafe { libc::getauxval(libc::AT_PHDR) } as usize as *const ();
    if Module::of(program).is_some_and(|program| program.base == module.base) {
        return Ok(());
    }
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: the name is the dynamic linker's own; nothing is loaded, so no code is run.
    let handle = unsafe { libc::dlopen(module.file.as_ptr(), flags) };
    if handle.is_null() { Err(KeepError { code: code as usize }) } else { Ok(()) }
}

/// The library with the code cannot be kept loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepError {
    code: usize,
}

impl fmt::Display for KeepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = CodeAddress::new(self.code);
        write!(
            f,
            "cannot keep the library of {code} loaded: the dynamic linker does not find it again"
        )
    }
}

impl core::error::Error for KeepError {}

/// What the dynamic linker knows of an address.
struct Module {
    base: usize,
    file: &'static CStr,
    symbol: Option<&'static CStr>,
}

impl Module {
    fn of(code: *const ()) -> Option<Self> {
        let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: any address may be asked for; one structure is written.
        let found = unsafe { libc::dladdr(code.cast::<c_void>(), info.as_mut_ptr()) };
        if found == 0 {
            return None;
        }
        // SAFETY: zeroed, and written since.
        let info = unsafe { info.assume_init() };
        let name = |at: *const core::ffi::c_char| {
            // SAFETY: null, or the dynamic linker's, which lives as long as the library; the callers
            // of this function do not keep it longer than `code`.
            (!at.is_null()).then(|| unsafe { CStr::from_ptr(at) })
        };
        let (file, symbol) = (name(info.dli_fname)?, name(info.dli_sname));
        Some(Self { base: info.dli_fbase as usize, file, symbol })
    }
}

/// The address of code, shown with the library and the symbol that it is in, where the dynamic linker
/// knows them.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe). Showing it is not (AS-Unsafe lock): it asks the dynamic
/// linker.
///
/// # Examples
///
/// ```
/// let malloc = sigctx::module::CodeAddress::new(libc::malloc as *const () as usize);
/// assert!(malloc.to_string().starts_with(&format!("{:#x}", malloc.get())));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeAddress(usize);

impl CodeAddress {
    /// Takes an address.
    #[must_use]
    pub const fn new(address: usize) -> Self {
        Self(address)
    }

    /// The address.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }
}

impl fmt::Display for CodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)?;
        let Some(module) = Module::of(core::ptr::with_exposed_provenance(self.0)) else {
            return Ok(());
        };
        let symbol = module.symbol.and_then(|symbol| symbol.to_str().ok());
        let file = module.file.to_str().ok().filter(|file| !file.is_empty());
        match (symbol, file) {
            (Some(symbol), Some(file)) => write!(f, " ({symbol} in {file})"),
            (Some(symbol), None) => write!(f, " ({symbol})"),
            (None, Some(file)) => write!(f, " (in {file})"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn code_of_the_program_and_of_libc_stays() {
        assert_eq!(keep_loaded(keep_loaded as *const ()), Ok(()));
        assert_eq!(keep_loaded(libc::dlopen as *const ()), Ok(()));
    }

    #[test]
    fn what_no_linker_loaded_has_no_name() {
        assert_eq!(keep_loaded(8 as *const ()), Ok(()));
        assert_eq!(CodeAddress::new(8).to_string(), "0x8");
    }
}
