//! What a kernel file is, by its first bytes.
//!
//! It names the images that direct boot takes and the files that users pass instead of one. It reads no
//! file. The rule: a file that is not recognised is refused, except on an unknown architecture.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use crate::host::Arch;

/// The magic number of an ELF file.
const ELF: &[u8] = b"\x7fELF";

/// A file format: what it is called, how it is recognised, and how to make a kernel of it. Without a
/// remedy of its own, the remedy is the kernel that the architecture needs.
struct KernelFormat(&'static str, fn(&[u8]) -> bool, Option<&'static str>);

/// The first that applies counts.
const FORMATS: &[KernelFormat] = &[
    KernelFormat("an x86-64 bzImage", |head| has(head, 0x202, b"HdrS"), None),
    KernelFormat(
        "an EFI zboot image",
        |head| has(head, 0, b"MZ\0\0zimg"),
        Some("decompress it, e.g. with unzboot, or build the target Image"),
    ),
    KernelFormat("an arm64 Image", |head| has(head, 0x38, b"ARM\x64"), None),
    KernelFormat("an ELF file for arm64", |head| is_elf(head, 0xb7), None),
    KernelFormat("an ELF file", |head| has(head, 0, ELF), None),
    KernelFormat(
        "a unified kernel image (UKI)",
        |head| has(head, 0, b"MZ") && head.windows(8).any(|name| name == b".linux\0\0"),
        Some(
            "take the kernel out of it: objcopy -O binary --only-section=.linux FILE vmlinuz; in the \
             same way .initrd and .cmdline",
        ),
    ),
    KernelFormat("an EFI program", |head| has(head, 0, b"MZ"), None),
    KernelFormat(
        "a gzip file",
        |head| has(head, 0, b"\x1f\x8b"),
        Some("decompress it: zcat vmlinuz > Image"),
    ),
    KernelFormat("an xz file", |head| has(head, 0, b"\xfd7zXZ\0"), Some("decompress it: xzcat")),
    KernelFormat(
        "a zstd file",
        |head| has(head, 0, b"\x28\xb5\x2f\xfd"),
        Some("decompress it: zstdcat"),
    ),
    KernelFormat(
        "an lz4 file",
        |head| has(head, 0, b"\x02\x21\x4c\x18"),
        Some("decompress it: lz4cat"),
    ),
    KernelFormat("a cpio archive, as initrds are", |head| has(head, 0, b"07070"), None),
    KernelFormat("a U-Boot image", |head| has(head, 0, b"\x27\x05\x19\x56"), None),
    KernelFormat("a device tree or FIT image", |head| has(head, 0, b"\xd0\x0d\xfe\xed"), None),
    KernelFormat("an Android boot image", |head| has(head, 0, b"ANDROID!"), None),
    KernelFormat("a qcow2 disk image", |head| has(head, 0, b"QFI\xfb"), None),
    KernelFormat("a script", |head| has(head, 0, b"#!"), None),
];

/// Why this architecture cannot boot the file: what it is, and the remedy.
pub(crate) fn refusal(arch: Arch, head: &[u8]) -> Option<(String, String)> {
    let (accepted, needed) = match arch {
        Arch::X86_64 => (
            &["an x86-64 bzImage", "an ELF file"][..],
            "use a bzImage (usually named vmlinuz) or an ELF vmlinux",
        ),
        Arch::Aarch64 => (&["an arm64 Image"][..], "use an uncompressed arm64 Image"),
        Arch::Other => return None,
    };
    let found = FORMATS.iter().find(|KernelFormat(_, is, _)| is(head));
    match found {
        Some(KernelFormat(name, ..)) if accepted.contains(name) => None,
        Some(KernelFormat(name, _, remedy)) => {
            let what = format!("is {name}, which VMs for {} cannot boot", arch.as_str());
            Some((what, remedy.unwrap_or(needed).to_owned()))
        }
        None => Some(("is not a bootable kernel image".to_owned(), needed.to_owned())),
    }
}

/// Whether only parts of the file are loaded into memory.
pub(crate) fn is_loaded_in_parts(head: &[u8]) -> bool {
    head.starts_with(ELF)
}

/// The memory that a bzImage needs while it decompresses itself: `init_size`, since boot protocol 2.10
/// (Documentation/arch/x86/boot.rst). 0 for other files.
pub(crate) fn size_at_start(head: &[u8]) -> u64 {
    let bytes = |at: usize| head.get(at..).and_then(|rest| rest.first_chunk());
    match bytes(0x206).map(|version| u16::from_le_bytes(*version)) {
        Some(version) if has(head, 0x202, b"HdrS") && version >= 0x20a => head
            .get(0x260..0x264)
            .and_then(|size| size.first_chunk())
            .map_or(0, |size| u32::from_le_bytes(*size).into()),
        _ => 0,
    }
}

fn has(head: &[u8], at: usize, magic: &[u8]) -> bool {
    head.get(at..at + magic.len()) == Some(magic)
}

/// Whether it is an ELF file for this machine type.
fn is_elf(head: &[u8], machine: u8) -> bool {
    has(head, 0, ELF) && head.get(18) == Some(&machine)
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    /// A file with these bytes at this offset.
    fn head(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 1024];
        head[at..at + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn refusal_names_file_and_remedy() {
        let mut uki = head(0, b"MZ");
        uki[0x1a8..0x1b0].copy_from_slice(b".linux\0\0");
        let mut arm_elf = head(0, ELF);
        arm_elf[18] = 0xb7;
        let (x86, arm) = (Arch::X86_64, Arch::Aarch64);
        for (arch, head, what, remedy) in [
            (x86, uki.clone(), "a unified kernel image (UKI)", "--only-section=.linux"),
            (arm, uki, "a unified kernel image (UKI)", "--only-section=.linux"),
            (x86, head(0x38, b"ARM\x64"), "an arm64 Image", "use a bzImage"),
            (arm, head(0x202, b"HdrS"), "an x86-64 bzImage", "use an uncompressed arm64 Image"),
            (x86, arm_elf, "an ELF file for arm64", "use a bzImage"),
            (arm, head(0, ELF), "an ELF file", "use an uncompressed arm64 Image"),
            (x86, head(0, b"MZ\0\0zimg"), "an EFI zboot image", "unzboot"),
            (x86, head(0, b"MZ"), "an EFI program", "use a bzImage"),
            (x86, head(0, b"\x1f\x8b"), "a gzip file", "zcat"),
            (arm, head(0, b"\x28\xb5\x2f\xfd"), "a zstd file", "zstdcat"),
            (x86, head(0, b"070701"), "a cpio archive", "use a bzImage"),
            (x86, head(0, b"QFI\xfb"), "a qcow2 disk image", "use a bzImage"),
            (x86, head(0, b"hello"), "not a bootable kernel image", "use a bzImage"),
        ] {
            let (found, hint) =
                refusal(arch, &head).unwrap_or_else(|| panic!("{what} is accepted"));
            assert!(found.contains(what) && hint.contains(remedy), "{found}: {hint}");
        }
        for (arch, head) in [
            (x86, head(0x202, b"HdrS")),
            (x86, head(0, ELF)),
            (arm, head(0x38, b"ARM\x64")),
            (Arch::Other, head(0, b"hello")),
        ] {
            assert_eq!(refusal(arch, &head), None);
        }
    }

    #[test]
    fn size_at_start_is_init_size_of_new_bz_images() {
        let mut image = head(0x202, b"HdrS");
        image[0x260..0x264].copy_from_slice(&0x0234_5678_u32.to_le_bytes());
        assert_eq!(size_at_start(&image), 0);
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        assert_eq!(size_at_start(&image), 0x0234_5678);
        assert_eq!(size_at_start(&image[..0x262]), 0);
    }
}
