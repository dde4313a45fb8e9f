//! Landlock: the kernel restricts the hypervisor to the files of its VM.
//!
//! Cloud Hypervisor creates the rules for the files that its configuration names. The configuration
//! does not name the backing files of a qcow2 image, so this module adds rules for them. Cloud
//! Hypervisor restricts itself when it boots the guest. Its option `--landlock`, which covers the
//! threads that exist before that, requires a kernel on the command line (v53), so it is not used.

use alloc::collections::BTreeSet;
use alloc::format;

use serde_json::{Value, json};

use capsa_proto::capabilities::ValidatedSpec;
use capsa_proto::host::HostFacts;
use capsa_proto::plan::Note;
use capsa_proto::qcow2;

use crate::vm_config;

/// The Landlock ABI version that Cloud Hypervisor requires (`vmm/src/landlock.rs`): Linux 6.2.
const MIN_VERSION: u32 = 3;

pub(crate) fn is_on(host: &HostFacts) -> bool {
    host.landlock.is_some_and(|version| version >= MIN_VERSION)
}

/// A note if Landlock is off.
pub(crate) fn note(host: &HostFacts) -> Option<Note> {
    let has = match host.landlock {
        None => "has none".into(),
        Some(version) if version < MIN_VERSION => format!("has version {version}"),
        Some(_) => return None,
    };
    Some(Note::info(format!(
        "no Landlock around cloud-hypervisor: it needs version {MIN_VERSION} (Linux 6.2), and this \
         kernel {has}; its seccomp filter is on"
    )))
}

pub(crate) fn add_to(config: &mut Value, vm: &ValidatedSpec, host: &HostFacts) {
    if !is_on(host) {
        return;
    }
    config["landlock_enable"] = json!(true);
    let mut backing = BTreeSet::new();
    for disk in vm.disks() {
        let chain = qcow2::backing_chain(&disk.path, host).unwrap_or_default();
        backing.extend(chain.into_iter().map(|image| image.path));
        if vm_config::needs_overlay(disk) {
            backing.insert(disk.path.clone());
        }
    }
    if !backing.is_empty() {
        let rules = backing.iter().map(|path| json!({ "path": path, "access": "r" }));
        config["landlock_rules"] = rules.collect();
    }
}
