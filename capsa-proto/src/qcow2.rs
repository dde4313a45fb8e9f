//! The parts of the qcow2 format that Capsa needs: parsing a header, and creating an empty overlay.
//!
//! Source: QEMU's `docs/interop/qcow2.rst`, versions 2 and 3. Numbers are big-endian. This module
//! neither reads nor writes the data of a disk; the hypervisor does.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use serde::Serialize;

use crate::host::{FileFacts, HostFacts};
use crate::path::HostPath;
use crate::spec::ImageFormat;

/// The size limit for disks with an overlay: that of cloud-hypervisor (v53).
pub(crate) const MAX_VIRTUAL_SIZE: u64 = 1 << 44;

/// The longest name of a backing file, in bytes.
pub(crate) const MAX_BACKING_NAME: usize = 1023;

/// The magic number at the start of every image.
pub const MAGIC: &[u8; 4] = b"QFI\xfb";

/// The longest supported backing chain. QEMU has no limit.
pub const MAX_CHAIN: usize = 32;

/// The relevant fields of an image header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Header {
    /// The size of the disk in bytes.
    pub virtual_size: u64,
    /// The name of the backing file, as in the header.
    pub backing: Option<String>,
    /// The format of the backing file, if the header declares one.
    pub backing_format: Option<ImageFormat>,
    /// A feature that makes the hypervisor open more than the image and its backing file, or guess a
    /// format: a noun phrase for messages.
    pub unsupported: Option<&'static str>,
}

impl Qcow2Header {
    /// Parses the first bytes of an image. `None` if they are not a qcow2 header, or are truncated, also
    /// if the name of the backing file lies beyond them.
    pub fn parse(head: &[u8]) -> Option<Self> {
        let field = |at: usize, len: usize| head.get(at..at + len);
        let number = |at: usize, len: usize| {
            Some(field(at, len)?.iter().fold(0, |n: u64, byte| n << 8 | u64::from(*byte)))
        };
        if field(0, 4)? != MAGIC || !matches!(number(4, 4)?, 2 | 3) {
            return None;
        }
        let (at, len) = (number(8, 8)?, number(16, 4)?);
        let backing = match at {
            0 => None,
            at => {
                let at = usize::try_from(at).ok()?;
                let name = head.get(at..at.checked_add(usize::try_from(len).ok()?)?)?;
                Some(core::str::from_utf8(name).ok()?.to_owned())
            }
        };
        let (extensions, features) = match number(4, 4)? {
            2 => (72, 0),
            _ => (usize::try_from(number(100, 4)?).ok()?, number(72, 8)?),
        };
        // The extensions end where the name begins: hypervisors ignore anything after that point.
        let end = if at == 0 { head.len() } else { usize::try_from(at).ok()?.min(head.len()) };
        let formats = backing_formats(&head[..end], extensions);
        let unsupported = if features & EXTERNAL_DATA_FILE != 0 {
            Some("an external data file")
        } else if formats.iter().any(|format| !matches!(*format, b"raw" | b"qcow2")) {
            Some("a backing file that is neither raw nor qcow2")
        } else if formats.len() > 1 {
            Some("more than one format for its backing file")
        } else {
            None
        };
        let backing_format = match formats.first() {
            Some(&b"raw") => Some(ImageFormat::Raw),
            Some(&b"qcow2") => Some(ImageFormat::Qcow2),
            _ => None,
        };
        Some(Self { virtual_size: number(24, 8)?, backing, backing_format, unsupported })
    }

    /// The path of the backing file of the image at `path`. `None` if the image has none or it is not a
    /// local file, as in `nbd://host/disk` or `json:{...}`.
    pub fn backing_path(&self, path: &HostPath) -> Option<HostPath> {
        let name = self.backing.as_deref()?;
        // QEMU interprets the text before a colon as a protocol, unless it contains a slash.
        if name.split('/').next().is_some_and(|first| first.contains(':')) {
            return None;
        }
        if name.starts_with('/') {
            return HostPath::new(name).ok();
        }
        let (dir, _) = path.as_str().rsplit_once('/')?;
        HostPath::new(alloc::format!("{dir}/{name}")).ok()
    }
}

/// The formats of the backing file in the header extensions. A valid image has at most one.
fn backing_formats(head: &[u8], mut at: usize) -> Vec<&[u8]> {
    let mut formats = Vec::new();
    while let Some((kind, content)) = extension(head, at)
        && kind != 0
    {
        if kind == BACKING_FORMAT {
            formats.push(content);
        }
        at += 8 + content.len().next_multiple_of(8);
    }
    formats
}

/// The kind and the content of the header extension at `at`.
fn extension(head: &[u8], at: usize) -> Option<(u32, &[u8])> {
    let number = |at: usize| {
        let bytes = head.get(at..at.checked_add(4)?)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let begin = at.checked_add(8)?;
    let content = head.get(begin..begin.checked_add(number(at + 4)? as usize)?)?;
    Some((number(at)?, content))
}

/// Why a backing chain is not supported or cannot be determined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackingChainError {
    /// The header is invalid, or the name of the backing file lies beyond the bytes that were read.
    Unreadable(HostPath),
    /// The backing file is not a local file.
    NotALocalFile {
        /// The image.
        image: HostPath,
        /// The name of its backing file.
        backing: String,
    },
    /// The backing file does not exist or cannot be read.
    Missing {
        /// The image.
        image: HostPath,
        /// The file it needs.
        backing: HostPath,
    },
    /// The image has a feature that makes the hypervisor open other files or guess a format.
    UnsupportedFeature {
        /// The image.
        image: HostPath,
        /// The feature.
        what: &'static str,
    },
    /// The backing file has another format than the header declares. A guest may have written it.
    FormatMismatch {
        /// The image.
        image: HostPath,
        /// The file it needs.
        backing: HostPath,
        /// The format that the header declares.
        declared: ImageFormat,
    },
    /// The chain has more than [`MAX_CHAIN`] images, or a cycle.
    TooLong,
}

/// An image of a backing chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingImage {
    /// The file, resolved.
    pub path: HostPath,
    /// Its format: the one that the header above declares, or the one of its content.
    pub format: ImageFormat,
}

/// The backing files of the image at `path`, directly and indirectly, according to the host facts. The
/// nearest one comes first.
///
/// Whether a VM may use them is a question for validation: [`Disk::backing`](crate::spec::Disk::backing).
///
/// # Errors
///
/// If a file of the chain is missing, invalid or not supported.
pub fn backing_chain(
    path: &HostPath,
    host: &HostFacts,
) -> Result<Vec<BackingImage>, BackingChainError> {
    let mut chain: Vec<BackingImage> = Vec::new();
    loop {
        let image = chain.last().map_or(path, |image| &image.path);
        let FileFacts::File { head, .. } = host.file(image) else {
            return Err(BackingChainError::Unreadable(image.clone()));
        };
        if !head.starts_with(MAGIC) {
            return Ok(chain);
        }
        let unreadable = || BackingChainError::Unreadable(image.clone());
        let header = Qcow2Header::parse(head).ok_or_else(unreadable)?;
        if let Some(what) = header.unsupported {
            return Err(BackingChainError::UnsupportedFeature { image: image.clone(), what });
        }
        let Some(name) = &header.backing else { return Ok(chain) };
        let Some(next) = header.backing_path(image) else {
            return Err(BackingChainError::NotALocalFile {
                image: image.clone(),
                backing: name.clone(),
            });
        };
        let next = host.resolve(&next).clone();
        let FileFacts::File { head: backing_head, .. } = host.file(&next) else {
            return Err(BackingChainError::Missing { image: image.clone(), backing: next });
        };
        let format = match backing_head.starts_with(MAGIC) {
            true => ImageFormat::Qcow2,
            false => ImageFormat::Raw,
        };
        // QEMU would open it in the declared format; cloud-hypervisor (v53) detects the format from the
        // first bytes if the header of the image has 104 bytes or fewer.
        if let Some(declared) = header.backing_format
            && declared != format
        {
            let image = image.clone();
            return Err(BackingChainError::FormatMismatch { image, backing: next, declared });
        }
        if chain.len() == MAX_CHAIN {
            return Err(BackingChainError::TooLong);
        }
        chain.push(BackingImage { path: next, format });
    }
}

/// An empty image with a backing file: reads come from the backing file, writes leave it unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overlay {
    /// The backing file.
    pub over: HostPath,
    /// Its format.
    pub format: ImageFormat,
    /// The size of the disk in bytes, a multiple of 512.
    pub virtual_size: u64,
}

/// The content of an image file: pieces of data at their offsets, and zeros everywhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseImage {
    /// The size of the file in bytes.
    pub len: u64,
    /// Each piece: its offset and its bytes.
    pub pieces: Vec<(u64, Vec<u8>)>,
}

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// The bytes of the disk that one entry of the L1 table covers: one cluster of L2 entries.
const L1_COVERAGE: u64 = CLUSTER / 8 * CLUSTER;
/// The length with the compression type. After a header of 104 bytes, cloud-hypervisor (v53) reads no
/// extensions, and would detect the format of the backing file from its first bytes.
const HEADER_LEN: u32 = 112;
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The bit in the incompatible features.
const EXTERNAL_DATA_FILE: u64 = 1 << 2;

impl Overlay {
    /// An overlay of the image at `over`. `None` if the host facts contain no size, the size exceeds
    /// `MAX_VIRTUAL_SIZE`, or the path exceeds `MAX_BACKING_NAME`.
    pub fn new(over: &HostPath, format: ImageFormat, facts: &FileFacts) -> Option<Self> {
        let FileFacts::File { size, head, .. } = facts else { return None };
        let size = match format {
            ImageFormat::Raw => *size,
            ImageFormat::Qcow2 => Qcow2Header::parse(head)?.virtual_size,
        };
        if size > MAX_VIRTUAL_SIZE || over.as_str().len() > MAX_BACKING_NAME {
            return None;
        }
        let virtual_size = size.next_multiple_of(512);
        Some(Self { over: over.clone(), format, virtual_size })
    }

    /// The content of the overlay: header, reference counts, and an L1 table of zeros, in clusters of
    /// 64 KiB.
    pub fn image(&self) -> SparseImage {
        let l1_entries = self.virtual_size.div_ceil(L1_COVERAGE).max(1);
        let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
        let clusters = 3 + l1_clusters;
        let name = self.over.as_str().as_bytes();
        let format = self.format.as_str().as_bytes();
        let extension = 8 + format.len().next_multiple_of(8);
        let name_at = HEADER_LEN as usize + extension + 8;

        let mut header = Vec::with_capacity(name_at + name.len());
        let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
        put(MAGIC);
        put(&3_u32.to_be_bytes());
        put(&(name_at as u64).to_be_bytes());
        put(&(name.len() as u32).to_be_bytes());
        put(&CLUSTER_BITS.to_be_bytes());
        put(&self.virtual_size.to_be_bytes());
        put(&0_u32.to_be_bytes()); // encryption
        put(&(l1_entries as u32).to_be_bytes());
        put(&(3 * CLUSTER).to_be_bytes()); // L1 table offset
        put(&CLUSTER.to_be_bytes()); // reference count table offset
        put(&1_u32.to_be_bytes()); // clusters of that table
        put(&[0; 4 + 8 + 8 + 8 + 8]); // snapshots and features
        put(&4_u32.to_be_bytes()); // reference counts of 16 bits
        put(&HEADER_LEN.to_be_bytes());
        put(&[0; 8]); // compression: zlib, and padding
        put(&BACKING_FORMAT.to_be_bytes());
        put(&(format.len() as u32).to_be_bytes());
        put(format);
        put(&vec![0; extension - 8 - format.len()]);
        put(&[0; 8]); // the end of the extensions
        put(name);

        let counts = 1_u16.to_be_bytes().repeat(clusters as usize);
        SparseImage {
            len: clusters * CLUSTER,
            pieces: vec![
                (0, header),
                (CLUSTER, (2 * CLUSTER).to_be_bytes().to_vec()),
                (2 * CLUSTER, counts),
            ],
        }
    }
}

/// Checks the invariants of this module for arbitrary bytes: parsing does not panic; the name in a
/// header lies within the bytes; the header of an overlay parses to the values it was created from.
///
/// # Panics
///
/// If an invariant does not hold.
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    if let Some(header) = Qcow2Header::parse(data) {
        let name = header.backing.as_deref().unwrap_or_default();
        assert!(name.len() <= data.len());
        let image = HostPath::new("/images/top").expect("a path");
        if let Some(path) = header.backing_path(&image) {
            assert!(path.as_str().ends_with(name));
        }
    }
    let Some((size, name)) = data.split_at_checked(5) else { return };
    let size = size.iter().fold(0, |size: u64, byte| size << 8 | u64::from(*byte));
    let Ok(over) = HostPath::new(alloc::format!("/{}", String::from_utf8_lossy(name))) else {
        return;
    };
    let facts = FileFacts::File { size, head: Vec::new(), writable: false, device: false };
    let Some(overlay) = Overlay::new(&over, ImageFormat::Raw, &facts) else {
        assert!(over.as_str().len() > MAX_BACKING_NAME, "any size of 5 bytes is supported");
        return;
    };
    let image = overlay.image();
    let header = Qcow2Header::parse(&image.pieces[0].1).expect("the header of an overlay is valid");
    assert_eq!(header.virtual_size, overlay.virtual_size);
    assert_eq!(header.backing.as_deref(), Some(over.as_str()));
    let ends = image.pieces.iter().map(|(at, bytes)| at + bytes.len() as u64);
    assert!(ends.max().is_some_and(|end| end <= image.len));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Arch, KvmFacts, Os};
    use alloc::collections::BTreeMap;

    fn path(text: &str) -> HostPath {
        HostPath::new(text).unwrap()
    }

    fn file(head: Vec<u8>) -> FileFacts {
        FileFacts::File { size: 1000, head, writable: true, device: false }
    }

    fn overlay(over: &str) -> FileFacts {
        overlay_of(ImageFormat::Qcow2, over)
    }

    fn overlay_of(format: ImageFormat, over: &str) -> FileFacts {
        let overlay = Overlay { over: path("/x"), format, virtual_size: 1 << 30 };
        // Allows names that are not valid as a `HostPath`, such as relative ones.
        let mut head = overlay.image().pieces[0].1.clone();
        let at = head.len() - "/x".len();
        head.truncate(at);
        head.extend_from_slice(over.as_bytes());
        head[16..20].copy_from_slice(&(over.len() as u32).to_be_bytes());
        file(head)
    }

    fn host(files: &[(&str, FileFacts)]) -> HostFacts {
        HostFacts {
            os: Os::Linux,
            arch: Arch::X86_64,
            memory_mb: 1,
            kvm: KvmFacts::ABSENT,
            landlock: None,
            socket_path_max: 107,
            image_locks: Default::default(),
            used_devices: Default::default(),
            share_files: None,
            agent: Err("none"),
            run_dir: path("/r"),
            resolved: [(path("/d/../link"), path("/e/base"))].into(),
            files: files
                .iter()
                .map(|(at, facts)| (path(at), facts.clone()))
                .collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn overlay_header_round_trips() {
        for size in [1, 512, 1000, (1 << 29) + 1, 1 << 40, MAX_VIRTUAL_SIZE] {
            let facts = FileFacts::File { size, head: vec![], writable: false, device: false };
            let overlay = Overlay::new(&path("/base, 1.raw"), ImageFormat::Raw, &facts).unwrap();
            assert!(overlay.virtual_size >= size && overlay.virtual_size < size + 512);
            let image = overlay.image();
            let header = Qcow2Header::parse(&image.pieces[0].1).unwrap();
            assert_eq!(header.virtual_size, overlay.virtual_size);
            assert_eq!(header.backing.as_deref(), Some("/base, 1.raw"));
            assert_eq!(header.backing_format, Some(ImageFormat::Raw));
            assert!(image.pieces.iter().all(|(at, bytes)| at + bytes.len() as u64 <= image.len));
        }
    }

    #[test]
    fn overlay_too_large_or_path_too_long_is_none() {
        let mut head = overlay("/b");
        let FileFacts::File { head: bytes, .. } = &mut head else { panic!() };
        for size in [MAX_VIRTUAL_SIZE + 1, 1 << 62, u64::MAX] {
            bytes[24..32].copy_from_slice(&size.to_be_bytes());
            let facts = file(bytes.clone());
            assert_eq!(Overlay::new(&path("/image"), ImageFormat::Qcow2, &facts), None);
        }
        let far = path(&alloc::format!("/{}", "d/".repeat(MAX_BACKING_NAME / 2 + 1)));
        assert_eq!(Overlay::new(&far, ImageFormat::Raw, &file(vec![])), None);
    }

    #[test]
    fn backing_chain_lists_all_images_or_error() {
        let plain = vec![0; 512];
        let host = host(&[
            ("/d/top", overlay("middle")),
            ("/d/middle", overlay_of(ImageFormat::Raw, "/e/base")),
            ("/e/base", file(plain)),
            ("/over-raw", overlay_of(ImageFormat::Raw, "/e/base")),
            ("/over-link", overlay_of(ImageFormat::Raw, "/d/../link")),
            ("/qcow2-over-raw", overlay_of(ImageFormat::Qcow2, "/e/base")),
            ("/raw-over-qcow2", overlay_of(ImageFormat::Raw, "/no-backing")),
            ("/no-backing", overlay("missing")),
            ("/remote", overlay("nbd://host/disk")),
            ("/json", overlay("json:{\"driver\":\"file\"}")),
            ("/cycle", overlay("cycle")),
            ("/cut", file(MAGIC.to_vec())),
        ]);
        let chain = |at: &str| super::backing_chain(&path(at), &host);
        let image = |at: &str, format| BackingImage { path: path(at), format };
        let base = image("/e/base", ImageFormat::Raw);
        let middle = image("/d/middle", ImageFormat::Qcow2);
        assert_eq!(chain("/d/top"), Ok(vec![middle, base.clone()]));
        assert_eq!(chain("/over-link"), Ok(vec![base.clone()]));
        let mismatch = chain("/qcow2-over-raw");
        assert!(matches!(mismatch, Err(BackingChainError::FormatMismatch { .. })), "{mismatch:?}");
        assert_eq!(chain("/e/base"), Ok(vec![]));
        assert_eq!(chain("/over-raw"), Ok(vec![base]));
        assert!(matches!(chain("/raw-over-qcow2"), Err(BackingChainError::FormatMismatch { .. })));
        assert!(matches!(chain("/no-backing"), Err(BackingChainError::Missing { .. })));
        assert!(matches!(chain("/remote"), Err(BackingChainError::NotALocalFile { .. })));
        assert!(matches!(chain("/json"), Err(BackingChainError::NotALocalFile { .. })));
        assert_eq!(chain("/cycle"), Err(BackingChainError::TooLong));
        assert_eq!(chain("/cut"), Err(BackingChainError::Unreadable(path("/cut"))));
    }

    /// A header of version 3 with these extensions and a name that begins at `name_at`.
    fn header(features: u64, extensions: &[(u32, &[u8])], name: &str) -> Vec<u8> {
        let FileFacts::File { mut head, .. } = overlay("/b") else { panic!() };
        head.truncate(HEADER_LEN as usize);
        head[72..80].copy_from_slice(&features.to_be_bytes());
        for (kind, content) in extensions {
            head.extend_from_slice(&kind.to_be_bytes());
            head.extend_from_slice(&(content.len() as u32).to_be_bytes());
            head.extend_from_slice(content);
            head.resize(head.len().next_multiple_of(8), 0);
        }
        let name_at = head.len() as u64;
        head[8..16].copy_from_slice(&name_at.to_be_bytes());
        head[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        head.extend_from_slice(name.as_bytes());
        head
    }

    #[test]
    fn backing_chain_unsupported_feature_is_error() {
        let raw: (u32, &[u8]) = (BACKING_FORMAT, b"raw");
        for (head, what) in [
            (header(EXTERNAL_DATA_FILE, &[], "/base"), "data file"),
            (header(0, &[(BACKING_FORMAT, b"vmdk")], "/base"), "neither"),
            (header(0, &[raw, (BACKING_FORMAT, b"qcow2")], "/base"), "more than one"),
        ] {
            let host = host(&[("/image", file(head)), ("/base", file(vec![0; 512]))]);
            let Err(BackingChainError::UnsupportedFeature { what: found, .. }) =
                backing_chain(&path("/image"), &host)
            else {
                panic!("{what} was accepted")
            };
            assert!(found.contains(what), "{found}");
        }
    }

    #[test]
    fn extension_after_name_is_ignored() {
        // No end marker: the extensions end at the name, whose bytes look like an extension.
        let mut head = header(0, &[], "\0\0\0\u{1}\0\0\0\0");
        head.extend_from_slice(&BACKING_FORMAT.to_be_bytes());
        head.extend_from_slice(b"\0\0\0\x03raw\0\0\0\0\0\0");
        assert_eq!(Qcow2Header::parse(&head).unwrap().backing_format, None);
    }

    #[test]
    fn parse_truncated_or_out_of_range_is_none() {
        let FileFacts::File { head, .. } = overlay("/b") else { panic!() };
        for cut in 0..head.len() {
            assert_eq!(Qcow2Header::parse(&head[..cut]), None, "{cut}");
        }
        let mut far = head.clone();
        far[8..16].copy_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(Qcow2Header::parse(&far), None);
        let mut long = head;
        long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(Qcow2Header::parse(&long), None);
    }
}
