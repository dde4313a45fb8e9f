//! The fake QEMU: it speaks QMP and carries out the commands in `-append`, one after the other.
//!
//! It prints what QEMU prints for `-help`, so that Capsa accepts it. The console and the control channel
//! are the sockets that it inherits, as for QEMU. The commands:
//!
//! | command | what it does |
//! | --- | --- |
//! | `greet` | sends the greeting of QMP on the control channel |
//! | `reply` | replies to the next command with success |
//! | `show` | replies to the next command with success, and sends the command to the console |
//! | `reject` | replies to the next command with an error |
//! | `serve` | replies to every command with success; exits after `quit` |
//! | `up` | all of `greet reply reply` |
//! | `control=TEXT`, `control*N` | sends a line, or N bytes without a line end, on the control channel |
//! | `events*N` | sends N events of a guest that resets |
//! | `console=TEXT`, `console*N` | sends the text, or N bytes of numbered lines, to the console |
//! | `ticks*N` | sends the time N times to the console, 20 ms apart; see [`fake::ticks`] |
//! | `stderr*N` | writes N bytes to standard error |
//! | `drain` | reads console input from now on and discards it |
//! | `echo` | echoes console input from now on |
//! | `close-control`, `close-console` | closes the connection |
//! | `child`, `detached-child` | starts a child that floods the console, in the same or another process group, and waits until it writes |
//! | `exit=N`, `hang` | exits; sleeps forever |
//!
//! If the initrd has the agent of Capsa, `-append` is not read: the fake QEMU starts that program, which then
//! serves the host's end of its virtio-serial port as it would in a guest, and does `up serve`.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio, exit};

use capsa_stand_ins::{agent_archive, fake_qemu as fake, inherited};

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("-help") => println!("QEMU emulator version 9.0.0\n-netdev stream"),
        // Without a VM, for comparisons.
        Some("--ticks") => {
            fake::ticks(std::io::stdout(), args[1].parse().expect("a number"));
        }
        Some("--flood") => {
            // Several threads, to write faster than a reader reads.
            let threads = (0..4).map(|_| {
                std::thread::spawn(|| {
                    let console = std::io::stdin().as_fd().try_clone_to_owned();
                    let mut console = UnixStream::from(console.expect("a descriptor"));
                    for n in 0.. {
                        if console.write_all(&[b'~'; 1 << 16]).is_err() {
                            exit(0);
                        }
                        if n == 10 {
                            println!("flooding");
                        }
                    }
                })
            });
            threads.collect::<Vec<_>>().into_iter().for_each(|thread| drop(thread.join()));
        }
        _ => FakeQemu::new(&args).run(&args),
    }
}

struct FakeQemu {
    console: Option<UnixStream>,
    control: Option<UnixStream>,
    commands: Option<BufReader<UnixStream>>,
    agent: Option<UnixStream>,
}

impl FakeQemu {
    fn new(args: &[String]) -> Self {
        let inherited = |id: &str| {
            let device = format!("socket,id={id},fd=");
            let number = args.iter().find_map(|arg| arg.strip_prefix(&device))?;
            let number = number.parse().expect("a descriptor number");
            Some(UnixStream::from(inherited::take(number).expect("an inherited descriptor")))
        };
        let control = inherited("control").expect("a control channel");
        let commands = control.try_clone().expect("a free descriptor");
        Self {
            console: inherited("console"),
            control: Some(control),
            commands: Some(BufReader::new(commands)),
            agent: inherited("agent"),
        }
    }

    fn run(mut self, args: &[String]) {
        if let Some(port) = self.agent.take() {
            let initrd = args.iter().position(|arg| arg == "-initrd").expect("-initrd");
            let _process = agent_archive::serve(Path::new(&args[initrd + 1]), port);
            for word in ["up", "serve"] {
                self.execute(word);
            }
            exit(1);
        }
        let append = args.iter().position(|arg| arg == "-append").expect("-append");
        for word in args[append + 1].split_whitespace() {
            // The process exits when a connection is closed, as a hypervisor does.
            if self.execute(word).is_none() {
                exit(1);
            }
        }
    }

    fn execute(&mut self, word: &str) -> Option<()> {
        let number = |word: &str| word.split_once('*').and_then(|(_, n)| n.parse().ok());
        let text = |word: &str| word.split_once('=').map(|(_, text)| text.to_owned());
        match word.split(['=', '*']).next()? {
            "greet" => self.send(
                r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 9}}, "capabilities": []}}"#,
            )?,
            "reply" => {
                self.command()?;
                self.send(r#"{"return": {}}"#)?;
            }
            "show" => {
                let command = self.command()?;
                self.send(r#"{"return": {}}"#)?;
                self.console.as_ref()?.write_all(command.as_bytes()).ok()?;
            }
            "reject" => {
                self.command()?;
                self.send(r#"{"error": {"class": "GenericError", "desc": "injected fault"}}"#)?;
            }
            "serve" => loop {
                let command = self.command()?;
                self.send(r#"{"return": {}}"#)?;
                if command.contains("\"quit\"") {
                    exit(0);
                }
            },
            "up" => {
                for word in ["greet", "reply", "reply"] {
                    self.execute(word)?;
                }
            }
            "control" => match number(word) {
                // The peer may have closed the connection.
                Some(bytes) => drop(flood(self.control.as_ref()?, bytes, |_| "x".repeat(4096))),
                None => drop(self.send(&text(word)?)),
            },
            "events" => {
                let event = r#"{"event": "RESET", "data": {"reason": "guest-reset"}, "timestamp": {"seconds": 0, "microseconds": 0}}"#;
                let lines = format!("{event}\n").repeat(number(word)?);
                self.control.as_ref()?.write_all(lines.as_bytes()).ok()?;
            }
            "console" => match number(word) {
                Some(bytes) => flood(self.console.as_ref()?, bytes, fake::line)?,
                None => self.console.as_ref()?.write_all(text(word)?.as_bytes()).ok()?,
            },
            "ticks" => {
                fake::ticks(self.console.as_ref()?.try_clone().ok()?, number(word)?);
            }
            "stderr" => flood(std::io::stderr(), number(word)?, fake::line)?,
            "drain" => {
                let mut console = self.console.as_ref()?.try_clone().ok()?;
                std::thread::spawn(move || {
                    let mut chunk = [0; 1 << 16];
                    while let Ok(1..) = console.read(&mut chunk) {}
                });
            }
            "echo" => {
                let mut input = self.console.as_ref()?.try_clone().ok()?;
                let mut output = input.try_clone().ok()?;
                std::thread::spawn(move || std::io::copy(&mut input, &mut output));
            }
            "close-control" => {
                self.control.take()?.shutdown(std::net::Shutdown::Both).ok()?;
                self.commands = None;
            }
            "close-console" => {
                self.console.take()?.shutdown(std::net::Shutdown::Both).ok()?;
            }
            "child" => self.start_child(false)?,
            "detached-child" => self.start_child(true)?,
            "exit" => exit(text(word)?.parse().ok()?),
            "hang" => hang(),
            other => panic!("unknown command `{other}`"),
        }
        Some(())
    }

    fn command(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.commands.as_mut()?.read_line(&mut line).ok()? > 0).then_some(line)
    }

    fn send(&mut self, line: &str) -> Option<()> {
        self.control.as_ref()?.write_all(format!("{line}\r\n").as_bytes()).ok()
    }

    fn start_child(&mut self, own_group: bool) -> Option<()> {
        let mut child = Command::new(env::current_exe().ok()?);
        child.arg("--flood");
        child.stdin(OwnedFd::from(self.console.as_ref()?.try_clone().ok()?));
        if own_group {
            child.process_group(0);
        }
        let mut child = child.stdout(Stdio::piped()).spawn().ok()?;
        let mut word = [0; 1];
        child.stdout.take()?.read_exact(&mut word).ok()
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn flood(mut to: impl Write, bytes: usize, line: impl Fn(usize) -> String) -> Option<()> {
    let mut left = bytes;
    for n in 0.. {
        let line = line(n);
        let part = &line.as_bytes()[..line.len().min(left)];
        to.write_all(part).ok()?;
        left -= part.len();
        if left == 0 {
            break;
        }
    }
    Some(())
}
