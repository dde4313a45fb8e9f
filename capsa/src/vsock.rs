//! Streams between host and guest that need no network: virtio-vsock.
//!
//! A port is a number, and any number of connections go to one. The guest's context id is 3, the
//! host's 2. In the guest, a program listens or connects with a socket of the family `AF_VSOCK`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_io::{Async, Timer};
use futures_io::{AsyncRead, AsyncWrite};
use futures_lite::future::or;

use crate::embed::VsockPortListener;
use crate::{Error, Result, VmHandle};

/// How long the pause is between two attempts to reach a port nobody listens on yet.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// A connection between host and guest.
///
/// Closing it, in full or in one direction, ends both at once, and what the guest has not sent by then
/// is lost: so have it the devices behind it. Let the guest's program say when it is done.
#[derive(Debug)]
pub struct VsockStream {
    inner: Async<UnixStream>,
}

impl VsockStream {
    fn new(stream: UnixStream) -> Result<Self> {
        Ok(Self { inner: Async::new_nonblocking(stream)? })
    }

    /// The unix socket beneath, blocking, for code without async.
    ///
    /// # Errors
    ///
    /// When the system refuses to make it blocking.
    pub fn into_std(self) -> io::Result<UnixStream> {
        let stream = self.inner.into_inner()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl AsFd for VsockStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsyncRead for VsockStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(cx, into)
    }
}

impl AsyncWrite for VsockStream {
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

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// Hears the guest's connections to one port of the host. Dropped, it hears no more, and the guest
/// is refused.
#[derive(Debug)]
pub struct VsockListener {
    inner: Async<VsockPortListener>,
}

impl VsockListener {
    /// The next connection. Dropping the future loses none.
    ///
    /// It does not end by itself when the machine does: wait for [`VmHandle::wait`] beside it.
    ///
    /// # Errors
    ///
    /// When the system refuses, for want of descriptors.
    pub async fn accept(&self) -> Result<VsockStream> {
        VsockStream::new(self.inner.read_with(VsockPortListener::accept).await?)
    }
}

impl AsFd for VsockListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl VmHandle {
    /// Connects to a vsock port of the guest.
    ///
    /// A guest that has not come up yet may answer late or refuse, as the hypervisor has it; to wait
    /// for its program, use [`VmHandle::vsock_connect_timeout`]. Dropping the future gives the
    /// connection up.
    ///
    /// # Errors
    ///
    /// [`Error::VsockNotEnabled`]; [`Error::NotRunning`] when the machine does not run;
    /// [`Error::VsockRefused`] when nobody listens there.
    pub async fn vsock_connect(&self, port: u32) -> Result<VsockStream> {
        let mut connecting = self.shared().lock().vm.vsock_connect(port)?;
        loop {
            match connecting.proceed() {
                Ok(true) => return VsockStream::new(connecting.into_stream()),
                Ok(false) => Async::new_nonblocking(connecting.as_fd())?.readable().await?,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return Err(Error::VsockRefused { port });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Connects to a vsock port of the guest as soon as somebody listens there, within `timeout`.
    ///
    /// # Errors
    ///
    /// As [`VmHandle::vsock_connect`], with [`Error::Timeout`] in place of a refusal.
    pub async fn vsock_connect_timeout(&self, port: u32, timeout: Duration) -> Result<VsockStream> {
        let begin = Instant::now();
        let in_time = async {
            loop {
                match self.vsock_connect(port).await {
                    Err(Error::VsockRefused { .. }) => Timer::after(RETRY_AFTER).await,
                    done => return done,
                };
            }
        };
        let too_late = async {
            Timer::after(timeout).await;
            Err(Error::Timeout {
                expected: format!("a listener on vsock port {port} of the guest"),
                waited: begin.elapsed(),
                tail: String::new(),
                hint: None,
            })
        };
        or(in_time, too_late).await
    }

    /// Listens to the guest's connections to this vsock port of the host.
    ///
    /// It may come before [`VmHandle::start`], so that the guest finds the listener whenever it comes
    /// up.
    ///
    /// # Errors
    ///
    /// [`Error::VsockNotEnabled`]; [`Error::NotRunning`] when the machine has ended; [`Error::Io`]
    /// with `AddrInUse` when there is a listener already.
    pub async fn vsock_listen(&self, port: u32) -> Result<VsockListener> {
        let listener = self.shared().lock().vm.vsock_listen(port)?;
        Ok(VsockListener { inner: Async::new_nonblocking(listener)? })
    }
}
