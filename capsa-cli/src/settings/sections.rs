//! The sections of the config file. Their keys are rows of the [table of settings](super::table).

use super::Settings;
use super::setting::{Section, Shape};

/// All sections of the config file, in the order of help.
pub(crate) const SECTIONS: &[Section] = &[
    one("guest", "The guest"),
    one("boot", "What the guest boots"),
    Section {
        name: "disk",
        shape: Shape::One,
        keys: "disks",
        help: "The first disk, /dev/vda",
        begin: Settings::begin_disk,
    },
    Section {
        name: "disks",
        shape: Shape::Many,
        keys: "disks",
        help: "More disks, in the order of the guest's devices",
        begin: Settings::begin_disk,
    },
    one("resources", "Resources and time limits"),
    one("network", "The guest's network"),
    Section {
        name: "network.allow",
        shape: Shape::Many,
        keys: "network.allow",
        help: "What the guest may reach: see the manual, `policy`",
        begin: Settings::begin_allow,
    },
    one("network.limits", "Limits of a network with a policy"),
    Section {
        name: "network.forward",
        shape: Shape::Many,
        keys: "network.forward",
        help: "Ports of the host that are forwarded to the guest; each has host or unix",
        begin: Settings::begin_forward,
    },
    Section {
        name: "network.service",
        shape: Shape::Many,
        keys: "network.service",
        help: "Names in the guest's network that unix sockets of the host serve",
        begin: Settings::begin_service,
    },
    one("console", "The guest's console"),
    Section {
        name: "shares",
        shape: Shape::Named,
        keys: "shares",
        help: "Host directories that the guest mounts",
        begin: Settings::begin_share,
    },
    Section {
        name: "vsock",
        shape: Shape::Many,
        keys: "vsock",
        help: "vsock ports that are forwarded to unix sockets; each has listen or connect",
        begin: |settings, _| settings.begin_vsock(),
    },
    one("cmdline", "The kernel command line"),
    one("backend", "The hypervisor"),
    one("login", "The login for `capsa run -- COMMAND`"),
];

const fn one(name: &'static str, help: &'static str) -> Section {
    Section { name, shape: Shape::One, keys: name, help, begin: |_, _| {} }
}
