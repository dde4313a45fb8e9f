//! The program that Capsa starts in a guest, as bytes.
//!
//! `build.rs` compiles it from `guest/`, with the compiler that compiles this crate: a static program of about
//! 80 KB without a C library, for Linux on the architecture of the target. The guest's kernel starts it as process
//! 1; it starts the guest's own init in its place, and serves the host as another process.
//!
//! The program needs `core` for Linux. If this crate is compiled for another system or architecture than
//! the compiler's, that is there only when the target is installed. The environment variable `CAPSA_AGENT` names a
//! ready program in that case.

#![forbid(unsafe_code)]

// The program is no part of this crate, but rustfmt finds its files here.
#[cfg(rustfmt)]
#[path = "../guest/main.rs"]
mod guest;

/// What `build.rs` made.
const BUILT: Result<&[u8], &str> = include!(concat!(env!("OUT_DIR"), "/built.rs"));

/// The program for guests of the architecture that this crate is compiled for: an ELF file.
///
/// # Errors
///
/// When it could not be compiled: why, and what helps.
pub const fn program() -> Result<&'static [u8], &'static str> {
    BUILT
}
