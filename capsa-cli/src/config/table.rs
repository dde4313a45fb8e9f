//! The table of the config file: every section and every key, once.
//!
//! Reading, the JSON Schema, what is near to a misspelt key and the manual's tables are made from
//! these rows.

/// How often a section can stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Once: `[boot]`.
    One,
    /// Any number of times: `[[disks]]`.
    Many,
    /// Once for each name: `[shares.workspace]`.
    Named,
}

/// A section.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) about: &'static str,
    pub(crate) keys: &'static [Key],
}

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A path, counted from the file's folder.
    Path,
    Text,
    /// A list of texts.
    Texts,
    /// `512M`.
    Size,
    /// `5m`.
    Time,
    /// A whole number.
    Count,
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// A key of a section.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) is_required: bool,
    /// A value as it stands in a file.
    pub(crate) example: &'static str,
    pub(crate) about: &'static str,
}

const fn key(name: &'static str, kind: Kind, example: &'static str, about: &'static str) -> Key {
    Key { name, kind, is_required: false, example, about }
}

impl Key {
    const fn required(self) -> Self {
        Self { is_required: true, ..self }
    }
}

const fn section(
    name: &'static str,
    shape: Shape,
    about: &'static str,
    keys: &'static [Key],
) -> Section {
    Section { name, shape, about, keys }
}

const DISK: &[Key] = &[
    key("path", Kind::Path, "\"./rootfs.qcow2\"", "the image").required(),
    key(
        "format",
        Kind::Word(&["raw", "qcow2"]),
        "\"qcow2\"",
        "by the file's name unless said; what is in the file must be of that kind",
    ),
    key("read-only", Kind::Switch, "true", "the guest cannot write it"),
    key("ephemeral", Kind::Switch, "true", "what the guest writes is thrown away at the end"),
];

/// All sections, in the order of the manual.
pub(crate) const SECTIONS: &[Section] = &[
    section(
        "guest",
        Shape::One,
        "what runs",
        &[
            key("os", Kind::Word(&["linux"]), "\"linux\"", "the guest's operating system"),
            key("boot", Kind::Word(&["direct"]), "\"direct\"", "the kernel is loaded directly"),
            key(
                "on-reboot",
                Kind::Word(&["auto", "end", "restart"]),
                "\"restart\"",
                "what a reboot does; auto unless said",
            ),
            key("name", Kind::Text, "\"build\"", "the name for capsa ps, stop and console"),
        ],
    ),
    section(
        "boot",
        Shape::One,
        "what is booted",
        &[
            key("kernel", Kind::Path, "\"./bzImage\"", "the kernel"),
            key("initrd", Kind::Path, "\"./initrd\"", "the initial RAM disk"),
        ],
    ),
    section("disk", Shape::One, "the first disk, /dev/vda", DISK),
    section("disks", Shape::Many, "more disks, in the guest's order", DISK),
    section(
        "resources",
        Shape::One,
        "what it may use",
        &[
            key("cpus", Kind::Count, "2", "virtual CPUs; 1 unless said"),
            key("memory", Kind::Size, "\"2G\"", "memory; 512M unless said"),
            key(
                "timeout",
                Kind::Time,
                "\"5m\"",
                "the machine is stopped when it has run this long",
            ),
            key("grace", Kind::Time, "\"30s\"", "how long the guest may take to power off"),
        ],
    ),
    section(
        "network",
        Shape::One,
        "its network",
        &[key("mode", Kind::Word(&["none", "nat"]), "\"nat\"", "nat unless said")],
    ),
    section(
        "console",
        Shape::One,
        "its console",
        &[
            key(
                "mode",
                Kind::Word(&["stdio", "enabled", "disabled"]),
                "\"enabled\"",
                "as --console; disabled unless said",
            ),
            key("log", Kind::Path, "\"./console.log\"", "write what the guest says to this file"),
            key("record", Kind::Path, "\"./boot.cast\"", "record the session to this asciicast"),
        ],
    ),
    section(
        "shares",
        Shape::Named,
        "directories of the host",
        &[
            key("host", Kind::Path, "\"./workspace\"", "the directory").required(),
            key("guest", Kind::Text, "\"/workspace\"", "where the guest mounts it").required(),
            key("mode", Kind::Word(&["ro", "rw"]), "\"rw\"", "ro unless said"),
            key(
                "mechanism",
                Kind::Word(&["auto", "virtio-fs", "virtio-9p"]),
                "\"virtio-fs\"",
                "the best there is unless said",
            ),
        ],
    ),
    section(
        "vsock",
        Shape::Many,
        "vsock ports as unix sockets: listen or connect, not both",
        &[
            key("port", Kind::Count, "5000", "the port").required(),
            key(
                "listen",
                Kind::Path,
                "\"./agent.sock\"",
                "who connects here reaches the guest's port",
            ),
            key(
                "connect",
                Kind::Path,
                "\"./api.sock\"",
                "the guest reaches this at the host's port",
            ),
        ],
    ),
    section(
        "cmdline",
        Shape::One,
        "the kernel command line",
        &[
            key("extra", Kind::Texts, "[\"quiet\"]", "more arguments"),
            key("override", Kind::Text, "\"console=ttyS0\"", "the whole of it, in place of ours"),
        ],
    ),
    section(
        "backend",
        Shape::One,
        "the hypervisor",
        &[
            key("name", Kind::Text, "\"qemu\"", "this one or none"),
            key(
                "accel",
                Kind::Word(&["auto", "kvm", "hvf", "emulation"]),
                "\"kvm\"",
                "how the CPU is virtualised; auto unless said",
            ),
        ],
    ),
    section(
        "login",
        Shape::One,
        "who `run -- COMMAND` logs in as",
        &[
            key("user", Kind::Text, "\"root\"", "root unless said"),
            key("password-file", Kind::Path, "\"./password\"", "its first line is the password"),
        ],
    ),
];

impl Section {
    /// As its head stands in a file: `[boot]`, `[[disks]]`, `[shares.NAME]`.
    pub(crate) fn head(&self) -> String {
        match self.shape {
            Shape::One => format!("[{}]", self.name),
            Shape::Many => format!("[[{}]]", self.name),
            Shape::Named => format!("[{}.NAME]", self.name),
        }
    }

    /// The key with this name.
    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

impl Kind {
    /// What is to be written, in words.
    pub(crate) fn wants(self) -> String {
        match self {
            Self::Path => "a path in quotes".into(),
            Self::Text => "a text in quotes".into(),
            Self::Texts => "a list of texts".into(),
            Self::Size => "a size in quotes".into(),
            Self::Time => "a time in quotes".into(),
            Self::Count => "a whole number".into(),
            Self::Switch => "true or false".into(),
            Self::Word(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
                words.join(" or ")
            }
        }
    }
}
