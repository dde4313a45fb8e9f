//! The client's end of a control socket: connects, sends one request and reads the reply.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::protocol::{CONTROL_SOCKET, SocketReply, SocketRequest, to_line};

/// Sends a request to the run with this run directory. Returns its reply and the connection, which
/// may have buffered bytes behind the reply.
pub(super) fn request(
    run_dir: &Path,
    request: &SocketRequest,
) -> io::Result<(BufReader<UnixStream>, SocketReply)> {
    let mut stream = capsa::internal::connect(&run_dir.join(CONTROL_SOCKET))?;
    stream.write_all(&to_line(request))?;
    let mut stream = BufReader::new(stream);
    let mut reply = String::new();
    stream.read_line(&mut reply)?;
    Ok((stream, serde_json::from_str(&reply)?))
}
