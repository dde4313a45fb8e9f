//! What a guest runs to be talked to over vsock.
//!
//! `vsock-peer listen PORT` sends back what each connection sends, any number at once.
//! `vsock-peer connect PORT WORD` connects to the host, sends the word as a line and prints the line
//! that comes back; where none comes, it fails.

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    peer::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("vsock-peer runs in guests, and those are Linux");
    std::process::exit(2);
}

#[cfg(target_os = "linux")]
mod peer {
    use std::io::{self, BufRead, BufReader, Read, Write};
    use std::{env, thread};

    use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

    pub(crate) fn main() -> io::Result<()> {
        let args: Vec<String> = env::args().skip(1).collect();
        let usage =
            || io::Error::other("usage: vsock-peer listen PORT, vsock-peer connect PORT WORD");
        let [what, port, words @ ..] = args.as_slice() else { return Err(usage()) };
        let port: u32 = port.parse().map_err(|_| usage())?;
        match (what.as_str(), words) {
            ("listen", []) => {
                let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
                println!("listening on {port}");
                loop {
                    let (stream, _) = listener.accept()?;
                    thread::spawn(move || echo(stream));
                }
            }
            ("connect", [word]) => {
                let mut stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)?;
                writeln!(stream, "{word}")?;
                let mut line = String::new();
                if BufReader::new(stream).read_line(&mut line)? == 0 {
                    return Err(io::Error::other("nobody answers"));
                }
                print!("{line}");
                Ok(())
            }
            _ => Err(usage()),
        }
    }

    fn echo(mut stream: VsockStream) {
        let mut chunk = [0; 1 << 16];
        while let Ok(n @ 1..) = stream.read(&mut chunk) {
            if stream.write_all(&chunk[..n]).is_err() {
                break;
            }
        }
    }
}
