//! A service for development machines: boots those of a file, and hands their consoles to clients.
//!
//! `devvm MACHINES.json SOCKET` boots every machine of the file, which is what a Nix build of them
//! would print: `{"web": {"kernel": "/nix/store/…", "initrd": "/nix/store/…", "rootfs": "…"}, …}`, and
//! what else stands in [`Guest`]. A client connects to the socket and writes one line:
//!
//! | line | what comes back |
//! | --- | --- |
//! | `list` | a line for each machine: its name and its status |
//! | `attach NAME` | `ok`, then its console: all that is kept, then what comes; what the client sends is typed |
//! | `restart NAME` | `ok`, when the old one is off and a new one runs |
//! | `stop NAME` | `ok`, when it is off |
//!
//! or `error:` and why. Whoever asks while a machine changes waits for that; whoever asks for nothing is
//! sent away, and so is who closes its end. SIGTERM and SIGINT stop all machines and then the service; a
//! second one does not wait for them. One that crashes stays down until it is restarted. What this was
//! before Capsa, and what became of it, is told in the manual, module `manual::migration`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use capsa::{
    Capsa, DiskImage, LinuxDirectBootConfig, LinuxVmBuilder, MountMode, SharedDir, VmConsole,
    VmHandle,
};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy, copy_buf};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long a guest has to power off.
const GRACE: Duration = Duration::from_secs(10);

/// How long a client has for its first line.
const SILENCE: Duration = Duration::from_secs(5);

/// What the file says of a machine.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
    rootfs: PathBuf,
    #[serde(default = "one")]
    cpus: u32,
    #[serde(default = "half_a_gibibyte")]
    memory_mb: u32,
    /// Kernel arguments beside those that Capsa makes.
    #[serde(default)]
    cmdline: Vec<String>,
    /// Directories of the host, by where the guest has them.
    #[serde(default)]
    shares: BTreeMap<String, PathBuf>,
    #[serde(default)]
    offline: bool,
}

fn one() -> u32 {
    1
}

fn half_a_gibibyte() -> u32 {
    512
}

/// What the file says.
struct Guests(BTreeMap<String, Guest>);

impl<'de> Deserialize<'de> for Guests {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct EachOnce;
        impl<'de> Visitor<'de> for EachOnce {
            type Value = Guests;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("machines by name")
            }

            /// A map would keep the last of a name and be silent about the others.
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Guests, A::Error> {
                let mut guests = BTreeMap::new();
                while let Some((name, guest)) = map.next_entry::<String, Guest>()? {
                    if guests.contains_key(&name) {
                        return Err(A::Error::custom(format!("two machines are named {name}")));
                    }
                    guests.insert(name, guest);
                }
                Ok(Guests(guests))
            }
        }
        from.deserialize_map(EachOnce)
    }
}

type Machines = BTreeMap<String, Arc<Machine>>;

/// A machine of the file, and the one that runs or ran last. Under the lock, restarts wait for each
/// other, and whoever attaches for them.
struct Machine {
    guest: Guest,
    vm: Mutex<Option<VmHandle>>,
}

impl Machine {
    /// Boots it, when what runs of it has stopped. That goes on where there is nothing to boot.
    async fn boot(&self) -> Result<()> {
        let mut vm = self.vm.lock().await;
        let new = self.guest.builder().build().await?;
        if let Some(old) = vm.take() {
            old.stop_with_timeout(GRACE).await?;
        }
        new.start().await?;
        *vm = Some(new);
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        match &*self.vm.lock().await {
            Some(vm) => Ok(vm.stop_with_timeout(GRACE).await?),
            None => Ok(()),
        }
    }

    fn status(&self) -> String {
        match self.vm.try_lock() {
            Ok(vm) => vm.as_ref().map_or("did not start".to_owned(), |vm| vm.status().to_string()),
            Err(_) => "changing".to_owned(),
        }
    }
}

impl Guest {
    fn builder(&self) -> LinuxVmBuilder {
        let config = LinuxDirectBootConfig {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            // The store is nobody's to write to: what the guest writes goes with the machine.
            disk: DiskImage::new(&self.rootfs).ephemeral(),
        };
        let share = |(there, here)| SharedDir::new(here, there, MountMode::ReadWrite);
        let builder = Capsa::vm(config)
            .cpus(self.cpus)
            .memory_mb(self.memory_mb)
            .shares(self.shares.iter().map(share))
            .cmdline_args(self.cmdline.iter().map(String::as_str))
            .console_enabled();
        if self.offline { builder.no_network() } else { builder }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(file), Some(socket)) = (arguments.next(), arguments.next()) else {
        return Err("usage: devvm MACHINES.json SOCKET".into());
    };
    let wrong = |error: &dyn fmt::Display| format!("{}: {error}", Path::new(&file).display());
    let text = std::fs::read(&file).map_err(|error| wrong(&error))?;
    let Guests(guests) = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
    let machine = |guest| Arc::new(Machine { guest, vm: Mutex::new(None) });
    let machines = guests.into_iter().map(|(name, guest)| (name, machine(guest))).collect();
    serve(machines, socket.as_ref()).await
}

/// Serves until a signal says otherwise.
async fn serve(machines: Machines, socket: &Path) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = listen(socket).await?;
    let machines = Arc::new(machines);
    let booting = Arc::clone(&machines);
    tokio::spawn(
        async move { each(&booting, |machine| async move { machine.boot().await }).await },
    );
    loop {
        tokio::select! {
            client = listener.accept() => match client {
                Ok((client, _)) => {
                    let machines = Arc::clone(&machines);
                    // A client that goes away is no error of the service.
                    tokio::spawn(async move { attend(client, &machines).await });
                }
                // There is no descriptor left: clients will go, or be sent away.
                Err(error) => {
                    say(&format!("cannot take a client: {error}"));
                    sleep(Duration::from_millis(100)).await;
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    std::fs::remove_file(socket)?;
    tokio::select! {
        () = each(&machines, |machine| async move { machine.stop().await }) => {}
        // What still runs is killed with its handle.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Listens, also where a service that was killed has left its socket behind.
async fn listen(socket: &Path) -> Result<UnixListener> {
    let is_socket = std::fs::metadata(socket).is_ok_and(|there| there.file_type().is_socket());
    if is_socket
        && let Err(error) = UnixStream::connect(socket).await
        && error.kind() == ErrorKind::ConnectionRefused
    {
        std::fs::remove_file(socket)?;
    }
    UnixListener::bind(socket).map_err(|error| format!("{}: {error}", socket.display()).into())
}

/// Says it in the log. That nobody reads it ends no service.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "devvm: {what}");
}

/// Does this to all machines at once, and says with which it went wrong.
async fn each<F>(machines: &Machines, act: impl Fn(Arc<Machine>) -> F)
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let begun: Vec<_> = machines
        .iter()
        .map(|(name, machine)| (name, tokio::spawn(act(Arc::clone(machine)))))
        .collect();
    for (name, task) in begun {
        if let Err(error) = task.await.unwrap_or_else(|panic| Err(panic.into())) {
            say(&format!("{name}: {error}"));
        }
    }
}

/// Does what a client asks for in its first line.
async fn attend(client: UnixStream, machines: &Machines) -> std::io::Result<()> {
    let (from, mut to) = client.into_split();
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    timeout(SILENCE, (&mut from).take(1024).read_until(b'\n', &mut line)).await??;
    let line = String::from_utf8_lossy(&line);
    let (verb, name) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
    if verb == "list" {
        for (name, machine) in machines {
            to.write_all(format!("{name} {}\n", machine.status()).as_bytes()).await?;
        }
        return Ok(());
    }
    let Some(machine) = machines.get(name) else {
        return to.write_all(format!("error: no machine {name}\n").as_bytes()).await;
    };
    let done = match verb {
        "attach" => match console(machine).await {
            Ok(console) => {
                to.write_all(b"ok\n").await?;
                let (mut says, mut hears) = console.split();
                // It is over when the machine is, or the client.
                return tokio::select! {
                    said = copy(&mut says, &mut to) => said.map(drop),
                    typed = copy_buf(&mut from, &mut hears) => typed.map(drop),
                };
            }
            Err(error) => Err(error),
        },
        "restart" => machine.boot().await,
        "stop" => machine.stop().await,
        _ => Err(format!("what is {verb}?").into()),
    };
    let answer = done.map_or_else(|error| format!("error: {error}\n"), |()| "ok\n".to_owned());
    to.write_all(answer.as_bytes()).await
}

async fn console(machine: &Machine) -> Result<VmConsole> {
    match &*machine.vm.lock().await {
        Some(vm) => Ok(vm.console().await?),
        None => Err("it did not start".into()),
    }
}
