//! Names for addresses in errors, looked up when an error is printed: never in a handler.

use core::fmt;

/// Shows as the address, the function that it is in, and the file that this was loaded from, as far
/// as they can be found.
pub(crate) struct Address(pub(crate) usize);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)?;
        let mut function = function(self.0);
        let mut info = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: writes to `info` alone; the address is only compared.
        let found = unsafe { libc::dladdr(self.0 as *const _, info.as_mut_ptr()) } != 0;
        // SAFETY: zeroes are a valid value, and `dladdr` wrote nothing that is not.
        let info = unsafe { info.assume_init() };
        let text = |text: *const core::ffi::c_char| {
            // SAFETY: `dladdr` gives texts of the loaded object. Another thread that unloads it right
            // now would have to unload the code at the address.
            let text =
                (found && !text.is_null()).then(|| unsafe { core::ffi::CStr::from_ptr(text) });
            text.map(|text| text.to_string_lossy().into_owned())
        };
        if function.is_none() {
            function = text(info.dli_sname);
        }
        if let Some(function) = function {
            write!(f, " in {function}")?;
        }
        if let Some(file) = text(info.dli_fname) {
            write!(f, " of {file}")?;
        }
        Ok(())
    }
}

/// By the symbols and the debugging information: functions of a Rust program are not in the tables
/// that the dynamic linker has.
#[cfg(feature = "symbols")]
fn function(address: usize) -> Option<String> {
    // In a static program with a fixed address, functions that the linker dropped are at 0 by their
    // debugging information. The kernel maps nothing there (`vm.mmap_min_addr`).
    const LOWEST: usize = 0x1_0000;
    if address < LOWEST {
        return None;
    }
    let (mut innermost, mut outermost) = (None, None);
    // One more: it takes the address for that after a call. What was inlined comes first.
    backtrace::resolve(address.wrapping_add(1) as *mut _, |symbol| {
        outermost = symbol.name().map(|name| format!("{name:#}"));
        innermost = innermost.take().or_else(|| outermost.clone());
    });
    match (innermost?, outermost) {
        (inlined, Some(function)) if inlined != function => {
            Some(format!("{inlined}, inlined into {function},"))
        }
        (function, _) => Some(function),
    }
}

#[cfg(not(feature = "symbols"))]
fn function(_address: usize) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    #[cfg_attr(not(feature = "symbols"), ignore = "needs the feature `symbols`")]
    fn an_address_shows_its_function_and_file() {
        let text =
            Address(an_address_shows_its_function_and_file as *const () as usize).to_string();
        assert!(text.contains("an_address_shows_its_function_and_file"), "{text}");
        // Without a dynamic linker there is no table of loaded files.
        // SAFETY: reads the auxiliary vector.
        let is_static = unsafe { libc::getauxval(libc::AT_BASE) } == 0;
        assert_eq!(text.contains(" of /"), !is_static, "{text}");
        assert_eq!(Address(8).to_string(), "0x8");
    }
}
