//! The client's end of a control socket: connects, sends one request and reads the reply.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::protocol::{CONTROL_SOCKET, SocketReply, SocketRequest, to_line};

/// How long a reply may take: a hypervisor has 30 seconds to pause a guest. A run that is suspended
/// sends none.
const REPLY_LIMIT: Duration = Duration::from_secs(35);

/// How long a run may take to report the end of its VM after the grace period: to kill the VM, and to write
/// its output and its log to readers that stand still.
const END_LIMIT: Duration = Duration::from_secs(30);

/// How long the counters of a run may take. A list of VMs does not wait longer for one that is suspended.
const COUNTERS_LIMIT: Duration = Duration::from_secs(1);

/// Sends a request to the run with this run directory. Returns its reply and the connection, which
/// may have buffered bytes behind the reply.
pub(super) fn request(
    run_dir: &Path,
    request: &SocketRequest,
) -> io::Result<(BufReader<UnixStream>, SocketReply)> {
    let limit = match request {
        SocketRequest::Counters {} => COUNTERS_LIMIT,
        _ => REPLY_LIMIT,
    };
    let stream = capsa::internal::connect(&run_dir.join(CONTROL_SOCKET))?;
    exchange(stream, request, limit)
}

fn exchange(
    mut stream: UnixStream,
    request: &SocketRequest,
    limit: Duration,
) -> io::Result<(BufReader<UnixStream>, SocketReply)> {
    stream.write_all(&to_line(request))?;
    let mut stream = BufReader::new(stream);
    let reply = read_line(&mut stream, limit)?;
    // What follows the reply may take any time.
    stream.get_ref().set_read_timeout(None)?;
    Ok((stream, serde_json::from_str(&reply)?))
}

/// Reads the report of a run whose VM has been stopped. `None` for a run that ended without one.
///
/// # Errors
///
/// When the VM has not ended [`END_LIMIT`] after the grace period of `accepted`.
pub(super) fn read_end(
    stream: &mut BufReader<UnixStream>,
    accepted: &SocketReply,
) -> io::Result<Option<Value>> {
    let grace = accepted.grace.and_then(|grace| Duration::try_from_secs_f64(grace).ok());
    let limit = grace.unwrap_or_default().saturating_add(END_LIMIT);
    match read_line(stream, limit) {
        Ok(line) => Ok(serde_json::from_str(&line).ok()),
        Err(error) if error.kind() == ErrorKind::TimedOut => Err(error),
        // A run that was killed sends no report, and its VM has ended with it.
        Err(_) => Ok(None),
    }
}

/// Reads a line that comes within `limit`.
fn read_line(stream: &mut BufReader<UnixStream>, limit: Duration) -> io::Result<String> {
    stream.get_ref().set_read_timeout(Some(limit))?;
    let mut line = String::new();
    stream.read_line(&mut line).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => {
            io::Error::new(ErrorKind::TimedOut, format!("nothing came within {limit:?}"))
        }
        _ => error,
    })?;
    match line.ends_with('\n') {
        true => Ok(line),
        false => Err(io::Error::new(
            ErrorKind::UnexpectedEof,
            "the run closed the connection: it has ended",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspended_run_is_an_error_after_the_limit() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let limit = Duration::from_millis(50);
        let error = exchange(ours, &SocketRequest::Pause {}, limit).unwrap_err();
        assert_eq!(error.to_string(), "nothing came within 50ms");
    }

    #[test]
    fn end_of_suspended_run_is_an_error() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut stream = BufReader::new(ours);
        let error = read_line(&mut stream, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let accepted = SocketReply::stopping(Duration::MAX);
        assert_eq!(read_end(&mut BufReader::new(ours), &accepted).unwrap(), None);
    }

    #[test]
    fn run_that_ends_before_its_reply_is_an_error() {
        for sent in ["", "{\"ok\": tr"] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(sent.as_bytes()).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            let error = exchange(ours, &SocketRequest::Pause {}, REPLY_LIMIT).unwrap_err();
            assert_eq!(error.to_string(), "the run closed the connection: it has ended");
        }
    }
}
