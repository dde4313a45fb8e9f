//! [`ServiceListener`] and [`ServiceStream`]: the guest's connections to this program, for async code.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_io::Async;
use futures_io::{AsyncRead, AsyncWrite};

use crate::driver::Shared;
use crate::embed::ServicePortListener;
use crate::vsock::stream::accept;
use crate::{Result, VmHandle};

/// A connection of the guest to a service.
///
/// Each direction is closed by itself: closing this end for writing sends the end of the stream to the
/// guest, which may send more.
#[derive(Debug)]
pub struct ServiceStream {
    inner: Async<UnixStream>,
}

impl ServiceStream {
    /// Returns the underlying unix socket in blocking mode, for code without async.
    ///
    /// # Errors
    ///
    /// When the system cannot make the socket blocking.
    pub fn into_std(self) -> io::Result<UnixStream> {
        let stream = self.inner.into_inner()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl AsFd for ServiceStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsyncRead for ServiceStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(cx, into)
    }
}

impl AsyncWrite for ServiceStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// `Async` would only flush here and not shut the connection down.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.inner.get_ref().shutdown(Shutdown::Write) {
            // The peer has closed the connection already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}

/// Accepts the guest's connections to a service. Dropping it closes the service; further connections are
/// refused.
#[derive(Debug)]
pub struct ServiceListener {
    inner: Async<ServicePortListener>,
    shared: Arc<Shared>,
}

impl ServiceListener {
    /// Returns the next connection. Dropping the future loses no connection.
    ///
    /// # Errors
    ///
    /// [`Error::GuestEnded`](crate::Error::GuestEnded) when the VM has ended and no connection waits;
    /// [`Error::Io`](crate::Error::Io) when a system call fails, for example because no descriptor is left,
    /// or the VM cannot be driven.
    pub async fn accept(&self) -> Result<ServiceStream> {
        let stream = accept(&self.inner, &self.shared, "a connection to a service").await?;
        Ok(ServiceStream { inner: Async::new_nonblocking(stream)? })
    }
}

impl AsFd for ServiceListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl VmHandle {
    /// Listens for the guest's connections to a service that this program serves
    /// ([`owner_service`](crate::LinuxVmBuilder::owner_service)). `address` is the service's name and port.
    ///
    /// It can be called before [`VmHandle::start`], so that the listener exists when the guest boots.
    ///
    /// ```no_run
    /// use capsa::{Capsa, LinuxBootConfig};
    /// use futures_lite::AsyncWriteExt;
    ///
    /// # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = LinuxBootConfig::new("./vmlinuz").initrd("./initrd");
    /// let vm = Capsa::vm(config).owner_service("hello.capsa.internal:7").build().await?;
    /// let service = vm.service_listen("hello.capsa.internal:7").await?;
    /// vm.start().await?;
    /// let mut stream = service.accept().await?;
    /// stream.write_all(b"hello\n").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NetworkNotEnabled`](crate::Error::NetworkNotEnabled);
    /// [`Error::ServiceNotNamed`](crate::Error::ServiceNotNamed);
    /// [`Error::NotRunning`](crate::Error::NotRunning) when the VM has ended;
    /// [`Error::Io`](crate::Error::Io) with `AddrInUse` when the service has a listener already.
    pub async fn service_listen(&self, address: &str) -> Result<ServiceListener> {
        self.shared().check_process()?;
        let listener = self.shared().change(|state| {
            state.check_driver()?;
            state.vm.service_listen(address)
        })?;
        let shared = Arc::clone(self.shared());
        Ok(ServiceListener { inner: Async::new_nonblocking(listener)?, shared })
    }
}
