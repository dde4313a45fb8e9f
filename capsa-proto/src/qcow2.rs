//! As much of the qcow2 format as a careful user of images needs: what a header says, and the bytes of
//! an empty overlay.
//!
//! Source: QEMU's `docs/interop/qcow2.rst`, versions 2 and 3. Numbers are big-endian. What this does
//! not do is read or write anybody's data: that is the hypervisor's.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use serde::Serialize;

use crate::host::{FileFacts, HostFacts};
use crate::path::HostPath;
use crate::spec::ImageFormat;

/// The largest disk an overlay is made for: what cloud-hypervisor (v53) opens.
pub const MAX_VIRTUAL_SIZE: u64 = 1 << 44;

/// The longest name of a backing file, in bytes.
pub const MAX_BACKING_NAME: usize = 1023;

/// What every image begins with.
pub const MAGIC: &[u8; 4] = b"QFI\xfb";

/// How many images may stand on each other. QEMU has no such limit; nobody has met it.
pub const MAX_CHAIN: usize = 32;

/// What the header of an image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Header {
    /// The size of the disk in bytes.
    pub virtual_size: u64,
    /// The name of the image beneath, as it stands there.
    pub backing: Option<String>,
    /// The image beneath is said to be raw, whatever it begins with.
    pub backing_is_raw: bool,
    /// What would have the hypervisor open more than the image and the one beneath, as people call it.
    pub unsupported: Option<&'static str>,
}

impl Qcow2Header {
    /// Reads it from the first bytes of an image. `None` where it is none, or is cut off, or names its
    /// backing file behind what is there.
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
        // They end where the name begins: what looks like one in there or behind is not one to others.
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
        let backing_is_raw = formats.first().is_some_and(|format| format == b"raw");
        Some(Self { virtual_size: number(24, 8)?, backing, backing_is_raw, unsupported })
    }

    /// Where the backing file of the image at `path` is. `None` when it is no file, as in
    /// `nbd://host/disk` or `json:{...}`.
    pub fn backing_path(&self, path: &HostPath) -> Option<HostPath> {
        let name = self.backing.as_deref()?;
        // QEMU takes what stands before a colon for a protocol unless a slash comes first.
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

/// What the header extensions say of the backing file's format. One, or none, in a sound image.
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

/// Why the images beneath an image are not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackingChainError {
    /// The header cannot be read, or names its backing file further behind than was looked.
    Unreadable(HostPath),
    /// Its backing file is no file of this host.
    NotALocalFile {
        /// The image.
        image: HostPath,
        /// The name in it.
        backing: String,
    },
    /// The backing file is not there, or cannot be read.
    Missing {
        /// The image.
        image: HostPath,
        /// The file it needs.
        backing: HostPath,
    },
    /// The image has the hypervisor open something else besides.
    UnsupportedFeature {
        /// The image.
        image: HostPath,
        /// What it has.
        what: &'static str,
    },
    /// The backing file is said to be raw and has a qcow2 header: a guest may have written it.
    FormatMismatch {
        /// The image.
        image: HostPath,
        /// The file it needs.
        backing: HostPath,
    },
    /// More than [`MAX_CHAIN`] images, or a circle.
    TooLong,
}

/// The images beneath the one at `path`, the nearest first, by what was seen of the host.
///
/// # Errors
///
/// When they cannot all be found.
pub fn backing_chain(
    path: &HostPath,
    host: &HostFacts,
) -> Result<Vec<HostPath>, BackingChainError> {
    let mut below: Vec<HostPath> = Vec::new();
    loop {
        let image = below.last().unwrap_or(path);
        let FileFacts::File { head, .. } = host.file(image) else {
            return Err(BackingChainError::Unreadable(image.clone()));
        };
        if !head.starts_with(MAGIC) {
            return Ok(below);
        }
        let unreadable = || BackingChainError::Unreadable(image.clone());
        let header = Qcow2Header::parse(head).ok_or_else(unreadable)?;
        if let Some(what) = header.unsupported {
            return Err(BackingChainError::UnsupportedFeature { image: image.clone(), what });
        }
        let Some(name) = &header.backing else { return Ok(below) };
        let Some(next) = header.backing_path(image) else {
            return Err(BackingChainError::NotALocalFile {
                image: image.clone(),
                backing: name.clone(),
            });
        };
        let FileFacts::File { head: beneath, .. } = host.file(&next) else {
            return Err(BackingChainError::Missing { image: image.clone(), backing: next });
        };
        // QEMU would take it for raw; cloud-hypervisor (v53) looks at what it begins with where the
        // header above is of 104 bytes or less.
        if header.backing_is_raw && beneath.starts_with(MAGIC) {
            return Err(BackingChainError::FormatMismatch { image: image.clone(), backing: next });
        }
        if below.len() == MAX_CHAIN {
            return Err(BackingChainError::TooLong);
        }
        below.push(next);
    }
}

/// An empty image over another: reading gives what is beneath, writing leaves that as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overlay {
    /// The image beneath.
    pub over: HostPath,
    /// Its format.
    pub format: ImageFormat,
    /// The size of the disk in bytes, a multiple of 512.
    pub virtual_size: u64,
}

/// An image as it is written: these bytes at these offsets, zeros everywhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseImage {
    /// The size of the file.
    pub len: u64,
    /// What is in it, and where.
    pub pieces: Vec<(u64, Vec<u8>)>,
}

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of the disk that one entry of the first-level table stands for: a cluster of pointers to
/// clusters.
const L1_REACH: u64 = CLUSTER / 8 * CLUSTER;
/// With the type of compression in it. Behind a header of 104 bytes cloud-hypervisor (v53) reads no
/// extension, and would guess the format of the image beneath from what it begins with.
const HEADER_LEN: u32 = 112;
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The bit among the incompatible features.
const EXTERNAL_DATA_FILE: u64 = 1 << 2;

impl Overlay {
    /// An overlay over the image at `over`, as `facts` have it. `None` when they say nothing of a
    /// size, and when that is above [`MAX_VIRTUAL_SIZE`] or the path above [`MAX_BACKING_NAME`].
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

    /// Its bytes: header, reference counts, and a first-level table of zeros, in clusters of 64 KiB.
    pub fn image(&self) -> SparseImage {
        let l1_entries = self.virtual_size.div_ceil(L1_REACH).max(1);
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
        put(&(3 * CLUSTER).to_be_bytes()); // the first-level table
        put(&CLUSTER.to_be_bytes()); // the table of reference counts
        put(&1_u32.to_be_bytes()); // and its clusters
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

/// Laws of this module over arbitrary bytes: nothing panics; what a header names lies in what was
/// read; an overlay reads back as what it was made of.
///
/// # Panics
///
/// When a law does not hold.
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
        assert!(over.as_str().len() > MAX_BACKING_NAME, "any size will do");
        return;
    };
    let image = overlay.image();
    let header = Qcow2Header::parse(&image.pieces[0].1).expect("our own header");
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
        // A name that no path of ours can be, such as a relative one.
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
            run_dir: path("/r"),
            files: files
                .iter()
                .map(|(at, facts)| (path(at), facts.clone()))
                .collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn an_overlay_reads_back_as_what_it_was_made_of() {
        for size in [1, 512, 1000, (1 << 29) + 1, 1 << 40, MAX_VIRTUAL_SIZE] {
            let facts = FileFacts::File { size, head: vec![], writable: false, device: false };
            let overlay = Overlay::new(&path("/base, 1.raw"), ImageFormat::Raw, &facts).unwrap();
            assert!(overlay.virtual_size >= size && overlay.virtual_size < size + 512);
            let image = overlay.image();
            let header = Qcow2Header::parse(&image.pieces[0].1).unwrap();
            assert_eq!(header.virtual_size, overlay.virtual_size);
            assert_eq!(header.backing.as_deref(), Some("/base, 1.raw"));
            assert!(header.backing_is_raw);
            assert!(image.pieces.iter().all(|(at, bytes)| at + bytes.len() as u64 <= image.len));
        }
    }

    #[test]
    fn no_overlay_is_made_for_what_nobody_could_open() {
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
    fn a_chain_is_followed_to_its_end() {
        let plain = vec![0; 512];
        let host = host(&[
            ("/d/top", overlay("middle")),
            ("/d/middle", overlay("/e/base")),
            ("/e/base", file(plain)),
            ("/over-raw", overlay_of(ImageFormat::Raw, "/e/base")),
            ("/over-disguised", overlay_of(ImageFormat::Raw, "/lonely")),
            ("/lonely", overlay("gone")),
            ("/remote", overlay("nbd://host/disk")),
            ("/clever", overlay("json:{\"driver\":\"file\"}")),
            ("/circle", overlay("circle")),
            ("/cut", file(MAGIC.to_vec())),
        ]);
        let chain = |at: &str| super::backing_chain(&path(at), &host);
        assert_eq!(chain("/d/top"), Ok(vec![path("/d/middle"), path("/e/base")]));
        assert_eq!(chain("/e/base"), Ok(vec![]));
        assert_eq!(chain("/over-raw"), Ok(vec![path("/e/base")]));
        assert!(matches!(chain("/over-disguised"), Err(BackingChainError::FormatMismatch { .. })));
        assert!(matches!(chain("/lonely"), Err(BackingChainError::Missing { .. })));
        assert!(matches!(chain("/remote"), Err(BackingChainError::NotALocalFile { .. })));
        assert!(matches!(chain("/clever"), Err(BackingChainError::NotALocalFile { .. })));
        assert_eq!(chain("/circle"), Err(BackingChainError::TooLong));
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
    fn an_image_that_has_more_opened_than_its_base_is_refused() {
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
                panic!("{what} was taken")
            };
            assert!(found.contains(what), "{found}");
        }
    }

    #[test]
    fn what_stands_behind_the_extensions_is_none() {
        // No end of the extensions but the name, which continues as one would.
        let mut head = header(0, &[], "\0\0\0\u{1}\0\0\0\0");
        head.extend_from_slice(&BACKING_FORMAT.to_be_bytes());
        head.extend_from_slice(b"\0\0\0\x03raw\0\0\0\0\0\0");
        assert!(!Qcow2Header::parse(&head).unwrap().backing_is_raw);
    }

    #[test]
    fn a_header_that_lies_is_no_header() {
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
