//! Bodies of fuzz targets: what holds for every config file, size and time.
//!
//! The fuzzer calls them, and an ordinary test with the committed corpus.

use std::path::Path;

use crate::config;
use crate::values;

/// A config file is read, or it has mistakes with a reason and a hint. A comment at its end changes
/// nothing.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::parse(text, Path::new("/directory")) {
        Ok(settings) => {
            for path in settings.kernel.iter().chain(&settings.initrd) {
                assert!(path.is_absolute(), "{path:?} is not relative to the directory");
            }
            let again = config::parse(&format!("{text}\n# a comment"), Path::new("/directory"));
            assert_eq!(again.as_ref(), Ok(&settings), "a comment changes nothing");
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "an error has a mistake");
            for mistake in &mistakes {
                assert!(!mistake.reason.is_empty() && !mistake.hint.is_empty(), "{mistake:?}");
                assert!(!mistake.reason.contains('\n'), "a mistake is one line: {mistake:?}");
            }
            let failure = config::failure(Path::new("f"), text, mistakes).to_string();
            assert!(!failure.chars().any(|c| c.is_control() && !"\n\t".contains(c)), "{failure:?}");
        }
    }
}

/// A size is a whole number of MiB. Written in MiB or in bytes it is parsed to the same size.
pub fn size(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match values::memory_mb(text) {
        Ok(mb) => {
            assert_eq!(values::memory_mb(&format!("{mb}M")), Ok(mb), "{text:?}");
            assert_eq!(values::memory_mb(&format!("{}", u64::from(mb) << 20)), Ok(mb), "{text:?}");
        }
        Err(reason) => assert!(!reason.is_empty() && !reason.contains('\n'), "{text:?}"),
    }
}

/// A time is parsed to the same time after it was formatted.
pub fn duration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match values::duration(text) {
        Ok(time) => {
            let again = humantime::format_duration(time).to_string();
            assert_eq!(values::duration(&again), Ok(time), "{text:?} {again}");
        }
        Err(reason) => assert!(!reason.is_empty() && !reason.contains('\n'), "{text:?}"),
    }
}
