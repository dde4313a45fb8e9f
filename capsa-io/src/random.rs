//! Random numbers for directory names and for the begin and end marks of commands.
//!
//! They come from the seed of the standard library's hash maps, which the system's randomness
//! provides. That is enough here, because nothing secret depends on them, and it saves a
//! dependency.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// An unpredictable number. Not for cryptographic keys.
pub fn number() -> u64 {
    // Each `RandomState` has different keys.
    RandomState::new().hash_one(std::process::id())
}

/// A secret key. The standard library's hash maps have keys from the system's randomness, and their hash
/// function is a keyed one, so no output of it reveals another.
pub(crate) fn key() -> [u8; 16] {
    let keys = RandomState::new();
    let [low, high] = [0_u8, 1].map(|half| keys.hash_one(half));
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Whether [`name`] could have returned this text.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|byte| DIGITS.contains(&byte))
}

/// A random name: eight characters of `0-9a-v`.
pub fn name() -> String {
    let number = number();
    (0..8).map(|n| char::from(DIGITS[(number >> (5 * n)) as usize % 32])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_distinct_and_valid() {
        let names: std::collections::BTreeSet<_> = (0..1000).map(|_| name()).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| is_name(name)));
    }
}
