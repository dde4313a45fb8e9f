//! A service for development VMs: boots the VMs of a file, and serves their consoles to clients.
//!
//! `devvm VMS.json SOCKET` boots every VM of the file. A Nix build could print such a file:
//! `{"web": {"kernel": "/nix/store/…", "initrd": "/nix/store/…", "rootfs": "…"}, …}`;
//! [`VmDescription`] has all keys. A client connects to the socket and writes one line:
//!
//! | line | response |
//! | --- | --- |
//! | `list` | a line for each VM: its name and its status |
//! | `attach NAME` | `ok`, then the console: the scrollback, then further output; what the client sends is input |
//! | `restart NAME` | `ok`, when the old VM has stopped and a new one runs |
//! | `stop NAME` | `ok`, when the VM has stopped |
//!
//! A failure is `error:` and the reason. Requests for a VM that is being started or stopped wait. A
//! client that sends no request within 5 seconds, or closes its end, is disconnected. SIGTERM and
//! SIGINT stop all VMs and then the service; a second signal does not wait for them. A VM that
//! crashes stays stopped until it is restarted. The manual, module `manual::migration`, compares
//! this service with one that runs scripts.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use capsa::{
    Capsa, DiskImage, LinuxBootConfig, LinuxVmBuilder, MountMode, SharedDir, VmConsole, VmHandle,
};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy, copy_buf};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long a guest may take to power off.
const GRACE: Duration = Duration::from_secs(10);

/// How long a client may take to send its request.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// The description of a VM in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmDescription {
    kernel: PathBuf,
    initrd: PathBuf,
    rootfs: PathBuf,
    #[serde(default = "one")]
    cpus: u32,
    #[serde(default = "half_a_gibibyte")]
    memory_mb: u32,
    /// Additional kernel arguments.
    #[serde(default)]
    cmdline: Vec<String>,
    /// Directories of the host, by their mount points in the guest.
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

/// The content of the file.
struct VmFile(BTreeMap<String, VmDescription>);

impl<'de> Deserialize<'de> for VmFile {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct UniqueNames;
        impl<'de> Visitor<'de> for UniqueNames {
            type Value = VmFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of VMs by name")
            }

            /// A map would silently keep the last of several VMs with one name.
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<VmFile, A::Error> {
                let mut descriptions = BTreeMap::new();
                while let Some((name, description)) = map.next_entry::<String, VmDescription>()? {
                    if descriptions.contains_key(&name) {
                        return Err(A::Error::custom(format!("duplicate VM name {name}")));
                    }
                    descriptions.insert(name, description);
                }
                Ok(VmFile(descriptions))
            }
        }
        from.deserialize_map(UniqueNames)
    }
}

type ManagedVms = BTreeMap<String, Arc<ManagedVm>>;

/// A VM of the file, and its handle if it has been started. The lock makes restarts, stops and
/// attaches wait for each other.
struct ManagedVm {
    description: VmDescription,
    handle: Arc<Mutex<Option<VmHandle>>>,
}

impl ManagedVm {
    async fn lock(&self) -> OwnedMutexGuard<Option<VmHandle>> {
        Arc::clone(&self.handle).lock_owned().await
    }

    /// Boots the VM after stopping the old one. If the new VM cannot be built, the old one
    /// continues.
    async fn boot(&self, mut vm: OwnedMutexGuard<Option<VmHandle>>) -> Result<()> {
        let new = self.description.builder().build().await?;
        if let Some(old) = vm.take() {
            old.stop_with_timeout(GRACE).await?;
        }
        new.start().await?;
        *vm = Some(new);
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        match &*self.lock().await {
            Some(vm) => Ok(vm.stop_with_timeout(GRACE).await?),
            None => Ok(()),
        }
    }

    fn status(&self) -> String {
        match self.handle.try_lock() {
            Ok(vm) => vm.as_ref().map_or("did not start".to_owned(), |vm| vm.status().to_string()),
            Err(_) => "changing".to_owned(),
        }
    }
}

impl VmDescription {
    fn builder(&self) -> LinuxVmBuilder {
        // The image may be in the Nix store; the guest's writes are discarded.
        let disk = DiskImage::new(&self.rootfs).ephemeral();
        let config = LinuxBootConfig::new(&self.kernel).initrd(&self.initrd).disk(disk);
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
        return Err("usage: devvm VMS.json SOCKET".into());
    };
    let wrong = |error: &dyn fmt::Display| format!("{}: {error}", Path::new(&file).display());
    let text = std::fs::read(&file).map_err(|error| wrong(&error))?;
    let VmFile(descriptions) = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
    let vm = |description| Arc::new(ManagedVm { description, handle: Arc::default() });
    let vms = descriptions.into_iter().map(|(name, description)| (name, vm(description))).collect();
    serve(vms, socket.as_ref()).await
}

/// Serves clients until a signal arrives.
async fn serve(vms: ManagedVms, socket: &Path) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = listen(socket).await?;
    let vms = Arc::new(vms);
    // Each boot has the lock of its VM before the first client is accepted, so that the client waits.
    let boots = vms.iter().map(|(name, vm)| {
        let (vm, handle) = (Arc::clone(vm), Arc::clone(&vm.handle).try_lock_owned());
        let handle = handle.expect("no client has been accepted");
        (name.clone(), tokio::spawn(async move { vm.boot(handle).await }))
    });
    tokio::spawn(log_errors(boots.collect()));
    loop {
        tokio::select! {
            client = listener.accept() => match client {
                Ok((client, _)) => {
                    let vms = Arc::clone(&vms);
                    // A client that disconnects is not an error of the service.
                    tokio::spawn(async move { attend(client, &vms).await });
                }
                // No descriptor is left; wait until clients have disconnected.
                Err(error) => {
                    log(&format!("cannot accept a client: {error}"));
                    sleep(Duration::from_millis(100)).await;
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    std::fs::remove_file(socket)?;
    let stops = vms.iter().map(|(name, vm)| {
        let vm = Arc::clone(vm);
        (name.clone(), tokio::spawn(async move { vm.stop().await }))
    });
    tokio::select! {
        () = log_errors(stops.collect()) => {}
        // The VMs that still run are killed when their handles are dropped.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Listens on the socket; replaces the socket of a service that was killed.
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

/// Writes a log message. Write errors are ignored.
fn log(what: &str) {
    let _ = writeln!(std::io::stderr(), "devvm: {what}");
}

/// Waits for tasks, which have the names of their VMs, and logs the errors.
async fn log_errors(tasks: Vec<(String, JoinHandle<Result<()>>)>) {
    for (name, task) in tasks {
        if let Err(error) = task.await.unwrap_or_else(|panic| Err(panic.into())) {
            log(&format!("{name}: {error}"));
        }
    }
}

/// Handles the request of a client.
async fn attend(client: UnixStream, vms: &ManagedVms) -> std::io::Result<()> {
    let (from, mut to) = client.into_split();
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    timeout(REQUEST_TIME, (&mut from).take(1024).read_until(b'\n', &mut line)).await??;
    let line = String::from_utf8_lossy(&line);
    let (verb, name) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
    if verb == "list" {
        for (name, vm) in vms {
            to.write_all(format!("{name} {}\n", vm.status()).as_bytes()).await?;
        }
        return Ok(());
    }
    let Some(vm) = vms.get(name) else {
        return to.write_all(format!("error: no VM {name}\n").as_bytes()).await;
    };
    let done = match verb {
        "attach" => match console(vm).await {
            Ok(console) => {
                to.write_all(b"ok\n").await?;
                let (mut output, mut input) = console.split();
                // The session ends with the VM or with the client.
                return tokio::select! {
                    copied = copy(&mut output, &mut to) => copied.map(drop),
                    copied = copy_buf(&mut from, &mut input) => copied.map(drop),
                };
            }
            Err(error) => Err(error),
        },
        "restart" => vm.boot(vm.lock().await).await,
        "stop" => vm.stop().await,
        _ => Err(format!("unknown request {verb}").into()),
    };
    let answer = done.map_or_else(|error| format!("error: {error}\n"), |()| "ok\n".to_owned());
    to.write_all(answer.as_bytes()).await
}

async fn console(vm: &ManagedVm) -> Result<VmConsole> {
    match &*vm.lock().await {
        Some(vm) => Ok(vm.console().await?),
        None => Err("the VM did not start".into()),
    }
}
