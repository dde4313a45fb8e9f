//! Reads small files whose paths come from the user.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

use crate::settings::Settings;

/// The content of a file that has at most `limit` bytes.
///
/// A pipe that this program inherited is accepted, such as `/dev/stdin` or a shell's `<(…)`. A named
/// pipe and a device are rejected, because reading them may never end.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    reject_unless_file(&fs::metadata(path)?, path)?;
    // The path may lead to another file by now.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    let found = file.metadata()?;
    reject_unless_file(&found, path)?;
    if found.file_type().is_fifo() {
        // An inherited pipe may block until its writer has written.
        file = File::open(path)?;
    }
    let too_long = || {
        let reason = format!("it has more than {limit} bytes");
        Err(io::Error::new(ErrorKind::FileTooLarge, reason))
    };
    if found.len() > limit {
        return too_long();
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { too_long() } else { Ok(bytes) }
}

fn reject_unless_file(found: &Metadata, path: &Path) -> io::Result<()> {
    let kind = found.file_type();
    let reason = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "it is a directory"
    } else if kind.is_fifo() {
        // An inherited pipe has no path.
        if fs::canonicalize(path).is_err() {
            return Ok(());
        }
        "it is a named pipe"
    } else {
        "it is a device or a socket"
    };
    Err(io::Error::new(ErrorKind::InvalidInput, reason))
}

/// The password of these settings, or why its file cannot be read; `None` without a password file. Call it
/// once per run: the file may be a pipe, such as a shell's `<(…)`, which is empty after that.
pub(crate) fn password(settings: &Settings) -> Option<io::Result<String>> {
    settings.password_file.as_deref().map(first_line)
}

/// The password in a file: its first line.
pub(crate) fn first_line(path: &Path) -> io::Result<String> {
    let invalid = |reason: &str| io::Error::new(ErrorKind::InvalidData, reason.to_owned());
    let bytes = read_at_most(path, 4096)?;
    let text = String::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8"))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(invalid("its first line is empty"));
    }
    if line.chars().any(char::is_control) {
        return Err(invalid("its first line has a control character"));
    }
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn read_rejects_endless_and_large_files() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, huge) = (dir.path().join("fifo"), dir.path().join("huge"));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        for (path, reason) in [
            (dir.path(), "a directory"),
            (&fifo, "a named pipe"),
            (Path::new("/dev/zero"), "a device"),
            (&huge, "more than 10 bytes"),
            (&dir.path().join("none"), "No such file"),
        ] {
            let error = read_at_most(path, 10).unwrap_err().to_string();
            assert!(error.contains(reason), "{path:?}: {error}");
        }
    }

    #[test]
    fn read_accepts_inherited_pipe() {
        let (read, mut write) = io::pipe().unwrap();
        let writer = std::thread::spawn(move || write.write_all(b"text").unwrap());
        let path = format!("/dev/fd/{}", read.as_raw_fd());
        assert_eq!(read_at_most(Path::new(&path), 10).unwrap(), b"text");
        writer.join().unwrap();
    }

    #[test]
    fn first_line_must_be_printable_and_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        for (text, want) in [
            ("secret\nmore", Some("secret")),
            ("no newline", Some("no newline")),
            ("dos\r\n", Some("dos")),
            ("", None),
            ("\nsecond", None),
            ("a\u{3}b\n", None),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(first_line(&file).ok().as_deref(), want, "{text:?}");
        }
        fs::write(&file, b"\xff\n").unwrap();
        assert!(first_line(&file).unwrap_err().to_string().contains("UTF-8"));
        assert!(first_line(dir.path()).unwrap_err().to_string().contains("directory"));
    }
}
