//! The console: what a guest has said, and who has read how much of it.

mod cursor;
mod scrollback;

pub use cursor::Cursor;
pub use scrollback::{DEFAULT_CAPACITY, Overflow, Scrollback};
