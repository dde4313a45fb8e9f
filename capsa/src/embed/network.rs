//! The calls about the guest's network.

use std::io;

use capsa_io::network::{Network, NetworkError};
use capsa_proto::capabilities::{Violation, ViolationKind, policy_rules};
use capsa_proto::plan::LaunchPlan;
use capsa_proto::spec::{ForwardHost, ServiceTarget};

use super::{ServicePortListener, Vm};
use crate::network::{BoundForward, Counters, NetworkEvent, NetworkPolicy};
use crate::{Error, Result};

impl Vm {
    /// The forwards, in the order of the builder's calls, with the ports that were chosen for 0. They are
    /// known before the start.
    pub fn forwards(&self) -> Vec<BoundForward> {
        self.forwards.iter().cloned().map(BoundForward::new).collect()
    }

    /// What the guest's network carried, dropped and refused since the start; also after the end.
    pub fn network_counters(&self) -> Counters {
        self.io.network_counters()
    }

    /// Takes the link of the guest's network down or up again. While it is down, no packet passes in either
    /// direction. On QEMU the guest's card loses its carrier; on the other backends the guest sees no change
    /// but that. Connections survive a short interruption.
    ///
    /// # Errors
    ///
    /// [`Error::NetworkNotEnabled`]; [`Error::NotRunning`] when the VM has ended.
    pub fn set_network_link(&mut self, is_up: bool) -> Result<()> {
        self.plan.parts().network.as_ref().ok_or(Error::NetworkNotEnabled)?;
        if self.core.status().is_terminal() {
            return Err(Error::NotRunning);
        }
        self.io.set_network_link(is_up);
        self.core.set_carrier(self.clock.now(), is_up);
        Ok(())
    }

    /// Replaces the policy of the guest's network, or sets one where the network is NAT. Flows that the new
    /// policy does not allow end at once.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] with every mistake of the policy, which then changes nothing;
    /// [`Error::NetworkNotEnabled`]; [`Error::NotRunning`] when the VM has ended.
    pub fn set_network_policy(&mut self, policy: NetworkPolicy) -> Result<()> {
        self.plan.parts().network.as_ref().ok_or(Error::NetworkNotEnabled)?;
        let rules = policy_rules(&policy).map_err(Error::from_violations)?;
        if self.core.status().is_terminal() {
            return Err(Error::NotRunning);
        }
        self.io.set_network_policy(rules, self.clock.now());
        Ok(())
    }

    /// Takes what happened in the guest's network since the last call, also after the end: which flows and
    /// queries were allowed or refused, by which rule, and why. There are no events without a policy, unless
    /// the VM has a [`network_log`](crate::LinuxVmBuilder::network_log).
    ///
    /// The VM keeps the newest 1024 events. A gap between the [`seq`](crate::network::NetworkEvent::seq) of
    /// two events is the number of those that were dropped.
    pub fn network_events(&mut self) -> Vec<NetworkEvent> {
        self.io.take_network_events()
    }

    /// Listens for the guest's connections to a service that this program serves
    /// ([`owner_service`](crate::LinuxVmBuilder::owner_service)). It can be called before the start, so
    /// that the listener exists when the guest boots. `address` is the service's name and port.
    ///
    /// # Errors
    ///
    /// [`Error::NetworkNotEnabled`]; [`Error::ServiceNotNamed`]; [`Error::NotRunning`] when the VM has
    /// ended; [`Error::Io`] with `AddrInUse` when the service has a listener already, and when the run
    /// directory was removed.
    pub fn service_listen(&mut self, address: &str) -> Result<ServicePortListener> {
        let network = self.plan.parts().network.as_ref().ok_or(Error::NetworkNotEnabled)?;
        let index = network.options.services.iter().position(|service| {
            service.target == ServiceTarget::Owner
                && address.rsplit_once(':').is_some_and(|(name, port)| {
                    name == service.name && port.parse() == Ok(service.port)
                })
        });
        let index = index.ok_or_else(|| Error::ServiceNotNamed { address: address.to_owned() })?;
        if self.core.status().is_terminal() {
            return Err(Error::NotRunning);
        }
        self.io.service_listen(index)?.ok_or(Error::NotRunning)
    }
}

/// Creates the network of a plan, with its forwards bound.
pub(super) fn bind(plan: &LaunchPlan) -> Result<Option<Network>> {
    let Some(network) = &plan.network else { return Ok(None) };
    let failed = match Network::new(network, &plan.run_dir) {
        Ok(network) => return Ok(Some(network)),
        Err(error) => error,
    };
    let violation = |field: String, what: String, error: &io::Error, remedies: [&str; 2]| {
        let (kind, reason, remedy) = match error.kind() {
            io::ErrorKind::AddrInUse => {
                (ViolationKind::InUse, format!("{what} is in use"), remedies[0])
            }
            _ => (ViolationKind::NoAccess, format!("cannot use {what}: {error}"), remedies[1]),
        };
        Violation::new(field, kind, reason, remedy)
    };
    Err(Error::from_violations(match failed {
        NetworkError::Forwards(errors) => {
            let forwards = &network.options.forwards;
            let violations = errors.iter().map(|failed| {
                let host = &forwards[failed.index].host;
                let remedies = match host {
                    ForwardHost::Port { .. } => [
                        "use another port, or port 0 for a free one",
                        "use an address of this host and a port that this user may bind",
                    ],
                    ForwardHost::Unix(_) => ["use another path, or remove the file"; 2],
                };
                let field = format!("forwards[{}]", failed.index);
                violation(field, host.to_string(), &failed.error, remedies)
            });
            violations.collect()
        }
        NetworkError::Capture(error) => {
            let path = network.options.pcap.as_ref().map(ToString::to_string).unwrap_or_default();
            vec![violation("network_pcap".into(), path, &error, ["use another file"; 2])]
        }
        NetworkError::Log(error) => {
            let path = network.options.log.as_ref().map(ToString::to_string).unwrap_or_default();
            vec![violation("network_log".into(), path, &error, ["use another file"; 2])]
        }
        other => return Err(io::Error::from(other).into()),
    }))
}
