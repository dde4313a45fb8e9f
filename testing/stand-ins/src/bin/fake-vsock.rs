//! A vsock device without a hypervisor, with a simulated guest.
//!
//! It has the command line of vhost-device-vsock and serves only the socket of the host. The guest on
//! each port:
//!
//! | port | what it does |
//! | --- | --- |
//! | 1 | echoes |
//! | 2 | rejects the connection |
//! | 3 | never replies |
//! | 4 | replies byte by byte, sends `hello`, then echoes |
//! | 5 | sends the number of connections, including this one, and closes |

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

static OPEN: AtomicUsize = AtomicUsize::new(0);

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().collect();
    if args.iter().any(|arg| arg == "--version") {
        println!("vhost-device-vsock 0.3.0");
        return Ok(());
    }
    let value = |flag| args.iter().skip_while(|arg| *arg != flag).nth(1).expect("its flags");
    let listener = UnixListener::bind(value("--uds-path"))?;
    let _device = UnixListener::bind(value("--socket"))?;
    loop {
        let (stream, _) = listener.accept()?;
        OPEN.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            // The peer may close the connection at any time.
            let _ = serve(stream);
            OPEN.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn serve(stream: UnixStream) -> io::Result<()> {
    let (mut from, mut to) = (BufReader::new(stream.try_clone()?), stream);
    let mut line = String::new();
    from.read_line(&mut line)?;
    match line.as_str() {
        "CONNECT 1\n" => to.write_all(b"OK 1024\n")?,
        "CONNECT 3\n" => {}
        "CONNECT 4\n" => {
            for byte in b"OK 1024\nhello" {
                std::thread::sleep(Duration::from_micros(100));
                to.write_all(&[*byte])?;
            }
        }
        "CONNECT 5\n" => return write!(to, "OK 1024\n{}", OPEN.load(Ordering::SeqCst)),
        _ => return Ok(()),
    }
    let mut chunk = [0; 4096];
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(()),
            n => to.write_all(&chunk[..n])?,
        }
    }
}
