//! The registers of an architecture, declared once: the enum, its names, and how a context is read
//! and written by it.

/// Declares [`Reg`](super::Reg) from lines `Variant = field of the context, "name";`.
///
/// A field may be narrower than 64 bits: it is read with zeros above, and written with the low part
/// of the word. `read by` and `written by` name what is done to the word besides.
macro_rules! registers {
    ($(#[$meta:meta])* pub enum Reg; $($lines:tt)*) => {
        registers! {
            $(#[$meta])*
            pub enum Reg, read by core::convert::identity, written by |_, value| value;
            $($lines)*
        }
    };
    (
        $(#[$meta:meta])*
        pub enum Reg, read by $read:expr, written by $written:expr;
        $($(#[$doc:meta])* $reg:ident = $field:ident, $name:literal;)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reg {
            $($(#[$doc])* $reg,)*
        }

        impl Reg {
            /// Every register, in the order in which it is printed.
            pub const ALL: &[Self] = &[$(Self::$reg),*];

            /// The name in the manual, in lower case.
            ///
            /// # Signal safety
            ///
            /// Async-signal-safe (AS-Safe).
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reg => $name,)*
                }
            }
        }

        impl Ucontext {
            #[inline(always)]
            pub(crate) fn get(&self, reg: Reg) -> u64 {
                $read(match reg {
                    $(Reg::$reg => self.mcontext.$field.into(),)*
                })
            }

            #[inline(always)]
            pub(crate) fn set(&mut self, reg: Reg, value: u64) {
                let word: fn(Reg, u64) -> u64 = $written;
                let value = word(reg, value);
                match reg {
                    $(Reg::$reg => self.mcontext.$field = value as _,)*
                }
            }
        }
    };
}
pub(super) use registers;

/// Declares the frame record of architectures where it is the frame pointer and the return address, in
/// this order.
#[cfg(not(any(
    target_arch = "powerpc64",
    target_arch = "s390x",
    target_arch = "mips",
    target_arch = "mips64"
)))]
macro_rules! frame_record {
    ($(#[$meta:meta])* pub(crate) struct $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub(crate) struct $name {
            fp: usize,
            pc: usize,
        }

        impl $name {
            #[inline(always)]
            pub(crate) fn of(uc: &Ucontext) -> Self {
                Self { fp: uc.fp(), pc: uc.pc() }
            }
        }
    };
}
#[cfg(not(any(
    target_arch = "powerpc64",
    target_arch = "s390x",
    target_arch = "mips",
    target_arch = "mips64"
)))]
pub(super) use frame_record;
