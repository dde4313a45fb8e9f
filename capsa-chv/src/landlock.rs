//! Landlock: the kernel keeps the hypervisor to the files of its machine.
//!
//! Cloud Hypervisor makes the rules for what its configuration names. What it does not name is what
//! stands beneath a qcow2 image, so those get rules of ours. It restricts itself when it boots the
//! guest. (Its option `--landlock`, for the threads that exist before, is taken only together with a
//! kernel on the command line, v53.)

use alloc::collections::BTreeSet;
use alloc::format;

use serde_json::{Value, json};

use capsa_proto::capabilities::ValidatedSpec;
use capsa_proto::host::HostFacts;
use capsa_proto::plan::Note;
use capsa_proto::qcow2;

use crate::vm_config;

/// What it asks of the kernel (`vmm/src/landlock.rs`): the version of Linux 6.2.
const MIN_VERSION: u32 = 3;

pub(crate) fn is_on(host: &HostFacts) -> bool {
    host.landlock.is_some_and(|version| version >= MIN_VERSION)
}

/// Says so where it is not on.
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
    let mut beneath = BTreeSet::new();
    for disk in vm.disks() {
        beneath.extend(qcow2::backing_chain(&disk.path, host).unwrap_or_default());
        if vm_config::needs_overlay(disk) {
            beneath.insert(disk.path.clone());
        }
    }
    if !beneath.is_empty() {
        let rules = beneath.iter().map(|path| json!({ "path": path, "access": "r" }));
        config["landlock_rules"] = rules.collect();
    }
}
