//! Numbers that differ from each other, for names of directories and marks on a console.
//!
//! The standard library seeds each program's hash maps from the system's randomness; that is enough
//! here, where nothing secret hangs on it, and saves a crate.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// A number that nobody can guess beforehand. Not for keys.
pub fn number() -> u64 {
    // The keys of each `RandomState` differ from the last one's.
    RandomState::new().hash_one(std::process::id())
}

const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Whether [`name`] could have given this.
pub fn is_name(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|byte| DIGITS.contains(&byte))
}

/// Eight characters of `0-9a-v`.
pub fn name() -> String {
    let number = number();
    (0..8).map(|n| char::from(DIGITS[(number >> (5 * n)) as usize % 32])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ() {
        let names: std::collections::BTreeSet<_> = (0..1000).map(|_| name()).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| is_name(name)));
    }
}
