//! The mappings of the process's memory: `/proc/self/maps`.

use sigctx::sys::Errno;

use super::read::{Fd, Lines, hexadecimal};

/// A line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) begin: usize,
    pub(crate) end: usize,
    /// Whether it may be read, written or executed.
    pub(crate) accessible: bool,
}

impl Mapping {
    /// From `55d0-55f0 rw-p …`.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|&b| b == b' ');
        let (range, rights) = (words.next()?, words.next()?);
        let dash = range.iter().position(|&b| b == b'-')?;
        let (begin, end) = range.split_at_checked(dash)?;
        Some(Self {
            begin: hexadecimal(begin) as usize,
            end: hexadecimal(end.get(1..)?) as usize,
            accessible: rights.iter().take(3).any(|&b| b != b'-'),
        })
    }
}

/// The next mapping below the one that holds `address`, and that mapping. `None`: nothing is mapped at
/// `address`.
///
/// Async-signal-safe (AS-Safe).
pub(crate) fn around(address: usize) -> Result<Option<(Option<Mapping>, Mapping)>, Errno> {
    let file = Fd::open(libc::AT_FDCWD, c"/proc/self/maps", 0)?;
    let mut lines = Lines::new(&file);
    let mut below = None;
    // The lines are sorted by address.
    while let Some(line) = lines.next()? {
        let Some(mapping) = Mapping::parse(line) else { continue };
        if address < mapping.end {
            return Ok((mapping.begin <= address).then_some((below, mapping)));
        }
        below = Some(mapping);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = b"7ffd0000-7ffe2000 ---p 00000000 00:00 0                          [stack]";
        let parsed = Mapping { begin: 0x7ffd_0000, end: 0x7ffe_2000, accessible: false };
        assert_eq!(Mapping::parse(line), Some(parsed));
        let parsed = Mapping { begin: 0x10, end: 0x20, accessible: true };
        assert_eq!(
            Mapping::parse(b"10-20 r--p 00000000 08:01 5 /a file with a - in it"),
            Some(parsed)
        );
        assert_eq!(Mapping::parse(b""), None);
        assert_eq!(Mapping::parse(b"12 rw-p"), None);
    }

    #[test]
    fn the_mapping_of_an_address_is_found_with_the_one_below() {
        let local = 0_u8;
        let here = (&raw const local).addr();
        let (below, mapping) = around(here).expect("reads").expect("is mapped");
        assert!((mapping.begin..mapping.end).contains(&here) && mapping.accessible);
        let below = below.expect("the program is below its stacks");
        assert!(below.end <= mapping.begin);
        assert_eq!(around(below.begin).expect("reads").expect("is mapped").1, below);
        assert_eq!(around(0).expect("reads"), None);
    }
}
