//! The Linux kernel command line: parse, merge and build it.
//!
//! [`KernelCmdline`] holds the arguments in the order in which the kernel reads them, and the arguments
//! for init after `--`. It is **the injection boundary**: text that goes in as a value comes out as that
//! one value, never as a second argument.
//!
//! It does not interpret arguments, and does not check that a device exists. The rule for a caller: pass
//! the result of [`build_checked`](KernelCmdline::build_checked) to the kernel, because
//! [`build`](KernelCmdline::build) omits rejected arguments without an error.
//!
//! # Grammar
//!
//! The grammar of `next_arg` in the kernel's `lib/cmdline.c` (Linux 2.6.12 to 6.x), without its ambiguous
//! cases:
//!
//! ```text
//! line  = *blank [ word *( 1*blank word ) ] *blank
//! word  = key | key "=" value | key "=" DQUOTE *( value-byte | blank ) DQUOTE
//!       | DQUOTE key [ "=" *( value-byte | blank ) ] DQUOTE
//!       | "--"            ; once; every word after it is an argument for init
//! ```
//!
//! There is no escape for a double quote, so a value cannot contain one. Control bytes are rejected
//! everywhere. A *blank* is a byte for which the kernel's `isspace` is true. That includes 0xA0, the
//! second byte of "à" in UTF-8: a value with such a character is quoted too, or the kernel would split
//! it.
//!
//! # Limits of quoting
//!
//! The early boot code of x86 (`cmdline_find_option` in `arch/x86/lib/cmdline.c`) and shell scripts
//! that split `/proc/cmdline` do not know quotes or `--`: they find `nokaslr` in
//! `note="a nokaslr b"`. Reject untrusted values that contain a blank.
//!
//! # Layers
//!
//! ```
//! # use capsa_proto::cmdline::{KernelCmdline, MAX_LEN};
//! let mut line = KernelCmdline::new();
//! line.console("ttyS0").arg("panic=-1").root("/dev/vda");
//!
//! let mut user = KernelCmdline::parse("console=ttyS0 console=hvc0 quiet")?;
//! user.root("/dev/vdb").init_arg("--verbose");
//!
//! line.merge(&user);
//! assert_eq!(
//!     line.build_checked(MAX_LEN)?,
//!     "panic=-1 console=ttyS0 console=hvc0 quiet root=/dev/vdb -- --verbose",
//! );
//! # Ok::<(), capsa_proto::cmdline::CmdlineError>(())
//! ```

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::host::Arch;

mod arg;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod parse;
mod repeatable;
mod text;

#[cfg(test)]
mod kernel_twin;
#[cfg(test)]
mod tests;

pub use arg::CmdlineArg;
pub use error::{CmdlineError, Place};
pub use repeatable::is_repeatable;

/// Maximum bytes of a command line on x86-64 and arm64. The kernel truncates longer ones.
///
/// `COMMAND_LINE_SIZE` is 2048 on both, and that **counts the trailing NUL**: 2047 bytes are left
/// (`arch/{x86,arm64}/include/**/setup.h`; the x86 boot protocol's `cmdline_size` says 2047 too).
pub const MAX_LEN: usize = 2047;

/// A kernel command line: arguments in order, the arguments for init, or an override of it all.
///
/// Later arguments come later in the line: replacing an argument moves it to the end, because the kernel
/// reads from left to right and some keys override others (`ro` and `rw`, the last `console=`).
/// Keys compare as the kernel compares them, `-` and `_` alike; the text is kept as it was written.
///
/// The methods that add arguments are chainable and do not fail. They **omit** invalid arguments and
/// store the first error: [`check`](Self::check) and
/// [`build_checked`](Self::build_checked) return it.
///
/// # Laws
///
/// - `parse(build(c)) == c` for every `c` without errors and override.
/// - [`merge`](Self::merge) is associative and idempotent, and the empty line changes nothing.
/// - The kernel's parser, run over `build(c)`, finds exactly the arguments of `c`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelCmdline {
    args: Vec<CmdlineArg>,
    init_args: Vec<String>,
    override_text: Option<String>,
    error: Option<CmdlineError>,
}

impl KernelCmdline {
    /// An empty command line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a command line such as the content of `/proc/cmdline`.
    ///
    /// Every argument is kept in order, a key that occurs twice included. Blanks at either end and
    /// the newline of a file are skipped.
    ///
    /// # Errors
    ///
    /// When a quote is not closed, when the kernel would treat a quote as part of the text, when a key is
    /// empty or contains a blank, at a control byte, and at a second `--`.
    ///
    /// ```
    /// # use capsa_proto::cmdline::KernelCmdline;
    /// let line = KernelCmdline::parse("quiet dyndbg=\"file drivers/* +p\" -- single")?;
    /// assert_eq!(line.get("dyndbg"), Some("file drivers/* +p"));
    /// assert_eq!(line.init_args(), ["single"]);
    /// # Ok::<(), capsa_proto::cmdline::CmdlineError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, CmdlineError> {
        parse::parse(text)
    }

    /// Adds an argument in place of every one with the same key, at the end.
    ///
    /// For a [repeatable](is_repeatable) key this replaces the whole group too; to add to the group
    /// use [`append`](Self::append), to set a group at once use [`args`](Self::args).
    pub fn arg(&mut self, arg: impl Into<CmdlineArg>) -> &mut Self {
        let arg = arg.into();
        match arg.check() {
            Ok(()) => {
                self.args.retain(|old| !old.same_key(arg.key()));
                self.args.push(arg);
            }
            Err(error) => self.store_error(error),
        }
        self
    }

    /// Adds several arguments as one layer, in place of those with the same keys.
    ///
    /// Where the list itself names a key more than once, a [repeatable](is_repeatable) key keeps
    /// all its values and any other key its last one.
    ///
    /// ```
    /// # use capsa_proto::cmdline::KernelCmdline;
    /// let mut line = KernelCmdline::parse("console=tty0 root=/dev/sda")?;
    /// line.args(["console=ttyS0", "root=/dev/vda", "console=hvc0", "root=/dev/vdb"]);
    /// assert_eq!(line.build(), "console=ttyS0 console=hvc0 root=/dev/vdb");
    /// # Ok::<(), capsa_proto::cmdline::CmdlineError>(())
    /// ```
    pub fn args(&mut self, args: impl IntoIterator<Item = impl Into<CmdlineArg>>) -> &mut Self {
        let mut layer = Self::new();
        for arg in args {
            let arg = arg.into();
            if is_repeatable(arg.key()) {
                layer.append(arg)
            } else {
                layer.arg(arg)
            };
        }
        self.merge(&layer)
    }

    /// Adds an argument and keeps those with the same key, whatever the key.
    pub fn append(&mut self, arg: impl Into<CmdlineArg>) -> &mut Self {
        let arg = arg.into();
        match arg.check() {
            Ok(()) => self.args.push(arg),
            Err(error) => self.store_error(error),
        }
        self
    }

    /// Sets the root device, `root=`.
    pub fn root(&mut self, device: &str) -> &mut Self {
        self.arg(CmdlineArg::kv("root", device))
    }

    /// Sets the console to this one only, `console=`; [`append`](Self::append) adds another.
    pub fn console(&mut self, device: &str) -> &mut Self {
        self.arg(CmdlineArg::kv("console", device))
    }

    /// Sets the consoles of a VM with a serial port on this architecture: that port, and after it the
    /// virtio console, if there is one. Kernel messages go to both, and `/dev/console` is the last.
    ///
    /// The driver of a virtio console handles each write before its interrupt arrives. After 100,000 such
    /// interrupts Linux (6.1) reports the interrupt as stuck and disables it, unless `noirqdebug` is set.
    pub fn consoles(&mut self, arch: Arch, is_virtio: bool) -> &mut Self {
        self.console(if arch == Arch::Aarch64 { "ttyAMA0" } else { "ttyS0" });
        if is_virtio {
            self.append(CmdlineArg::kv("console", "hvc0")).arg("noirqdebug");
        }
        self
    }

    /// Adds an argument for init, after `--`. It may be empty and may contain blanks and `=`.
    ///
    /// `--` itself is rejected: the kernel stops reading at a second one.
    pub fn init_arg(&mut self, arg: impl Into<String>) -> &mut Self {
        let arg = arg.into();
        match text::check_init_arg(&arg) {
            Ok(()) => self.init_args.push(arg),
            Err(error) => self.store_error(error),
        }
        self
    }

    /// Makes `text` the whole command line, unchanged; the arguments stay but are not written.
    ///
    /// The text is not parsed. Control bytes are rejected.
    pub fn override_with(&mut self, text: impl Into<String>) -> &mut Self {
        let text = text.into();
        match text::check_override(&text) {
            Ok(()) => self.override_text = Some(text),
            Err(error) => self.store_error(error),
        }
        self
    }

    /// Removes every argument with this key and returns the last one, which is the one in effect.
    pub fn remove(&mut self, key: &str) -> Option<CmdlineArg> {
        let last = self.args.iter().rfind(|arg| arg.same_key(key)).cloned();
        self.args.retain(|arg| !arg.same_key(key));
        last
    }

    /// Merges `over` into this line: its arguments replace those with the same keys and follow the rest.
    ///
    /// A key of `over` replaces its whole group here, and all of `over`'s own values are kept.
    /// Arguments for init are one such group, the override is another. An error of either is kept.
    pub fn merge(&mut self, over: &Self) -> &mut Self {
        self.args.retain(|old| !over.contains(old.key()));
        self.args.extend_from_slice(&over.args);
        if !over.init_args.is_empty() {
            self.init_args.clone_from(&over.init_args);
        }
        if over.override_text.is_some() {
            self.override_text.clone_from(&over.override_text);
        }
        if let Some(error) = &over.error {
            self.store_error(error.clone());
        }
        self
    }

    /// Whether an argument with this key is there, with a value or without.
    pub fn contains(&self, key: &str) -> bool {
        self.args.iter().any(|arg| arg.same_key(key))
    }

    /// The value of the last argument with this key, as the kernel sees it.
    ///
    /// `None` when there is none, and when the last one is a flag.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.args.iter().rfind(|arg| arg.same_key(key))?.value()
    }

    /// The values of all arguments with this key, in order; flags have none.
    pub fn get_all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.args.iter().filter(move |arg| arg.same_key(key)).filter_map(CmdlineArg::value)
    }

    /// The arguments in the order in which they will be written, without those for init.
    pub fn iter(&self) -> impl Iterator<Item = &CmdlineArg> {
        self.args.iter()
    }

    /// The arguments for init, in order.
    pub fn init_args(&self) -> &[String] {
        &self.init_args
    }

    /// The text that replaces the whole line, if any.
    pub fn override_text(&self) -> Option<&str> {
        self.override_text.as_deref()
    }

    /// Whether nothing would be written: no argument, none for init, no override.
    pub fn is_empty(&self) -> bool {
        self.args.is_empty() && self.init_args.is_empty() && self.override_text.is_none()
    }

    /// Whether all arguments were valid.
    ///
    /// # Errors
    ///
    /// The first error. It stays for the lifetime of this value.
    pub fn check(&self) -> Result<(), CmdlineError> {
        self.error.clone().map_or(Ok(()), Err)
    }

    /// The command line as text, or the override.
    ///
    /// Rejected arguments are omitted, so the text never contains an injected argument, but it may be
    /// incomplete. Use [`build_checked`](Self::build_checked) for a line that a guest
    /// will boot with.
    pub fn build(&self) -> String {
        if let Some(text) = &self.override_text {
            return text.clone();
        }
        let mut line = String::new();
        for arg in &self.args {
            text::separate(&mut line);
            arg.write_to(&mut line);
        }
        if !self.init_args.is_empty() {
            text::separate(&mut line);
            line.push_str("--");
        }
        for arg in &self.init_args {
            line.push(' ');
            text::write_init_arg(&mut line, arg);
        }
        line
    }

    /// The command line as text, at most `max` bytes of it; see [`MAX_LEN`].
    ///
    /// # Errors
    ///
    /// The first refusal, see [`check`](Self::check); [`CmdlineError::TooLong`] when the line, or
    /// the override, has more than `max` bytes (the NUL behind it not counted).
    pub fn build_checked(&self, max: usize) -> Result<String, CmdlineError> {
        self.check()?;
        let line = self.build();
        if line.len() > max {
            return Err(CmdlineError::TooLong { len: line.len(), max });
        }
        Ok(line)
    }

    fn store_error(&mut self, error: CmdlineError) {
        self.error.get_or_insert(error);
    }
}

impl FromStr for KernelCmdline {
    type Err = CmdlineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for KernelCmdline {
    /// What [`build`](KernelCmdline::build) gives.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.build())
    }
}
