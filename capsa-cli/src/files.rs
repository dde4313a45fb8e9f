//! Reads small files that a user names.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// All of a file that has no more than `most` bytes.
///
/// A pipe will do, such as `/dev/stdin` or what a shell gives for `<(…)`.
pub(crate) fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let why = format!("it has more than {most} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// The first line of a file, which is a password.
pub(crate) fn first_line(path: &Path) -> io::Result<String> {
    let bytes = read_at_most(path, 4096)?;
    let not_text = |_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8");
    let text = String::from_utf8(bytes).map_err(not_text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
