//! The calls that describe the guest's network.

use std::collections::BTreeSet;
use std::path::PathBuf;

use capsa_proto::capabilities::{Violation, ViolationKind};
use capsa_proto::spec::{
    ForwardHost, NetworkOptions, NetworkService, PortForward, ServiceTarget, TransportProtocol,
};

use super::LinuxVmBuilder;
use super::paths::Paths;
use crate::network::{ListenAddress, ListenPlace};

/// What the builder's calls set, unchecked.
#[derive(Debug, Clone, Default)]
pub(super) struct NetworkSettings {
    allow_private: bool,
    host_ports: BTreeSet<u16>,
    forwards: Vec<(ListenAddress, u16, TransportProtocol)>,
    /// The addresses as text, and the unix socket of each one that the owner does not serve.
    services: Vec<(String, Option<PathBuf>)>,
    pcap: Option<PathBuf>,
    log: Option<PathBuf>,
    log_name: Option<String>,
}

impl NetworkSettings {
    /// The options, with every path resolved.
    pub(super) fn taken(&self, paths: &mut Paths) -> NetworkOptions {
        let forwards = self.forwards.iter().enumerate().map(|(n, (host, guest, protocol))| {
            let host = match host.place() {
                ListenPlace::Port { address, port } => {
                    ForwardHost::Port { address: *address, port: *port }
                }
                ListenPlace::Unix(path) => {
                    ForwardHost::Unix(paths.taken(&format!("forwards[{n}].unix"), path))
                }
            };
            PortForward { host, guest: *guest, protocol: *protocol }
        });
        let forwards = forwards.collect();
        let mut services = Vec::new();
        for (n, (address, socket)) in self.services.iter().enumerate() {
            let target = match socket {
                Some(path) => {
                    ServiceTarget::Unix(paths.taken(&format!("services[{n}].unix"), path))
                }
                None => ServiceTarget::Owner,
            };
            let parsed = address.rsplit_once(':');
            match parsed.and_then(|(name, port)| Some((name, port.parse().ok()?))) {
                Some((name, port)) => {
                    services.push(NetworkService { name: name.into(), port, target });
                }
                None => paths.violations.push(Violation::new(
                    format!("services[{n}]"),
                    ViolationKind::Malformed,
                    format!("invalid service address {address:?}: expected NAME:PORT"),
                    "use an address such as llm.capsa.internal:80",
                )),
            }
        }
        NetworkOptions {
            allow_private: self.allow_private,
            host_ports: self.host_ports.clone(),
            forwards,
            services,
            pcap: self.pcap.as_ref().and_then(|path| paths.take("network_pcap", path)),
            log: self.log.as_ref().and_then(|path| paths.take("network_log", path)),
            log_name: self.log_name.clone(),
        }
    }
}

impl LinuxVmBuilder {
    /// Lets the guest reach private networks: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 and
    /// fc00::/7. Default: closed, since other containers, databases and routers are there. The addresses of
    /// the host itself, and the metadata services of clouds, stay closed.
    pub fn allow_private(mut self) -> Self {
        self.network_options.allow_private = true;
        self
    }

    /// Lets the guest reach this TCP and UDP port of the host's loopback, at `host.capsa.internal`. Call it
    /// once for each port. Default: the guest reaches no port of the host.
    pub fn allow_host_port(mut self, port: u16) -> Self {
        self.network_options.host_ports.insert(port);
        self
    }

    /// Forwards a TCP port of the host, or a unix socket, to a port of the guest.
    ///
    /// A port number is a port of 127.0.0.1 and of ::1, so that only programs of this host reach it;
    /// [`ListenAddress`] lists the other forms. The port is bound when the VM is built: one that is in use is
    /// an error of the build. [`VmHandle::forwards`](crate::VmHandle::forwards) returns the port that was
    /// chosen for 0. A connection that is made before the guest listens waits for it.
    ///
    /// ```
    /// # use capsa::{Capsa, LinuxBootConfig, network::ListenAddress};
    /// let builder = Capsa::vm(LinuxBootConfig::new("./vmlinuz"))
    ///     .forward(8080, 80)
    ///     .forward(ListenAddress::unix("./ssh.sock"), 22);
    /// ```
    pub fn forward(self, host: impl Into<ListenAddress>, guest: u16) -> Self {
        self.forward_port(host.into(), guest, TransportProtocol::Tcp)
    }

    /// Forwards a UDP port of the host to a port of the guest, as [`forward`](Self::forward).
    pub fn forward_udp(self, host: impl Into<ListenAddress>, guest: u16) -> Self {
        self.forward_port(host.into(), guest, TransportProtocol::Udp)
    }

    fn forward_port(
        mut self,
        host: ListenAddress,
        guest: u16,
        protocol: TransportProtocol,
    ) -> Self {
        self.network_options.forwards.push((host, guest, protocol));
        self
    }

    /// Serves a name and TCP port in the guest's network from a unix socket of the host.
    ///
    /// `address` is `NAME:PORT`, for example `llm.capsa.internal:80`. The guest's resolver returns an
    /// address for the name, and connections to the port arrive at the socket, where a program of the host
    /// listens. So a secret that the program needs is never in the guest. Any name may be a service, also one
    /// of the internet, which the guest then does not reach.
    pub fn service(mut self, address: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        self.network_options.services.push((address.into(), Some(socket.into())));
        self
    }

    /// Serves a name and TCP port in the guest's network from this program, as
    /// [`service`](Self::service): [`VmHandle::service_listen`](crate::VmHandle::service_listen) accepts the
    /// connections. They are refused while nothing listens.
    pub fn owner_service(mut self, address: impl Into<String>) -> Self {
        self.network_options.services.push((address.into(), None));
        self
    }

    /// Writes the packets of the guest's network card to a file, in the format pcapng, which Wireshark and
    /// tcpdump read. The file is replaced if it exists.
    pub fn network_pcap(mut self, path: impl Into<PathBuf>) -> Self {
        self.network_options.pcap = Some(path.into());
        self
    }

    /// Appends what happens in the guest's network to a file, one JSON object on each line: which flows and
    /// queries were allowed or refused, by which rule, and why. The manual, `manual::policy`, lists the
    /// fields. The file is created if it does not exist.
    ///
    /// Lines that the file does not take at once, on a full disk for example, are left out and counted
    /// ([`Counters::dropped_log_lines`](crate::network::Counters::dropped_log_lines)).
    pub fn network_log(mut self, path: impl Into<PathBuf>) -> Self {
        self.network_options.log = Some(path.into());
        self
    }

    /// Sets the field `vm` of the lines of [`network_log`](Self::network_log), for a file that several VMs
    /// append to. Default: the last component of the VM's run directory.
    pub fn network_log_name(mut self, name: impl Into<String>) -> Self {
        self.network_options.log_name = Some(name.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use crate::{Capsa, LinuxBootConfig};

    #[test]
    fn service_without_port_names_the_accepted_form() {
        let builder = Capsa::vm(LinuxBootConfig::new("/k"));
        let error = builder.service("llm.capsa.internal", "/s").plan().unwrap_err();
        let violation = &error.violations()[0];
        assert_eq!(violation.field, "services[0]");
        assert!(violation.reason.contains("expected NAME:PORT"), "{error}");
    }
}
