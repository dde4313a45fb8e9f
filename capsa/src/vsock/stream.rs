//! [`VsockStream`] and [`VsockListener`]: vsock for async code.

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

use crate::driver::{Shared, Waiter};
use crate::embed::VsockPortListener;
use crate::{Error, Result, StopReport, VmHandle};

/// The delay between two attempts to connect to a port without a listener.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// How long to watch a stream when the device does not report whether the guest listens. A refused
/// connection closes within a few milliseconds.
const SETTLES_WITHIN: Duration = Duration::from_millis(100);

/// A connection between host and guest.
///
/// Closing it, in full or in one direction, closes both directions at once, and data that the guest
/// has not sent by then is lost: the devices behind it work this way. Let the program in the guest
/// signal when it is done.
///
/// Dropping the future of a `read` consumes nothing; dropping that of a `write` has written
/// nothing; dropping that of a `write_all` may have written a part.
#[derive(Debug)]
pub struct VsockStream {
    inner: Async<UnixStream>,
}

impl VsockStream {
    fn new(stream: UnixStream) -> Result<Self> {
        Ok(Self { inner: Async::new_nonblocking(stream)? })
    }

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

    /// `Async` would only flush here and not shut the connection down.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.inner.get_ref().shutdown(Shutdown::Write) {
            // The peer has closed the connection already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}

/// Accepts connections from the guest to one port of the host. Dropping it closes the port; further
/// connections are refused.
#[derive(Debug)]
pub struct VsockListener {
    inner: Async<VsockPortListener>,
    shared: Arc<Shared>,
}

impl VsockListener {
    /// Returns the next connection. Dropping the future loses no connection.
    ///
    /// # Errors
    ///
    /// [`Error::GuestEnded`] when the VM has ended and no connection waits; [`Error::Io`] when a
    /// system call fails, for example because no descriptor is left, or the VM cannot be driven.
    pub async fn accept(&self) -> Result<VsockStream> {
        VsockStream::new(accept(&self.inner, &self.shared, "a vsock connection").await?)
    }
}

/// Returns the next connection from the guest, unless the VM ends before.
pub(crate) async fn accept(
    listener: &Async<VsockPortListener>,
    shared: &Arc<Shared>,
    what: &str,
) -> Result<UnixStream> {
    let begin = Instant::now();
    let connection = async { Ok(listener.read_with(VsockPortListener::accept).await?) };
    let waiter = Waiter::for_status(shared)?;
    let ended = poll_fn(|cx| {
        let mut state = shared.lock();
        state.check_driver()?;
        if let Some(how) = state.vm.stop_report() {
            return Poll::Ready(Err(ended(how, format!("{what} from the guest"), begin)));
        }
        waiter.wait(&mut state, cx)
    });
    or(connection, ended).await
}

/// The error of a wait for a connection that the end of the VM ends.
fn ended(how: StopReport, expected: String, begin: Instant) -> Error {
    let (tail, waited) = (String::new(), begin.elapsed());
    Error::GuestEnded { how: Box::new(how), expected, waited, tail, hint: None }
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
    /// While the guest boots, the connection may be refused or may be answered late, depending on
    /// the hypervisor. Use [`VmHandle::vsock_connect_timeout`] to wait for the program in the
    /// guest. Dropping the future closes the connection.
    ///
    /// vfkit does not report whether the guest listens: a stream that is closed within 0.1 seconds
    /// counts as refused, a stream that stays open or receives data counts as connected.
    ///
    /// # Errors
    ///
    /// [`Error::VsockNotEnabled`]; [`Error::VsockPortNotNamed`]; [`Error::NotRunning`] when the VM
    /// does not run; [`Error::VsockRefused`] when the guest has no listener on the port.
    pub async fn vsock_connect(&self, port: u32) -> Result<VsockStream> {
        let refused = |error| match error {
            Error::Io(why) if why.kind() == io::ErrorKind::ConnectionRefused => {
                Error::VsockRefused { port }
            }
            error => error,
        };
        self.shared().check_process()?;
        let begun = {
            let state = self.shared().lock();
            state.check_driver()?;
            state.vm.vsock_connect(port)
        };
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

    /// Connects to a vsock port of the guest, retrying until the guest listens or `timeout` has
    /// passed.
    ///
    /// # Errors
    ///
    /// The same as [`VmHandle::vsock_connect`], with [`Error::Timeout`] instead of
    /// [`Error::VsockRefused`]; [`Error::GuestEnded`] when the VM ends meanwhile.
    pub async fn vsock_connect_timeout(&self, port: u32, timeout: Duration) -> Result<VsockStream> {
        let begin = Instant::now();
        let expected = || format!("a listener on vsock port {port} of the guest");
        let mut was_refused = false;
        let in_time = async {
            loop {
                match self.vsock_connect(port).await {
                    Err(Error::VsockRefused { .. }) => {
                        was_refused = true;
                        Timer::after(RETRY_AFTER).await
                    }
                    Err(Error::NotRunning) if was_refused => {
                        self.wait().await?;
                        let how = self.stop_report().expect("the VM has ended");
                        return Err(ended(how, expected(), begin));
                    }
                    // The device's queue of pending connections is full.
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
                expected: expected(),
                waited: begin.elapsed(),
                tail: String::new(),
                hint: None,
            })
        };
        or(in_time, too_late).await
    }

    /// Listens on a vsock port of the host for connections from the guest.
    ///
    /// It can be called before [`VmHandle::start`], so that the listener exists when the guest
    /// boots.
    ///
    /// # Errors
    ///
    /// [`Error::VsockNotEnabled`]; [`Error::VsockPortNotNamed`]; [`Error::NotRunning`] when the VM
    /// has ended; [`Error::Io`] with `AddrInUse` when the port has a listener already.
    pub async fn vsock_listen(&self, port: u32) -> Result<VsockListener> {
        self.shared().check_process()?;
        let listener = self.shared().change(|state| {
            state.check_driver()?;
            state.vm.vsock_listen(port)
        })?;
        let shared = Arc::clone(self.shared());
        Ok(VsockListener { inner: Async::new_nonblocking(listener)?, shared })
    }
}
