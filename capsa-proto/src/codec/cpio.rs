//! Writes a cpio archive in the format `newc`, which the kernel unpacks as an initramfs.
//!
//! Grammar, from the kernel's `driver-api/early-userspace/buffer-format.rst`:
//!
//! ```text
//! archive = *entry trailer
//! entry   = header name NUL padding content padding
//! header  = "070701" 13*(8 hexadecimal digits)      ; 110 bytes
//! trailer = header "TRAILER!!!" NUL padding
//! ```
//!
//! Paddings are zero bytes up to a multiple of 4, counted from the begin of the archive. So an archive that
//! follows other bytes must begin at a multiple of 4.

use alloc::format;
use alloc::vec::Vec;

/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// The type bits of a regular file and of a directory, as in `st_mode`.
const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

/// An archive that is being written. Each entry belongs to root.
#[derive(Debug, Default)]
pub struct CpioWriter {
    bytes: Vec<u8>,
    entries: u32,
}

impl CpioWriter {
    /// An empty archive.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), entries: 0 }
    }

    /// Adds a directory. `name` has no leading slash.
    pub fn directory(&mut self, name: &str, permissions: u32) {
        self.entry(name, DIRECTORY | permissions, &[]);
    }

    /// Adds a regular file. A directory in `name` must be an entry before it.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.entry(name, FILE | permissions, content);
    }

    /// The archive. Its length is a multiple of 4.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        let [uid, gid, links, mtime, device, check] = [0, 0, 1, 0, 0, 0];
        let fields = [
            self.entries,
            mode,
            uid,
            gid,
            links,
            mtime,
            size,
            device,
            device,
            device,
            device,
            name_size,
            check,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// What an initrd begins with, if the kernel unpacks it as an initramfs: the magic of a cpio archive, or of
/// a compression (`lib/decompress.c`). A file system image, the initrd before 2.6, begins with neither.
const MAGICS: [&[u8]; 10] = [
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"\x1f\x9e",
    b"BZh",
    b"\x5d\x00\x00",
    b"\xfd7zXZ\x00",
    b"\x89LZO",
    b"\x02\x21\x4c\x18",
    b"\x28\xb5\x2f\xfd",
];

/// Whether a file with these first bytes is a cpio archive, or a compressed file that may be one.
pub fn is_initramfs(head: &[u8]) -> bool {
    MAGICS.iter().any(|magic| head.starts_with(magic))
}

/// How many zero bytes separate an initramfs of this length from an uncompressed archive behind it. The
/// kernel skips them.
///
/// The archive begins at a multiple of 4. There are at least 4 bytes, because the kernel's LZ4 decompressor
/// reads a length of zero as the end (Linux 5.10, `lib/decompress_unlz4.c`); it would read an archive as
/// compressed data.
pub const fn separator_len(initramfs: u64) -> u64 {
    (initramfs + 4).next_multiple_of(4) - initramfs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::string::String;

    #[test]
    fn archive_has_headers_and_paddings() {
        let mut writer = CpioWriter::new();
        writer.directory("d", 0o700);
        writer.file("d/abc", 0o600, b"12345");
        let bytes = writer.finish();
        let zeros = "0".repeat(8);
        let header = |ino, mode: u32, size, name_size| {
            std::format!(
                "070701{ino:08x}{mode:08x}{zeros}{zeros}{:08x}{zeros}{size:08x}{zeros}{zeros}{zeros}{zeros}\
                 {name_size:08x}{zeros}",
                1
            )
        };
        let want = [
            header(1, 0o040_700, 0, 2) + "d\0" + "",
            header(2, 0o100_600, 5, 6) + "d/abc\0" + "12345\0\0\0",
            header(3, 0, 0, 11) + "TRAILER!!!\0" + "\0\0\0",
        ];
        assert_eq!(String::from_utf8(bytes).unwrap(), want.concat());
    }

    #[test]
    fn archive_is_read_by_another_implementation() {
        let mut writer = CpioWriter::new();
        writer.directory("capsa-agent", 0o700);
        let content = b"12345678";
        for length in 0..=content.len() {
            let name = std::format!("capsa-agent/{}", "x".repeat(length + 1));
            writer.file(&name, 0o640, &content[..length]);
        }
        let archive = writer.finish();
        assert!(archive.len().is_multiple_of(4));
        let mut rest = &archive[..];
        for n in 0..=content.len() + 1 {
            let mut entry = cpio::NewcReader::new(rest).unwrap();
            let (name, mode) = match n {
                0 => ("capsa-agent".into(), 0o040_700),
                n => (std::format!("capsa-agent/{}", "x".repeat(n)), 0o100_640),
            };
            assert_eq!((entry.entry().name(), entry.entry().mode()), (&*name, mode));
            let mut found = Vec::new();
            entry.read_to_end(&mut found).unwrap();
            assert_eq!(found, content[..n.saturating_sub(1)], "{name}");
            rest = entry.finish().unwrap();
        }
        assert!(cpio::NewcReader::new(rest).unwrap().entry().is_trailer());
    }

    #[test]
    fn initramfs_is_recognised_by_its_magic() {
        for head in [&b"070701000"[..], b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0\0"] {
            assert!(is_initramfs(head), "{head:x?}");
        }
        // A file system image; an old binary archive; the begin of a magic.
        for head in [&[0; 4096][..], b"\xc7\x71", b"07070", b"\x7fELF", b""] {
            assert!(!is_initramfs(head), "{head:x?}");
        }
    }

    #[test]
    fn separator_is_at_least_four_and_aligns() {
        for length in 0..12 {
            let separator = separator_len(length);
            assert!(
                (4..8).contains(&separator) && (length + separator).is_multiple_of(4),
                "{length}"
            );
        }
    }
}
