//! Names for addresses, looked up when they are printed.

use core::fmt;

/// Shows as the address and, with the feature `symbols`, the function that it is in, if that can be found.
pub(crate) struct Address {
    address: usize,
    /// What is looked up lies just before this.
    before: usize,
}

impl Address {
    /// Of the instruction that comes next.
    pub(crate) fn of_instruction(address: usize) -> Self {
        Self { address, before: address.wrapping_add(1) }
    }

    /// Of the instruction after a call.
    pub(crate) fn of_return(address: usize) -> Self {
        Self { address, before: address }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)?;
        function(self.before).map_or(Ok(()), |name| write!(f, " in {name}"))
    }
}

#[cfg(feature = "symbols")]
fn function(before: usize) -> Option<String> {
    // The kernel maps nothing below (`vm.mmap_min_addr`), where static programs have what their linker dropped.
    const LOWEST: usize = 0x1_0000;
    if before < LOWEST {
        return None;
    }
    let mut name = None;
    // What was inlined comes first; the last is the function that has the address.
    backtrace::resolve(before as *mut _, |symbol| {
        name = symbol.name().map(|name| format!("{name:#}")).or(name.take());
    });
    name
}

#[cfg(not(feature = "symbols"))]
fn function(_before: usize) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_shows_its_function() {
        let here = an_address_shows_its_function as fn() as usize;
        let text = Address::of_instruction(here).to_string();
        assert!(text.starts_with(&format!("{here:#x}")), "{text}");
        let named = text.contains("an_address_shows_its_function");
        assert_eq!(named, cfg!(feature = "symbols"), "{text}");
        assert_eq!(Address::of_return(8).to_string(), "0x8");
    }
}
