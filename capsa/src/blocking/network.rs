//! The blocking calls about the guest's network.

use std::os::unix::net::UnixStream;

use futures_lite::future::block_on;

use super::VmHandle;
use crate::Result;
use crate::network::{BoundForward, Counters, NetworkEvent, NetworkPolicy};

impl VmHandle {
    /// The same as [`crate::VmHandle::forwards`].
    pub fn forwards(&self) -> Vec<BoundForward> {
        self.inner.forwards()
    }

    /// The same as [`crate::VmHandle::network_counters`].
    pub fn network_counters(&self) -> Counters {
        self.inner.network_counters()
    }

    /// The same as [`crate::VmHandle::set_network_link`].
    ///
    /// # Errors
    ///
    /// The same as [`crate::VmHandle::set_network_link`].
    pub fn set_network_link(&self, is_up: bool) -> Result<()> {
        self.inner.set_network_link(is_up)
    }

    /// The same as [`crate::VmHandle::set_network_policy`].
    ///
    /// # Errors
    ///
    /// The same as [`crate::VmHandle::set_network_policy`].
    pub fn set_network_policy(&self, policy: NetworkPolicy) -> Result<()> {
        self.inner.set_network_policy(policy)
    }

    /// The same as [`crate::VmHandle::network_events`].
    pub fn network_events(&self) -> Vec<NetworkEvent> {
        self.inner.network_events()
    }

    /// Blocking version of [`crate::VmHandle::service_listen`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn service_listen(&self, address: &str) -> Result<ServiceListener> {
        block_on(self.inner.service_listen(address)).map(|inner| ServiceListener { inner })
    }
}

/// Accepts connections of the guest; the blocking version of [`crate::network::ServiceListener`].
#[derive(Debug)]
pub struct ServiceListener {
    inner: crate::network::ServiceListener,
}

impl ServiceListener {
    /// Blocking version of [`crate::network::ServiceListener::accept`]. Returns a blocking stream.
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn accept(&self) -> Result<UnixStream> {
        Ok(block_on(self.inner.accept())?.into_std()?)
    }
}
