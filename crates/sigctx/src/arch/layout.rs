//! Structures of the kernel, declared once: the `repr(C)` type, and the list of its fields that tests
//! print and compare with the C headers.

/// A structure of the kernel.
#[cfg(feature = "probe")]
#[derive(Clone, Copy, Debug)]
pub struct Structure {
    /// The name of the type here.
    pub name: &'static str,
    /// The type in C.
    pub c: &'static str,
    /// Its size here, in bytes.
    pub size: usize,
    /// Every field.
    pub fields: &'static [Field],
}

/// A field of a [`Structure`].
#[cfg(feature = "probe")]
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The name of the field here.
    pub name: &'static str,
    /// The member in C, as `offsetof` takes it: compared in offset and size. With `@` before it the
    /// size is not compared; empty: C has no name for it.
    pub c: &'static str,
    /// In bytes.
    pub offset: usize,
    /// In bytes.
    pub size: usize,
}

/// Declares a `repr(C)` structure with the C name of the type and of every field.
macro_rules! layout {
    (
        $(#[$meta:meta])*
        pub(crate) struct $name:ident = $c:literal {
            $($(#[$field_meta:meta])* $vis:vis $field:ident: $type:ty = $member:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        pub(crate) struct $name {
            $($(#[$field_meta])* $vis $field: $type,)*
        }

        #[cfg(feature = "probe")]
        impl $name {
            /// Its fields, for comparison with C.
            pub(crate) const LAYOUT: $crate::arch::layout::Structure = $crate::arch::layout::Structure {
                name: stringify!($name),
                c: $c,
                size: size_of::<Self>(),
                fields: &[$($crate::arch::layout::Field {
                    name: stringify!($field),
                    c: $member,
                    offset: core::mem::offset_of!(Self, $field),
                    size: size_of::<$type>(),
                }),*],
            };
        }
    };
}

pub(crate) use layout;
