//! Validates the options of the guest's network: what it reaches, forwards and services.
//!
//! Whether a port of the host is in use is not checked here: the build binds it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::{Violation, ViolationKind as Kind};
use crate::host::{FileFacts, HostFacts};
use crate::path::HostPath;
use crate::policy::{NetworkPolicy, PolicyMistake, PolicyRules};
use crate::spec::{
    ForwardHost, NetworkMode, NetworkOptions, NetworkService, PortForward, ServiceTarget,
    TransportProtocol, VmSpec,
};

/// The names of the guest's network itself, which cannot be services.
const OWN_NAMES: [&str; 3] =
    ["gateway.capsa.internal", "host.capsa.internal", "guest.capsa.internal"];

/// All violations of the options, in the order of the fields.
pub(super) fn violations(spec: &VmSpec, host: &HostFacts) -> Vec<Violation> {
    let options = &spec.network_options;
    let mut found = NetworkViolations { host, out: Vec::new() };
    if spec.network == NetworkMode::None {
        found.without_network(options);
    }
    for port in options.host_ports.iter().filter(|port| **port == 0) {
        let reason = format!("invalid port {port}: expected 1 to 65535");
        found.reject(
            "allow_host_ports".into(),
            Kind::OutOfRange,
            reason,
            "use the port of a service",
        );
    }
    if let NetworkMode::Policy(policy) = &spec.network {
        found.policy(policy, options);
    }
    for (n, forward) in options.forwards.iter().enumerate() {
        found.forward(n, forward, &options.forwards[..n]);
    }
    for (n, service) in options.services.iter().enumerate() {
        found.service(n, service, &options.services[..n]);
    }
    if let Some(path) = &options.pcap {
        found.written_file("network_pcap", path, spec);
    }
    if let Some(path) = &options.log {
        found.written_file("network_log", path, spec);
        if options.pcap.as_ref() == Some(path) {
            let reason = format!("{path} is the packet capture");
            found.reject("network_log".into(), Kind::Duplicate, reason, "use another file");
        }
    }
    found.out
}

/// The rules of a policy.
///
/// # Errors
///
/// With a violation for every mistake.
pub fn policy_rules(policy: &NetworkPolicy) -> Result<PolicyRules, Vec<Violation>> {
    PolicyRules::new(policy).map_err(|mistakes| {
        let violation = |PolicyMistake { place, reason, remedy }| {
            Violation::new(format!("network.{place}"), Kind::Malformed, reason, remedy)
        };
        mistakes.into_iter().map(violation).collect()
    })
}

/// A violation for each of these options of NAT that is set beside a policy.
pub fn options_beside_policy(
    allow_private: bool,
    has_host_ports: bool,
) -> impl Iterator<Item = Violation> {
    let options = [
        ("allow_private", allow_private, "allow \"private:*\" in the policy"),
        ("allow_host_ports", has_host_ports, "allow \"host:PORT\" in the policy"),
    ];
    options.into_iter().filter(|(_, is_set, _)| *is_set).map(|(field, _, remedy)| {
        let reason = "the network has a policy, which this option does not change";
        Violation::new(field, Kind::Malformed, reason, remedy)
    })
}

struct NetworkViolations<'a> {
    host: &'a HostFacts,
    out: Vec<Violation>,
}

impl NetworkViolations<'_> {
    fn reject(&mut self, field: String, kind: Kind, reason: impl Into<String>, remedy: &str) {
        self.out.push(Violation::new(field, kind, reason, remedy));
    }

    fn without_network(&mut self, options: &NetworkOptions) {
        let NetworkOptions { allow_private, host_ports, forwards, services, pcap, log, .. } =
            options;
        let fields = [
            ("allow_private", *allow_private),
            ("allow_host_ports", !host_ports.is_empty()),
            ("forwards", !forwards.is_empty()),
            ("services", !services.is_empty()),
            ("network_pcap", pcap.is_some()),
            ("network_log", log.is_some()),
        ];
        for (field, _) in fields.into_iter().filter(|(_, is_set)| *is_set) {
            let remedy = "set network to nat, or remove this option";
            self.reject(field.into(), Kind::Malformed, "the VM has no network", remedy);
        }
    }

    fn policy(&mut self, policy: &NetworkPolicy, options: &NetworkOptions) {
        self.out.extend(policy_rules(policy).err().unwrap_or_default());
        let has_host_ports = !options.host_ports.is_empty();
        self.out.extend(options_beside_policy(options.allow_private, has_host_ports));
    }

    fn forward(&mut self, n: usize, forward: &PortForward, before: &[PortForward]) {
        let field = || format!("forwards[{n}]");
        if forward.guest == 0 {
            let reason = "invalid guest port 0: expected 1 to 65535";
            self.reject(
                field(),
                Kind::OutOfRange,
                reason,
                "use the port of a service in the guest",
            );
        }
        if let ForwardHost::Unix(path) = &forward.host {
            if forward.protocol == TransportProtocol::Udp {
                let reason = format!("{path} is a unix socket, which cannot carry UDP");
                self.reject(field(), Kind::Malformed, reason, "forward a port, or use TCP");
            }
            self.socket_path(field(), path);
            self.parent(field(), path);
        }
        if let ForwardHost::Port { address: Some(address), .. } = &forward.host
            && (address.is_multicast() || *address == IpAddr::V4(Ipv4Addr::BROADCAST))
        {
            let reason = format!("invalid address {address}: expected an address of this host");
            let remedy = "use an address such as 127.0.0.1, or 0.0.0.0 for all of IPv4";
            self.reject(field(), Kind::Malformed, reason, remedy);
        }
        if let Some(other) = before.iter().find(|other| overlap(forward, other)) {
            let reason = format!("{} is in use by the forward {other}", forward.host);
            self.reject(
                field(),
                Kind::Duplicate,
                reason,
                "use another port, or remove one of the two",
            );
        }
    }

    fn service(&mut self, n: usize, service: &NetworkService, before: &[NetworkService]) {
        let NetworkService { name, port, target } = service;
        let field = || format!("services[{n}]");
        if let Some((reason, remedy)) = name_error(name) {
            let reason = format!("invalid service name {name:?}: {reason}");
            self.reject(field(), Kind::Malformed, reason, remedy);
        }
        if *port == 0 {
            let reason = "invalid port 0: expected 1 to 65535";
            self.reject(field(), Kind::OutOfRange, reason, "use a port such as 80");
        }
        if before.iter().any(|other| (&other.name, other.port) == (name, *port)) {
            let reason = format!("the service {name}:{port} is defined twice");
            self.reject(field(), Kind::Duplicate, reason, "define it once");
        }
        if let ServiceTarget::Unix(path) = target {
            self.socket_path(field(), path);
        }
    }

    fn written_file(&mut self, field: &str, path: &HostPath, spec: &VmSpec) {
        let field = || String::from(field);
        if matches!(self.host.file(path), FileFacts::Directory { .. }) {
            let reason = format!("{path} is a directory");
            self.reject(field(), Kind::WrongType, reason, "give the path of a file");
        }
        let read = [Some(&spec.kernel), spec.initrd.as_ref()].into_iter().flatten();
        if read.chain(spec.disks.iter().map(|disk| &disk.path)).any(|used| used == path) {
            let reason = format!("{path} is a file of the VM, which would be overwritten");
            self.reject(field(), Kind::Duplicate, reason, "use another file");
        }
        self.parent(field(), path);
    }

    fn socket_path(&mut self, field: String, path: &HostPath) {
        let (length, max) = (path.as_str().len(), self.host.socket_path_max);
        if length > max {
            let reason =
                format!("{path} has {length} bytes; a unix socket's path has at most {max}");
            self.reject(field, Kind::TooLong, reason, "use a shorter path");
        }
    }

    /// A file that is created needs a directory that this process may write to.
    fn parent(&mut self, field: String, path: &HostPath) {
        let Some(parent) = path.parent() else { return };
        let (kind, reason) = match self.host.file(&parent) {
            FileFacts::Directory { writable: true } => return,
            FileFacts::Directory { writable: false } => {
                (Kind::NoAccess, format!("no file can be created in {parent}"))
            }
            FileFacts::Missing => (Kind::Missing, format!("{parent} does not exist")),
            FileFacts::Unreadable(why) => (Kind::NoAccess, format!("{parent}: {why}")),
            _ => (Kind::WrongType, format!("{parent} is not a directory")),
        };
        self.reject(field, kind, reason, "use a directory that exists and is writable");
    }
}

/// Whether two forwards need the same port or socket. Two forwards of port 0 get different ports.
fn overlap(one: &PortForward, other: &PortForward) -> bool {
    match (&one.host, &other.host) {
        (ForwardHost::Unix(one), ForwardHost::Unix(other)) => one == other,
        (
            ForwardHost::Port { address: a, port },
            ForwardHost::Port { address: b, port: other_port },
        ) => {
            let is_same = port == other_port && *port != 0 && one.protocol == other.protocol;
            let of = |address: &Option<IpAddr>| match address {
                Some(address) => [*address; 2],
                None => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            };
            let meets = |a: IpAddr, b: IpAddr| {
                a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
            };
            is_same && of(a).iter().any(|a| of(b).iter().any(|b| meets(*a, *b)))
        }
        _ => false,
    }
}

/// Why a name cannot be the name of a service, and the remedy.
fn name_error(name: &str) -> Option<(&'static str, &'static str)> {
    let is_label = |label: &str| {
        let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.bytes().all(is_allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let remedy = "use a name such as llm.capsa.internal";
    // A resolver takes a name whose last label is a number for an address.
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Some(("expected lower case", "write it in lower case"))
    } else if name.len() > 253 {
        Some(("expected at most 253 bytes", "use a shorter name"))
    } else if name.split('.').any(|label| label.len() > 63) {
        Some(("expected labels of at most 63 bytes", "use a shorter label"))
    } else if !name.split('.').all(is_label) {
        Some(("expected labels of letters, digits and hyphens, separated by dots", remedy))
    } else if name.rsplit('.').next().is_some_and(is_number) {
        Some(("expected a name, not an address", remedy))
    } else if OWN_NAMES.contains(&name) {
        Some(("the guest's network has this name itself", remedy))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Arch, KvmFacts, Os};
    use alloc::collections::BTreeMap;
    use alloc::string::ToString;
    use alloc::vec;

    fn path(text: &str) -> HostPath {
        HostPath::new(text).unwrap()
    }

    fn host() -> HostFacts {
        let writable = FileFacts::Directory { writable: true };
        let files = [
            (path("/"), FileFacts::Directory { writable: false }),
            (path("/run"), writable.clone()),
            (path("/run/dir"), writable),
            (path("/run/file"), FileFacts::Special),
        ];
        HostFacts {
            os: Os::Linux,
            arch: Arch::X86_64,
            memory_mb: 4096,
            kvm: KvmFacts::ABSENT,
            landlock: None,
            socket_path_max: 107,
            run_dir: path("/run/dir"),
            files: BTreeMap::from(files),
            resolved: BTreeMap::new(),
            image_locks: BTreeMap::new(),
            used_devices: Default::default(),
            share_files: None,
            agent: Err("none"),
        }
    }

    fn tcp(address: Option<&str>, port: u16) -> PortForward {
        let address = address.map(|address| address.parse().unwrap());
        PortForward {
            host: ForwardHost::Port { address, port },
            guest: 80,
            protocol: TransportProtocol::Tcp,
        }
    }

    fn unix(socket: &str) -> PortForward {
        PortForward { host: ForwardHost::Unix(path(socket)), ..tcp(None, 0) }
    }

    fn service(name: &str, port: u16) -> NetworkService {
        NetworkService { name: name.into(), port, target: ServiceTarget::Owner }
    }

    fn found(network: NetworkMode, network_options: NetworkOptions) -> Vec<(String, Kind)> {
        let spec = VmSpec { network, network_options, ..VmSpec::new(path("/k")) };
        violations(&spec, &host()).into_iter().map(|v| (v.field, v.kind)).collect()
    }

    #[test]
    fn network_options_valid_have_no_violation() {
        let options = NetworkOptions {
            allow_private: true,
            host_ports: [1, 65535].into(),
            forwards: vec![
                tcp(None, 0),
                tcp(None, 0),
                tcp(None, 80),
                tcp(Some("192.0.2.1"), 80),
                PortForward { protocol: TransportProtocol::Udp, ..tcp(None, 80) },
                unix("/run/s"),
            ],
            services: vec![service("llm.capsa.internal", 80), service("llm.capsa.internal", 81)],
            pcap: Some(path("/run/p")),
            log: Some(path("/run/l")),
            log_name: None,
        };
        assert_eq!(found(NetworkMode::Nat, options), []);
    }

    #[test]
    fn network_options_all_mistakes_are_reported() {
        let long = "/run/".to_string() + &"x".repeat(120);
        let options = NetworkOptions {
            allow_private: true,
            host_ports: [0].into(),
            forwards: vec![
                PortForward { guest: 0, ..tcp(None, 1) },
                tcp(Some("127.0.0.1"), 1),
                tcp(Some("::"), 1),
                PortForward { protocol: TransportProtocol::Udp, ..unix("/run/s") },
                unix("/run/s"),
                unix("/none/s"),
                unix("/run/file/s"),
                unix(&long),
            ],
            services: vec![
                service("a", 0),
                service("a", 0),
                NetworkService { target: ServiceTarget::Unix(path(&long)), ..service("b", 1) },
            ],
            pcap: Some(path("/run/dir")),
            log: Some(path("/none/l")),
            log_name: None,
        };
        let own = |field: &str| (field.to_string(), Kind::Malformed);
        let fields = ["allow_private", "allow_host_ports", "forwards", "services", "network_pcap"];
        let mut want = fields.map(own).to_vec();
        want.push(own("network_log"));
        want.extend(
            [
                ("allow_host_ports", Kind::OutOfRange),
                ("forwards[0]", Kind::OutOfRange),
                ("forwards[1]", Kind::Duplicate),
                ("forwards[2]", Kind::Duplicate),
                ("forwards[3]", Kind::Malformed),
                ("forwards[4]", Kind::Duplicate),
                ("forwards[5]", Kind::Missing),
                ("forwards[6]", Kind::WrongType),
                ("forwards[7]", Kind::TooLong),
                ("services[0]", Kind::OutOfRange),
                ("services[1]", Kind::OutOfRange),
                ("services[1]", Kind::Duplicate),
                ("services[2]", Kind::TooLong),
                ("network_pcap", Kind::WrongType),
                ("network_log", Kind::Missing),
            ]
            .map(|(field, kind)| (field.to_string(), kind)),
        );
        assert_eq!(found(NetworkMode::None, options), want);
    }

    #[test]
    fn service_name_is_checked() {
        for name in ["a", "llm.capsa.internal", "1password.com", "x-1.y", &"a".repeat(63)] {
            assert_eq!(name_error(name), None, "{name}");
        }
        let long = ["a"; 128].join(".");
        for name in [
            "",
            "A.b",
            "a..b",
            "a.",
            ".a",
            "-a",
            "a-",
            "a_b",
            "a b",
            "ü",
            "10.0.2.2",
            "::1",
            "a.1",
            "host.capsa.internal",
            "gateway.capsa.internal",
            &"a".repeat(64),
            &long,
        ] {
            assert!(name_error(name).is_some(), "{name}");
        }
    }

    #[test]
    fn service_name_too_long_names_the_limit() {
        let reason = |name: &str| name_error(name).unwrap().0;
        assert!(reason(&"a".repeat(64)).contains("63 bytes"));
        assert!(reason(&["a"; 128].join(".")).contains("253 bytes"));
    }

    #[test]
    fn forward_on_multicast_or_broadcast_is_rejected() {
        for address in ["224.0.0.1", "239.1.2.3", "ff02::1", "255.255.255.255"] {
            let forwards = vec![tcp(Some(address), 80)];
            let options = NetworkOptions { forwards, ..NetworkOptions::default() };
            let want = [("forwards[0]".to_string(), Kind::Malformed)];
            assert_eq!(found(NetworkMode::Nat, options), want, "{address}");
        }
    }

    #[test]
    fn forward_overlap_names_the_other_forward() {
        let forwards = vec![tcp(Some("127.0.0.1"), 8080), tcp(None, 8080)];
        let network_options = NetworkOptions { forwards, ..NetworkOptions::default() };
        let spec = VmSpec { network_options, ..VmSpec::new(path("/k")) };
        let found = violations(&spec, &host());
        assert_eq!(found[0].reason, "8080 is in use by the forward 127.0.0.1:8080:80");
    }

    #[test]
    fn pcap_needs_a_writable_directory() {
        let pcap = |file: &str| {
            let options = NetworkOptions { pcap: Some(path(file)), ..NetworkOptions::default() };
            found(NetworkMode::Nat, options).into_iter().map(|(_, kind)| kind).collect::<Vec<_>>()
        };
        assert_eq!(pcap("/none/p"), [Kind::Missing]);
        assert_eq!(pcap("/p"), [Kind::NoAccess]);
        assert_eq!(pcap("/run/p"), []);
        assert!(pcap(VmSpec::new(path("/k")).kernel.as_str()).contains(&Kind::Duplicate));
    }
}
