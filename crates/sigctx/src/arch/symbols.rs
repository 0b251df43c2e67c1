//! The names of what the assembly defines. They carry the version, so that two versions of this crate can
//! be linked together.

/// The symbol of this version that is called `$name`.
macro_rules! symbol {
    ($name:literal) => {
        concat!(
            "sigctx_",
            $name,
            "_",
            env!("CARGO_PKG_VERSION_MAJOR"),
            "_",
            env!("CARGO_PKG_VERSION_MINOR")
        )
    };
}

/// A label that this crate's other code sees, and no other library.
macro_rules! global {
    ($name:literal) => {
        concat!(
            ".globl ",
            symbol!($name),
            "\n.hidden ",
            symbol!($name),
            "\n",
            symbol!($name),
            ":\n"
        )
    };
}

/// Begins a function that no other code refers to: a name for debuggers and backtraces.
macro_rules! local {
    ($name:literal) => {
        concat!(".type ", symbol!($name), ", STT_FUNC\n", symbol!($name), ":\n")
    };
}

/// Begins a function. `STT_FUNC` is the one of the names for that which no assembler takes for a comment.
// The ABIs of powerpc64 have more to say.
#[cfg(not(target_arch = "powerpc64"))]
macro_rules! function {
    ($name:literal) => {
        concat!(".type ", symbol!($name), ", STT_FUNC\n", global!($name))
    };
}

/// Ends a function.
#[cfg(not(target_arch = "powerpc64"))]
macro_rules! end {
    ($name:literal) => {
        concat!(".size ", symbol!($name), ", . - ", symbol!($name), "\n")
    };
}
