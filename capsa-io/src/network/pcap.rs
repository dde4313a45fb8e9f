//! A file of the packets that the guest's network card sent and received, as pcapng
//! (draft-ietf-opsawg-pcapng): one section, one Ethernet interface, an enhanced packet block for each frame.
//!
//! An error of the file ends the capture with a warning, never the network. The file then ends after its
//! last complete block.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capsa_proto::time::Instant;
use nix::libc;

/// The largest number of bytes that a call keeps before it writes them.
const BUFFER: usize = 256 << 10;

const SECTION_BLOCK: u32 = 0x0a0d_0d0a;
const INTERFACE_BLOCK: u32 = 1;
const PACKET_BLOCK: u32 = 6;
/// The order of bytes is that of the host.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;
/// `epb_flags`, and its length.
const FLAGS_OPTION: [u16; 2] = [2, 4];

/// The direction of a frame, for the guest's card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PacketDirection {
    Received = 1,
    Sent = 2,
}

/// A capture file.
#[derive(Debug)]
pub(super) struct PacketCapture {
    path: PathBuf,
    /// `None` after an error.
    file: Option<File>,
    /// The length of the file.
    len: u64,
    buffer: Vec<u8>,
    /// The time of day at the origin of the network's clock.
    origin: Option<Duration>,
}

impl PacketCapture {
    /// Creates the file, or replaces its content. Only this user can read it.
    ///
    /// # Errors
    ///
    /// When the file cannot be created or written.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        // Opening a pipe without a reader fails and does not wait.
        let mut file = options.custom_flags(libc::O_NONBLOCK).open(path)?;
        if file.metadata()?.is_file() {
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        let header = header();
        file.write_all(&header)?;
        let len = header.len() as u64;
        Ok(Self { path: path.to_owned(), file: Some(file), len, buffer: Vec::new(), origin: None })
    }

    /// Adds a frame.
    pub(super) fn add<'a>(
        &mut self,
        direction: PacketDirection,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
        now: Instant,
    ) {
        if self.file.is_none() {
            return;
        }
        let since = Duration::from_micros(now.as_micros());
        let origin = *self.origin.get_or_insert_with(|| {
            let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            today.saturating_sub(since)
        });
        write_packet(&mut self.buffer, direction, (origin + since).as_micros() as u64, parts);
        if self.buffer.len() >= BUFFER {
            self.flush();
        }
    }

    /// Writes the frames that were added.
    pub(super) fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        match file.write_all(&self.buffer) {
            Ok(()) => self.len += self.buffer.len() as u64,
            Err(error) => {
                let path = self.path.display();
                tracing::warn!("the packet capture in {path} ends: {error}");
                // It fails if the file is a pipe.
                let _ = file.set_len(self.len);
                self.file = None;
            }
        }
        self.buffer = Vec::new();
    }
}

/// The blocks before the packets.
fn header() -> Vec<u8> {
    let mut out = Vec::new();
    write_block(&mut out, SECTION_BLOCK, |out| {
        out.extend(BYTE_ORDER_MAGIC.to_ne_bytes());
        // Version 1.0, and a section of unknown length.
        out.extend([1_u16, 0].map(u16::to_ne_bytes).concat());
        out.extend((-1_i64).to_ne_bytes());
    });
    write_block(&mut out, INTERFACE_BLOCK, |out| {
        out.extend([ETHERNET, 0].map(u16::to_ne_bytes).concat());
        // No limit of length. Without the option `if_tsresol`, times are in microseconds.
        out.extend(0_u32.to_ne_bytes());
    });
    out
}

fn write_packet<'a>(
    out: &mut Vec<u8>,
    direction: PacketDirection,
    micros: u64,
    parts: impl Iterator<Item = &'a [u8]> + Clone,
) {
    write_block(out, PACKET_BLOCK, |out| {
        let len = parts.clone().map(<[u8]>::len).sum::<usize>() as u32;
        let interface = 0;
        let fields = [interface, (micros >> 32) as u32, micros as u32, len, len];
        out.extend(fields.map(u32::to_ne_bytes).concat());
        parts.for_each(|part| out.extend(part));
        out.resize(out.len() + (len.next_multiple_of(4) - len) as usize, 0);
        out.extend(FLAGS_OPTION.map(u16::to_ne_bytes).concat());
        out.extend((direction as u32).to_ne_bytes());
        // The end of the options.
        out.extend([0; 4]);
    });
}

/// Writes a block: its type and its length, the content, its length again.
fn write_block(out: &mut Vec<u8>, kind: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_ne_bytes());
    out.extend([0; 4]);
    write(out);
    let len = ((out.len() - start + 4) as u32).to_ne_bytes();
    out[start + 4..start + 8].copy_from_slice(&len);
    out.extend(len);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of a file: type and content.
    fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
        let number = |at: &[u8]| u32::from_ne_bytes(at[..4].try_into().unwrap());
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let len = number(&file[4..]) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(number(&file[len - 4..]) as usize, len);
            blocks.push((number(file), &file[8..len - 4]));
            file = &file[len..];
        }
        blocks
    }

    #[test]
    fn capture_has_both_directions_and_padding() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, "old").unwrap();
        let mut capture = PacketCapture::create(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let now = Instant::from_micros(7);
        capture.add(PacketDirection::Sent, [&b"frame"[..]].into_iter(), now);
        let parts = [&b"he"[..], b"ad", b"body"].into_iter();
        capture.add(PacketDirection::Received, parts, now + Duration::from_micros(5));
        capture.flush();
        let file = std::fs::read(&path).unwrap();
        let blocks = blocks(&file);
        let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION_BLOCK, INTERFACE_BLOCK, PACKET_BLOCK, PACKET_BLOCK]);
        let [sent, received] = [blocks[2].1, blocks[3].1];
        assert_eq!((&sent[20..25], &sent[25..28]), (&b"frame"[..], &[0; 3][..]));
        assert_eq!(sent[32], PacketDirection::Sent as u8);
        assert_eq!((&received[20..28], received[32]), (&b"headbody"[..], 1));
        let micros = |block: &[u8]| {
            let word = |at: usize| u32::from_ne_bytes(block[at..at + 4].try_into().unwrap());
            u64::from(word(4)) << 32 | u64::from(word(8))
        };
        assert_eq!(micros(received) - micros(sent), 5);
        let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        assert!(micros(sent).abs_diff(today) < 60_000_000);
    }

    #[test]
    fn full_disk_ends_the_capture_only() {
        let mut capture = PacketCapture::create(Path::new("/dev/null")).unwrap();
        capture.file = Some(File::options().write(true).open("/dev/full").unwrap());
        for _ in 0..3 {
            capture.add(PacketDirection::Sent, [&[0; 100][..]].into_iter(), Instant::ZERO);
            capture.flush();
        }
        assert!(capture.file.is_none() && capture.buffer.is_empty());
    }
}
