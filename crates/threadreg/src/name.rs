//! A thread's name, kept in place: readable in a handler, copied without allocation.

use core::fmt;

#[cfg(not(loom))]
use sigctx::sys::Tid;

/// 32-bit words of a [`Name`]. Words, so that a record can keep them as atomics.
#[cfg(not(loom))]
pub(crate) const WORDS: usize = 8;
/// Few, to keep the models small.
#[cfg(loom)]
pub(crate) const WORDS: usize = 2;
/// Bytes of a [`Name`].
pub(crate) const BYTES: usize = WORDS * 4;

/// A thread's name, held in place and cut to 32 bytes.
///
/// Linux keeps 15 bytes of a thread's name. This keeps more of the name given to
/// [`Builder::name`](crate::Builder::name).
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe), formatting into a buffer of the caller's included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Name([u8; BYTES]);

impl Name {
    /// Keeps as much of `text` as fits, cut between characters. A zero byte ends it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut name = Self::default();
        let mut used = 0;
        for letter in text.chars().take_while(|&c| c != '\0') {
            let mut utf8 = [0; 4];
            let letter = letter.encode_utf8(&mut utf8).as_bytes();
            let Some(room) = name.0.get_mut(used..used + letter.len()) else { break };
            room.copy_from_slice(letter);
            used += letter.len();
        }
        name
    }

    /// Keeps the valid UTF-8 at the beginning of `bytes`, up to a zero byte.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::new(valid(bytes))
    }

    /// The text; empty when the thread has no name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(BYTES);
        valid(self.0.get(..end).unwrap_or_default())
    }

    pub(crate) fn words(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.chunks_exact(4).map(|four| {
            let mut word = [0; 4];
            word.copy_from_slice(four);
            u32::from_ne_bytes(word)
        })
    }

    pub(crate) fn from_words(words: [u32; WORDS]) -> Self {
        let mut name = Self::default();
        for (to, from) in name.0.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        name
    }
}

fn valid(bytes: &[u8]) -> &str {
    let end = match core::str::from_utf8(bytes) {
        Ok(text) => return text,
        Err(error) => error.valid_up_to(),
    };
    bytes.get(..end).and_then(|good| core::str::from_utf8(good).ok()).unwrap_or_default()
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self.as_str() {
            "" => "<unnamed>",
            text => text,
        })
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A thread as errors name it: `123 "worker"`, without what is not known.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe); so is the formatting, into a writer that is.
///
/// # Examples
///
/// ```
/// use threadreg::{Label, Name};
///
/// let label = Label { tid: Some(123), name: Name::new("worker") };
/// assert_eq!(format!("thread {label}"), "thread 123 \"worker\"");
/// ```
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// The kernel's id, if the thread has one.
    pub tid: Option<Tid>,
    /// The name; empty if it has none.
    pub name: Name,
}

#[cfg(not(loom))]
impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.tid, self.name.as_str()) {
            (Some(tid), "") => write!(f, "{tid}"),
            (Some(tid), name) => write!(f, "{tid} {name:?}"),
            (None, "") => f.write_str("without a name"),
            (None, name) => write!(f, "{name:?}"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Label, Name};

    #[test]
    fn long_names_are_cut_between_characters() {
        let name = Name::new("0123456789012345678901234567890\u{e4}");
        assert_eq!(name.as_str(), "0123456789012345678901234567890");
        assert_eq!(Name::new("0123456789012345678901234567890123").as_str().len(), 32);
    }

    #[test]
    fn words_carry_the_whole_name() {
        let name = Name::new("gr\u{fc}n");
        let mut words = [0; super::WORDS];
        for (to, from) in words.iter_mut().zip(name.words()) {
            *to = from;
        }
        assert_eq!(Name::from_words(words), name);
        assert_eq!(name.to_string(), "gr\u{fc}n");
        assert_eq!(Name::default().to_string(), "<unnamed>");
    }

    #[test]
    fn a_label_leaves_out_what_is_not_known() {
        let label = |tid, name| Label { tid, name: Name::new(name) }.to_string();
        assert_eq!(label(Some(7), "worker"), "7 \"worker\"");
        assert_eq!(label(Some(7), ""), "7");
        assert_eq!(label(None, "worker"), "\"worker\"");
        assert_eq!(label(None, ""), "without a name");
    }
}
