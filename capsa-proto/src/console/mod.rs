//! The console: what a guest has said, and waiting for what it will say.

mod cursor;
mod expect;
mod matcher;
mod scrollback;

pub use cursor::Cursor;
pub use expect::{Expect, Outcome};
pub use matcher::{Hit, Matcher, Search};
pub use scrollback::{DEFAULT_CAPACITY, Overflow, Scrollback};
