//! Trees of small modules: order, compression, and files that are no modules.

use std::io::Write;

use super::*;

/// An ELF file with this `.modinfo` section.
fn module(modinfo: &[&str]) -> Vec<u8> {
    let info: Vec<u8> =
        modinfo.iter().flat_map(|entry| [entry.as_bytes(), b"\0"].concat()).collect();
    let names = b"\0.modinfo\0.shstrtab\0";
    let (info_at, names_at) = (64, 64 + info.len());
    let table_at = names_at + names.len();
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Type REL, machine x86-64, version.
    elf.extend([1, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend([0; 16]);
    elf.extend((table_at as u64).to_le_bytes());
    // Flags, header size, no program headers, three sections of 64 bytes, names in the third.
    elf.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
    elf.extend(&info);
    elf.extend(names);
    let section = |name: u32, kind: u32, at: usize, length: usize| {
        let words = [0, 0, at as u64, length as u64, 0, 1, 0].map(u64::to_le_bytes).concat();
        [&name.to_le_bytes()[..], &kind.to_le_bytes(), &words].concat()
    };
    elf.extend([0; 64]);
    elf.extend(section(1, 1, info_at, info.len()));
    elf.extend(section(10, 3, names_at, names.len()));
    elf
}

struct ModuleDir(tempfile::TempDir);

impl ModuleDir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(self, path: &str, content: &[u8]) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn collect(&self, wanted: &[&str]) -> io::Result<(Vec<String>, Vec<String>)> {
        let set = ModuleTree::open(self.0.path())?.collect(wanted)?;
        Ok((set.modules.into_iter().map(|module| module.name).collect(), set.missing))
    }
}

fn xz(content: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(6);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn modules_come_after_those_they_need() {
    let tree = ModuleDir::new()
        .with(
            "kernel/fs/fuse/virtiofs.ko.xz",
            &xz(&module(&["license=GPL", "depends=fuse,virtio"])),
        )
        .with("kernel/fs/fuse/fuse.ko.gz", &gzip(&module(&["depends="])))
        .with("kernel/drivers/virtio.ko.zst", &zstd(&module(&["depends=virtio-ring"])))
        .with("kernel/drivers/virtio-ring.ko", &module(&["softdep=pre: fuse absent post: other"]))
        .with("modules.builtin", b"kernel/net/vsock.ko\n");
    assert_eq!(
        tree.collect(&["virtiofs", "virtio-ring", "vsock", "overlay"]).unwrap(),
        (
            ["fuse", "virtio_ring", "virtio", "virtiofs"].map(str::to_owned).into(),
            vec!["overlay".to_owned()]
        )
    );
}

#[test]
fn modules_in_a_circle_come_once() {
    let tree = ModuleDir::new()
        .with("a.ko", &module(&["depends=b"]))
        .with("b.ko", &module(&["depends=a"]));
    assert_eq!(tree.collect(&["a"]).unwrap().0, ["b", "a"]);
}

#[test]
fn content_is_decompressed() {
    let content = module(&["description=x"]);
    let tree = ModuleDir::new().with("a.ko.xz", &xz(&content));
    let set = ModuleTree::open(tree.0.path()).unwrap().collect(&["a"]).unwrap();
    assert_eq!(set.modules, [KernelModule { name: "a".to_owned(), content }]);
}

#[test]
fn unusable_module_is_named() {
    let tree = ModuleDir::new()
        .with("text.ko", b"no ELF")
        .with("cut.ko.xz", &xz(&module(&[]))[..40])
        .with("needy.ko", &module(&["depends=nothing"]))
        .with("modules.builtin", b"kernel/net/vsock.ko\n");
    let error = |name: &str| tree.collect(&[name]).unwrap_err().to_string();
    assert!(error("text").contains("text.ko: not a kernel module"), "{}", error("text"));
    assert!(error("cut").contains("cut.ko.xz"), "{}", error("cut"));
    assert!(error("needy").contains("it needs nothing, which"), "{}", error("needy"));
}

#[test]
fn directory_without_modules_is_refused() {
    let tree = ModuleDir::new().with("notes.txt", b"");
    let error = ModuleTree::open(tree.0.path()).unwrap_err().to_string();
    assert!(error.contains("no kernel modules in"), "{error}");
    let absent = ModuleTree::open(&tree.0.path().join("absent")).unwrap_err();
    assert_eq!(absent.kind(), io::ErrorKind::NotFound);
}

#[test]
fn endless_module_is_refused() {
    let zeros = gzip(&vec![0; MAX_MODULE as usize + 1]);
    let tree = ModuleDir::new().with("bomb.ko.gz", &zeros);
    let error = tree.collect(&["bomb"]).unwrap_err().to_string();
    assert!(error.contains("more than 64 MiB"), "{error}");
}
