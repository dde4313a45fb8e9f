//! Streams between host and guest that need no network: virtio-vsock.
//!
//! A port is a number, and any number of connections go to one. The guest's context id is 3, the
//! host's 2. In the guest, a program listens or connects with a socket of the family `AF_VSOCK`.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_io::{Async, Timer};
use futures_io::{AsyncRead, AsyncWrite};
use futures_lite::future::or;

use crate::driver::{Shared, StatusWaiter};
use crate::embed::VsockPortListener;
use crate::{Error, Result, VmHandle};

/// How long the pause is between two attempts to reach a port nobody listens on yet.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// How long a stream is watched where no device says whether somebody listens: that its other end
/// dials and is refused takes a few milliseconds.
const SETTLES_WITHIN: Duration = Duration::from_millis(100);

/// A connection between host and guest.
///
/// Closing it, in full or in one direction, ends both at once, and what the guest has not sent by then
/// is lost: so have it the devices behind it. Let the guest's program say when it is done.
///
/// Dropping the future of a `read` takes nothing, and that of a `write` has written nothing; one of
/// `write_all` has written some.
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

    /// `Async` itself would only flush, and the other side never learn of it.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.inner.get_ref().shutdown(Shutdown::Write) {
            // The other side was first.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}

/// Hears the guest's connections to one port of the host. Dropped, it hears no more, and the guest
/// is refused.
#[derive(Debug)]
pub struct VsockListener {
    inner: Async<VsockPortListener>,
    shared: Arc<Shared>,
}

impl VsockListener {
    /// The next connection. Dropping the future loses none.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the machine has ended and no connection waits; [`Error::Io`] when
    /// the system refuses, for want of descriptors.
    pub async fn accept(&self) -> Result<VsockStream> {
        let heard =
            async { VsockStream::new(self.inner.read_with(VsockPortListener::accept).await?) };
        let waiting = StatusWaiter::for_status(&self.shared);
        let over = poll_fn(|cx| {
            let mut state = self.shared.lock();
            if state.vm.status().is_terminal() {
                return Poll::Ready(Err(Error::NotRunning));
            }
            waiting.register_waker(&mut state, cx.waker());
            Poll::Pending
        });
        or(heard, over).await
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
    /// ```no_run
    /// use capsa::{Capsa, LinuxBootConfig};
    /// use futures_lite::{AsyncReadExt, AsyncWriteExt};
    /// use std::time::Duration;
    ///
    /// # async fn talk() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = LinuxBootConfig::new("./vmlinuz").initrd("./initrd");
    /// let vm = Capsa::vm(config).vsock().build().await?;
    /// vm.start().await?;
    /// // As soon as the agent in the guest listens on port 5000.
    /// let mut agent = vm.vsock_connect_timeout(5000, Duration::from_secs(30)).await?;
    /// agent.write_all(b"hello\n").await?;
    /// let mut answer = [0; 5];
    /// agent.read_exact(&mut answer).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A guest that has not come up yet may answer late or refuse, as the hypervisor has it; to wait
    /// for its program, use [`VmHandle::vsock_connect_timeout`]. Dropping the future gives the
    /// connection up.
    ///
    /// vfkit does not say whether somebody listens: a stream that ends within a tenth of a second is
    /// taken for refused, and one that lasts, or on which the guest speaks, for made.
    ///
    /// # Errors
    ///
    /// [`Error::VsockNotEnabled`]; [`Error::VsockPortNotNamed`]; [`Error::NotRunning`] when the machine
    /// does not run; [`Error::VsockRefused`] when nobody listens there.
    pub async fn vsock_connect(&self, port: u32) -> Result<VsockStream> {
        let refused = |error| match error {
            Error::Io(why) if why.kind() == io::ErrorKind::ConnectionRefused => {
                Error::VsockRefused { port }
            }
            error => error,
        };
        let begun = self.shared().lock().vm.vsock_connect(port);
        let mut connecting = begun.map_err(refused)?;
        while !connecting.proceed().map_err(|error| refused(error.into()))? {
            Async::new_nonblocking(connecting.as_fd())?.readable().await?;
        }
        if !connecting.is_answered() {
            let stream = Async::new_nonblocking(connecting.as_fd())?;
            let settled = async {
                Timer::after(SETTLES_WITHIN).await;
                Ok(())
            };
            or(stream.readable(), settled).await?;
            drop(stream);
            if connecting.has_ended() {
                return Err(Error::VsockRefused { port });
            }
        }
        VsockStream::new(connecting.into_stream())
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
                    // The device has more connections waiting than it takes.
                    Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                        Timer::after(RETRY_AFTER).await
                    }
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
    /// [`Error::VsockNotEnabled`]; [`Error::VsockPortNotNamed`]; [`Error::NotRunning`] when the machine
    /// has ended; [`Error::Io`] with `AddrInUse` when there is a listener already.
    pub async fn vsock_listen(&self, port: u32) -> Result<VsockListener> {
        let listener = self.shared().lock().vm.vsock_listen(port)?;
        let shared = Arc::clone(self.shared());
        Ok(VsockListener { inner: Async::new_nonblocking(listener)?, shared })
    }
}
