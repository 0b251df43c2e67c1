//! What portable programs ask first: whether this build has the implementation.

use core::error::Error;
use core::fmt;

/// Says that the crates have no implementation for the system that the program was built for.
///
/// On such a system this type and [`supported`] are all that each of the crates has.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    system: &'static str,
    architecture: &'static str,
}

impl Unsupported {
    /// Gives the name of the system, as `target_os` has it.
    #[must_use]
    pub const fn system(self) -> &'static str {
        self.system
    }

    /// Gives the name of the architecture, as `target_arch` has it.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        self.architecture
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { system, architecture } = self;
        write!(f, "not supported on {system} ({architecture}), only on Linux")
    }
}

impl Error for Unsupported {}

/// Tells whether this build has the implementation: always on Linux, never elsewhere.
///
/// The answer is that of the build, and costs nothing. What the running kernel lacks or forbids is
/// told by the operation that needs it, in that operation's own error. For Linux on an architecture
/// that is not known the crates do not build.
///
/// All else in these crates is there on Linux alone, so a portable program needs
/// `#[cfg(target_os = "linux")]` before what uses them, and this function for the other half.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe): returns a constant.
///
/// # Errors
///
/// [`Unsupported`] on every system but Linux.
///
/// # Examples
///
/// ```
/// use std::error::Error;
///
/// #[cfg(target_os = "linux")]
/// fn greet() -> Result<(), Box<dyn Error>> {
///     println!("thread {}", sigctx::sys::gettid());
///     Ok(())
/// }
///
/// #[cfg(not(target_os = "linux"))]
/// fn greet() -> Result<(), Box<dyn Error>> {
///     Ok(sigctx::supported()?)
/// }
///
/// greet()?;
/// # Ok::<(), Box<dyn Error>>(())
/// ```
///
/// A crate that makes no sense without the implementation says so when it is built:
///
/// ```
/// const _: () = assert!(sigctx::supported().is_ok(), "this program needs Linux");
/// ```
pub const fn supported() -> Result<(), Unsupported> {
    HERE
}

#[cfg(target_os = "linux")]
const HERE: Result<(), Unsupported> = Ok(());

#[cfg(not(target_os = "linux"))]
const HERE: Result<(), Unsupported> = {
    // `core` has no name of the architecture, and only files in `arch/` may ask for it.
    use std::env::consts::{ARCH, OS};

    // `std` leaves the names of WebAssembly's systems empty.
    let system = if cfg!(target_os = "wasi") {
        "wasi"
    } else if OS.is_empty() {
        "unknown"
    } else {
        OS
    };
    Err(Unsupported { system, architecture: ARCH })
};

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn error_names_system_and_architecture() {
        let error = Unsupported { system: "macos", architecture: "aarch64" };
        assert_eq!(error.to_string(), "not supported on macos (aarch64), only on Linux");
        assert_eq!((error.system(), error.architecture()), ("macos", "aarch64"));
    }

    #[test]
    fn linux_is_supported_and_nothing_else() {
        assert_eq!(supported().is_ok(), std::env::consts::OS == "linux");
        if let Err(error) = supported() {
            assert_eq!(error.architecture(), std::env::consts::ARCH);
            assert!(!error.system().is_empty());
        }
    }
}
