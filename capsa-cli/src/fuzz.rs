//! Bodies of fuzz targets: what must hold of a config file, a size and a time, whatever they say.
//!
//! They are called by the fuzzer and, with the committed corpus, by an ordinary test.

use std::path::Path;

use crate::config;
use crate::values;

/// A config file is read or refused, each mistake has a place in it, and what follows the file
/// cannot mend it: the same text is judged the same.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::parse(text, Path::new("/folder")) {
        Ok(settings) => {
            for path in settings.kernel.iter().chain(&settings.initrd) {
                assert!(path.is_absolute(), "{path:?} does not count from the folder");
            }
            let again = config::parse(&format!("{text}\n# a remark"), Path::new("/folder"));
            assert_eq!(again.as_ref(), Ok(&settings), "a remark changes nothing");
        }
        Err(wrongs) => {
            assert!(!wrongs.is_empty(), "a refusal has a reason");
            for wrong in &wrongs {
                assert!(!wrong.why.is_empty() && !wrong.hint.is_empty(), "{wrong:?}");
                assert!(!wrong.why.contains('\n'), "a mistake is one line: {wrong:?}");
            }
            let failure = config::failure(Path::new("f"), text, wrongs).to_string();
            assert!(!failure.chars().any(|c| c.is_control() && !"\n\t".contains(c)), "{failure:?}");
        }
    }
}

/// A size is a whole number of MiB, and is read again from how people write it.
pub fn size(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match values::memory_mb(text) {
        Ok(mb) => {
            assert_eq!(values::memory_mb(&format!("{mb}M")), Ok(mb), "{text:?}");
            assert_eq!(values::memory_mb(&format!("{}", u64::from(mb) << 20)), Ok(mb), "{text:?}");
        }
        Err(why) => assert!(!why.is_empty() && !why.contains('\n'), "{text:?}"),
    }
}

/// A time is read again from how people write it.
pub fn duration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match values::duration(text) {
        Ok(time) => {
            let again = humantime::format_duration(time).to_string();
            assert_eq!(values::duration(&again), Ok(time), "{text:?} {again}");
        }
        Err(why) => assert!(!why.is_empty() && !why.contains('\n'), "{text:?}"),
    }
}
