//! The client's end of a control socket: connects, sends one request and reads the reply.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::protocol::{CONTROL_SOCKET, SocketReply, SocketRequest, to_line};

/// How long a reply may take: a hypervisor has 30 seconds to pause a guest. A run that is suspended
/// sends none.
const REPLY_LIMIT: Duration = Duration::from_secs(35);

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
    stream.set_read_timeout(Some(limit))?;
    let mut stream = BufReader::new(stream);
    let mut reply = String::new();
    stream.read_line(&mut reply).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => {
            io::Error::new(ErrorKind::TimedOut, format!("nothing came within {limit:?}"))
        }
        _ => error,
    })?;
    // What follows the reply may take any time.
    stream.get_ref().set_read_timeout(None)?;
    Ok((stream, serde_json::from_str(&reply)?))
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
}
