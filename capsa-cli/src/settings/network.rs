//! The settings of the guest's network: their rows of the table, and what they store.

use std::path::PathBuf;

use capsa::LinuxVmBuilder;
use capsa::network::{AllowRule, ListenAddress, PolicyLimits, TransportProtocol};

use super::policy::NetworkChoice;
use super::setting::{Completion, Setting, ValueKind};
use super::table::ROW;
use super::{Origin, Settings};
use crate::values;

/// What flags and the config file set of the guest's network.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestNetwork {
    pub(super) mode: Option<NetworkChoice>,
    pub(super) allow_private: bool,
    pub(super) host_ports: Vec<u16>,
    pub(crate) forwards: Vec<(Origin, ForwardSetting)>,
    pub(crate) services: Vec<(Origin, ServiceSetting)>,
    pub(crate) pcap: Option<PathBuf>,
    pub(crate) log: Option<PathBuf>,
    /// The rules of a policy.
    pub(crate) allow: Vec<(Origin, AllowRule)>,
    pub(crate) deny: Vec<String>,
    pub(crate) limits: PolicyLimits,
}

/// A port of the host, or a unix socket, that is forwarded to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardSetting {
    pub(crate) host: ListenAddress,
    pub(crate) guest: u16,
    pub(crate) protocol: TransportProtocol,
}

/// A name in the guest's network that a unix socket of the host serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceSetting {
    /// `NAME:PORT`.
    pub(crate) address: String,
    pub(crate) unix: PathBuf,
}

impl GuestNetwork {
    /// Sets the network of the VM.
    pub(super) fn describe(&self, vm: LinuxVmBuilder, name: Option<&str>) -> LinuxVmBuilder {
        let mut vm = vm.network(self.mode());
        if self.allow_private {
            vm = vm.allow_private();
        }
        for port in &self.host_ports {
            vm = vm.allow_host_port(*port);
        }
        for (_, ForwardSetting { host, guest, protocol }) in &self.forwards {
            vm = match protocol {
                TransportProtocol::Tcp => vm.forward(host.clone(), *guest),
                TransportProtocol::Udp => vm.forward_udp(host.clone(), *guest),
            };
        }
        for (_, ServiceSetting { address, unix }) in &self.services {
            vm = vm.service(address, unix);
        }
        if let Some(path) = &self.pcap {
            vm = vm.network_pcap(path);
        }
        if let Some(path) = &self.log {
            vm = vm.network_log(path);
        }
        if let Some(name) = name {
            vm = vm.network_log_name(name);
        }
        vm
    }
}

impl Settings {
    pub(super) fn begin_forward(&mut self, origin: String) {
        let (host, protocol) = (ListenAddress::from(0), TransportProtocol::Tcp);
        self.network.forwards.push((Some(origin), ForwardSetting { host, guest: 0, protocol }));
    }

    pub(super) fn begin_service(&mut self, origin: String) {
        let (address, unix) = (String::new(), PathBuf::new());
        self.network.services.push((Some(origin), ServiceSetting { address, unix }));
    }

    fn last_forward(&mut self) -> &mut ForwardSetting {
        &mut self.network.forwards.last_mut().expect("begin_forward adds one").1
    }

    fn last_service(&mut self) -> &mut ServiceSetting {
        &mut self.network.services.last_mut().expect("begin_service adds one").1
    }
}

pub(super) const ROWS: &[Setting] = &[
    Setting {
        flag: "--network",
        key: "network.mode",
        kind: ValueKind::Choice(&[
            ("none", |s| s.network.mode = Some(NetworkChoice::None)),
            ("nat", |s| s.network.mode = Some(NetworkChoice::Nat)),
            ("policy", |s| s.network.mode = Some(NetworkChoice::Policy)),
            ("record", |s| s.network.mode = Some(NetworkChoice::Record)),
        ]),
        example: "\"nat\"",
        help: "Guest network. nat: the internet; policy: what the rules allow; record: everything but the \
               host, with an event for what the rules would refuse",
        default: "policy with a rule that allows something, else nat",
        ..ROW
    },
    Setting {
        flag: "--allow-private",
        key: "network.allow-private",
        kind: ValueKind::Switch(|s, on| s.network.allow_private = on),
        example: "true",
        help: "Let the guest reach private networks, such as 192.168.0.0/16",
        default: "false",
        ..ROW
    },
    Setting {
        flag: "--allow-host-port",
        repeats: true,
        key: "network.allow-host-ports",
        field: "allow_host_ports",
        kind: ValueKind::Ports(|s, port| s.network.host_ports.push(port)),
        example: "[5432]",
        help: "Let the guest reach this port of the host's loopback, at host.capsa.internal",
        default: "none",
        ..ROW
    },
    Setting {
        flag: "--forward",
        repeats: true,
        field: "forwards",
        kind: ValueKind::Text(|s, text| {
            values::forward(text).map(|forward| s.network.forwards.push((None, forward)))
        }),
        placeholder: "[ADDR:]HOSTPORT:GUESTPORT[/udp]|unix:PATH:GUESTPORT",
        help: "Forward a port of the host, or a unix socket, to a port of the guest. HOSTPORT 0: a free \
               port, which `capsa ps` shows",
        default: "ADDR: 127.0.0.1 and ::1",
        ..ROW
    },
    Setting {
        key: "network.forward.host",
        kind: ValueKind::Text(|s, text| {
            let host = text.parse().map_err(|error| format!("{error}"))?;
            s.last_forward().host = host;
            Ok(())
        }),
        example: "\"127.0.0.1:8080\"",
        help: "Port of the host: a port of 127.0.0.1 and ::1, or an address with a port; 0: a free port",
        ..ROW
    },
    Setting {
        key: "network.forward.unix",
        kind: ValueKind::Path(|s, path| s.last_forward().host = ListenAddress::unix(path)),
        example: "\"./web.sock\"",
        help: "Unix socket that capsa creates, in place of a port",
        ..ROW
    },
    Setting {
        key: "network.forward.guest",
        required: true,
        kind: ValueKind::Port(|s, port| s.last_forward().guest = port),
        example: "80",
        help: "Port of the guest",
        ..ROW
    },
    Setting {
        key: "network.forward.protocol",
        kind: ValueKind::Choice(&[
            ("tcp", |s| s.last_forward().protocol = TransportProtocol::Tcp),
            ("udp", |s| s.last_forward().protocol = TransportProtocol::Udp),
        ]),
        example: "\"udp\"",
        help: "Protocol",
        default: "tcp",
        ..ROW
    },
    Setting {
        flag: "--service",
        repeats: true,
        field: "services",
        kind: ValueKind::Text(|s, text| {
            values::service(text).map(|service| s.network.services.push((None, service)))
        }),
        placeholder: "NAME:PORT=unix:PATH",
        help: "Serve a name and TCP port in the guest's network from a unix socket of the host",
        ..ROW
    },
    Setting {
        key: "network.service.address",
        required: true,
        kind: ValueKind::String(|s, text| s.last_service().address = text),
        example: "\"llm.capsa.internal:80\"",
        help: "Name and port in the guest's network",
        ..ROW
    },
    Setting {
        key: "network.service.unix",
        required: true,
        kind: ValueKind::Path(|s, path| s.last_service().unix = path),
        example: "\"./llm.sock\"",
        help: "Unix socket of the host to which connections are passed",
        ..ROW
    },
    Setting {
        flag: "--network-pcap",
        key: "network.pcap",
        kind: ValueKind::Path(|s, path| s.network.pcap = Some(path)),
        completion: Completion::Files,
        example: "\"./net.pcapng\"",
        help: "File for the packets of the guest's network card, in the format pcapng",
        ..ROW
    },
    Setting {
        flag: "--network-log",
        key: "network.log",
        kind: ValueKind::Path(|s, path| s.network.log = Some(path)),
        completion: Completion::Files,
        example: "\"./net.jsonl\"",
        help: "File to which the events of the network are appended, as JSON lines",
        ..ROW
    },
];
