//! Why a call is not injected, and why a frame cannot change threads.

use core::fmt;

use crate::sys::Errno;

/// Why a call was not injected. Nothing has been changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InjectError {
    /// The stack has not enough room below the stack pointer for frame and callback.
    NoRoom {
        /// Bytes that are needed.
        needed: usize,
        /// Bytes that are available.
        available: usize,
    },
    /// The interrupted stack pointer is not on the stack that was given.
    NotOnThisStack {
        /// The stack pointer.
        sp: usize,
    },
    /// Another handler was interrupted.
    OnAltStack {
        /// The stack pointer.
        sp: usize,
    },
    /// The handler itself does not run on the alternate stack: the thread has none.
    HandlerOffAltStack {
        /// The handler's stack pointer.
        sp: usize,
    },
    /// An injected call is still running on this stack.
    Nested,
    /// The interrupted code is the vDSO's.
    InVdso {
        /// The program counter.
        pc: usize,
    },
    /// A system call is about to begin or to be restarted.
    AtSyscall {
        /// The program counter.
        pc: usize,
    },
    /// The last injected call is returning to the interrupted code.
    InTrampoline {
        /// The program counter.
        pc: usize,
    },
    /// The frame does not look like one that the kernel wrote.
    Frame(BadFrame),
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadFrame {
    /// The context is not where the kernel puts it.
    Placement {
        /// Where the context is.
        context: usize,
        /// The stack pointer at the handler's entry.
        entry: usize,
    },
    /// It would be longer than any frame can be.
    Length {
        /// Its length in bytes.
        length: usize,
    },
    /// The extended state is outside of the frame.
    ExtendedState {
        /// Where it is said to be.
        at: usize,
    },
    /// The interrupted code is in an unsupported instruction set.
    InstructionSet {
        /// The program counter.
        pc: usize,
    },
}

impl fmt::Display for InjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoRoom { needed, available } => {
                write!(
                    f,
                    "the call needs {needed} bytes of stack, of which {available} are available"
                )
            }
            Self::NotOnThisStack { sp } => write!(f, "stack pointer {sp:#x} is on another stack"),
            Self::OnAltStack { sp } => {
                write!(f, "stack pointer {sp:#x} is on the alternate stack: a handler runs")
            }
            Self::HandlerOffAltStack { sp } => {
                write!(f, "the handler runs at {sp:#x}, which is not on an alternate stack")
            }
            Self::Nested => f.write_str("an injected call is running on this stack"),
            Self::InVdso { pc } => write!(f, "interrupted at {pc:#x}, in the vDSO"),
            Self::AtSyscall { pc } => write!(f, "interrupted at {pc:#x}, at a system call"),
            Self::InTrampoline { pc } => {
                write!(f, "interrupted at {pc:#x}, where the last injected call resumes")
            }
            Self::Frame(bad) => bad.fmt(f),
        }
    }
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Placement { context, entry } => {
                write!(f, "context at {context:#x} is not what the kernel pushes at {entry:#x}")
            }
            Self::Length { length } => write!(f, "a frame cannot be {length} bytes long"),
            Self::ExtendedState { at } => {
                write!(f, "extended state at {at:#x} is not in the frame")
            }
            Self::InstructionSet { pc } => {
                write!(f, "code at {pc:#x} is in an unsupported instruction set")
            }
        }
    }
}

impl core::error::Error for InjectError {}
impl core::error::Error for BadFrame {}

/// Why a frame cannot resume on another thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MoveError {
    /// The thread has a shadow stack; the token for the frame is on the first thread's.
    ShadowStack,
    /// The frame's vectors have another length than this thread's.
    VectorLength {
        /// Of the frame, in bytes.
        frame: usize,
        /// Of this thread, in bytes.
        thread: usize,
    },
    /// The frame's vectors may not fit this thread: it must not use them (RISC-V's
    /// `PR_RISCV_V_SET_CONTROL`), or the process has asked for AMX, with which threads differ.
    VectorState,
    /// The kernel did not say what this thread's alternate stack is.
    AltStack(Errno),
}

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShadowStack => {
                f.write_str("a frame of a thread with a shadow stack cannot change threads")
            }
            Self::VectorLength { frame, thread } => {
                write!(f, "the frame has vectors of {frame} bytes, this thread of {thread}")
            }
            Self::VectorState => {
                f.write_str("this thread may not use the vectors that the frame has")
            }
            Self::AltStack(errno) => {
                write!(f, "cannot read the alternate stack of this thread: {errno}")
            }
        }
    }
}

impl core::error::Error for MoveError {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn reasons_are_one_lower_case_line() {
        let errors = [
            InjectError::NoRoom { needed: 20000, available: 100 },
            InjectError::Nested,
            InjectError::InVdso { pc: 0x1000 },
            InjectError::Frame(BadFrame::Length { length: 1 << 20 }),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(!text.contains('\n') && !text.starts_with(char::is_uppercase), "{text}");
        }
    }
}
