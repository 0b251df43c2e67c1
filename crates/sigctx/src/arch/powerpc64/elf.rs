//! How assembly begins and ends a function in the two ABIs of ELF.

/// Begins a function that is called by its address: here the symbol is the code.
#[cfg(target_abi = "elfv2")]
macro_rules! function {
    ($name:literal) => {
        concat!(
            ".globl ",
            symbol!($name),
            "\n.hidden ",
            symbol!($name),
            "\n.type ",
            symbol!($name),
            ", @function\n",
            symbol!($name),
            ":\n.L.",
            symbol!($name),
            ":\n",
        )
    };
}

/// Begins a function that is called by its address: here the symbol is the descriptor, in a section
/// of its own.
#[cfg(not(target_abi = "elfv2"))]
macro_rules! function {
    ($name:literal) => {
        concat!(
            ".pushsection .opd, \"aw\", @progbits\n.balign 8\n",
            ".globl ",
            symbol!($name),
            "\n.hidden ",
            symbol!($name),
            "\n.type ",
            symbol!($name),
            ", @function\n",
            symbol!($name),
            ":\n.quad .L.",
            symbol!($name),
            ", .TOC.@tocbase, 0\n",
            ".popsection\n.L.",
            symbol!($name),
            ":\n",
        )
    };
}

/// The first instructions of a function that needs r2: its distance from the function's address in
/// r12 is known.
#[cfg(target_abi = "elfv2")]
macro_rules! table_of_contents {
    ($name:literal) => {
        concat!(
            "addis %r2, %r12, .TOC. - .L.",
            symbol!($name),
            "@ha\n",
            "addi %r2, %r2, .TOC. - .L.",
            symbol!($name),
            "@l\n",
            ".localentry ",
            symbol!($name),
            ", . - ",
            symbol!($name),
            "\n",
        )
    };
}

/// A function that needs r2 finds it set, from its descriptor.
#[cfg(not(target_abi = "elfv2"))]
macro_rules! table_of_contents {
    ($name:literal) => {
        ""
    };
}

/// Ends a function.
macro_rules! end {
    ($name:literal) => {
        concat!(".size ", symbol!($name), ", . - .L.", symbol!($name), "\n")
    };
}
