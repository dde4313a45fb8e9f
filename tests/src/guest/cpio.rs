//! Writes a cpio archive in the `newc` format, which is what the kernel unpacks.
//!
//! Format: kernel documentation, `driver-api/early-userspace/buffer-format.rst`. Uncompressed:
//! under software emulation unpacking costs more than reading.

/// The name of the last entry; a reader stops there.
const TRAILER: &str = "TRAILER!!!";

/// An archive being written. Directories must come before what is in them.
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), entries: 0 }
    }

    pub(super) fn directory(&mut self, name: &str, mode: u32) {
        self.entry(name, 0o040_000 | mode, (0, 0), b"");
    }

    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, (0, 0), content);
    }

    pub(super) fn symlink(&mut self, name: &str, to: &str) {
        self.entry(name, 0o120_777, (0, 0), to.as_bytes());
    }

    pub(super) fn character_device(&mut self, name: &str, mode: u32, number: (u32, u32)) {
        self.entry(name, 0o020_000 | mode, number, b"");
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, (0, 0), b"");
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a file of an initramfs is small");
        let fields = [
            self.entries, // inode
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // mtime
            size,
            0,
            0, // device it is on
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum, unused in this format
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_laid_out_as_the_kernel_documents() {
        let mut archive = Archive::new();
        archive.file("a", 0o644, b"hello");
        let bytes = archive.finish();
        let header = "07070100000001000081a400000000000000000000000100000000\
                      00000005000000000000000000000000000000000000000200000000";
        assert_eq!(&bytes[..110], header.as_bytes());
        assert_eq!(&bytes[110..120], b"a\0hello\0\0\0");
        assert!(bytes[120..].starts_with(b"070701"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
