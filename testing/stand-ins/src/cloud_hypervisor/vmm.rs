//! The VM behind the API: a loop in the main thread that handles requests, signals and guest events.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

use super::super::emulator::{Emulator, EmulatorEvent};
use super::super::http::HttpRequest;
use super::super::{EMULATOR_EXITED, UNKNOWN_CONFIG};
use super::api_error::{self, ApiError};
use super::command_line::ChvOptions;
use super::config::ChvVmConfig;
use super::events::Events;
use super::http::{self, ApiResponse, Served};
use super::{ChvCall, ChvFault, VERSION, guest_args};

/// An event that the loop handles.
#[derive(Debug)]
pub(super) enum VmmEvent {
    /// A request of the API, the sender for its response, and a channel that closes after the response
    /// is written.
    Request(HttpRequest, Sender<ApiResponse>, Receiver<()>),
    /// SIGTERM or SIGINT.
    Terminate,
    /// An event of the emulator with this number. Events of an earlier emulator are ignored.
    Guest(u64, EmulatorEvent),
}

impl From<(u64, EmulatorEvent)> for VmmEvent {
    fn from((generation, event): (u64, EmulatorEvent)) -> Self {
        Self::Guest(generation, event)
    }
}

/// How long the process waits before its exit until its last response is written.
const LAST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the API until a request, a signal or the guest ends the process.
pub(super) fn run(options: &ChvOptions, faults: Vec<ChvFault>) -> ExitCode {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    // Blocked before the first thread or child starts: all of them inherit the signal mask. So a
    // signal to the process group ends the stand-in and not QEMU. The real one has no children.
    if let Err(error) = signals.thread_block() {
        return fatal(&["Failed to block signals", &error.to_string()]);
    }
    let (sender, receiver) = channel();
    if !faults.contains(&ChvFault::IgnoresSigterm) {
        let sender = sender.clone();
        std::thread::spawn(move || {
            while signals.wait().is_ok() && sender.send(VmmEvent::Terminate).is_ok() {}
        });
    }
    let event_monitor = match Events::open(options.event_monitor.as_ref()) {
        Ok(events) => Arc::new(events),
        Err(error) => return fatal(&["Failed to open the event monitor", &error.to_string()]),
    };
    {
        let (event_monitor, faults) = (event_monitor.clone(), faults.clone());
        event_monitor.send("vmm", "starting");
        std::thread::spawn(move || event_monitor.apply_faults(&faults));
    }
    let mut vmm = Vmm {
        options,
        faults,
        event_monitor,
        sender,
        receiver,
        config: None,
        vm: None,
        generations: 0,
    };
    match vmm.serve() {
        Ok(status) => status,
        Err(error) => fatal(&["Error creation API server's socket", &error.to_string()]),
    }
}

fn fatal(chain: &[&str]) -> ExitCode {
    eprintln!("Error: Cloud Hypervisor exited with the following chain of errors:");
    for (n, why) in chain.iter().enumerate() {
        eprintln!("  {n}: {why}");
    }
    ExitCode::FAILURE
}

/// The state of the VM. `vm.info` shows the variant's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VmmState {
    Created,
    Running,
    Paused,
}

#[derive(Debug)]
struct VmInstance {
    state: VmmState,
    /// `None` after a boot that failed when the VM already existed.
    emulator: Option<Emulator>,
    generation: u64,
}

struct Vmm<'a> {
    options: &'a ChvOptions,
    faults: Vec<ChvFault>,
    event_monitor: Arc<Events>,
    sender: Sender<VmmEvent>,
    receiver: Receiver<VmmEvent>,
    config: Option<ChvVmConfig>,
    vm: Option<VmInstance>,
    generations: u64,
}

type ApiResult = Result<ApiResponse, ApiError>;

impl Vmm<'_> {
    /// The event loop. Returns the exit code of the process.
    fn serve(&mut self) -> std::io::Result<ExitCode> {
        let delayed_until = self.faults.iter().find_map(|fault| match fault {
            ChvFault::SocketAfter(time) => Some(Instant::now() + *time),
            _ => None,
        });
        let mut served: Option<Served> = None;
        loop {
            let is_time = delayed_until.is_none_or(|time| time <= Instant::now());
            if served.is_none() && is_time && !self.faults.contains(&ChvFault::NoSocket) {
                let socket = self.options.api_socket.as_ref().expect("parsing requires it");
                served = Some(http::serve(socket, &self.sender, &self.faults)?);
            }
            let until = delayed_until
                .map_or(Duration::MAX, |t| t.saturating_duration_since(Instant::now()));
            let pause = if served.is_some() { Duration::from_secs(3600) } else { until };
            let event = match self.receiver.recv_timeout(pause.min(Duration::from_secs(3600))) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => unreachable!("this struct holds a sender"),
            };
            if let Some(status) = self.handle(event) {
                return Ok(status);
            }
        }
    }

    /// Handles one event. Returns the exit code if the process ends.
    fn handle(&mut self, event: VmmEvent) -> Option<ExitCode> {
        match event {
            VmmEvent::Request(request, response_sender, written) => {
                let response = self.respond(&request);
                let ends = http::name(&request) == ChvCall::Quit.name()
                    && response.status == 200
                    && !self.faults.contains(&ChvFault::Ignores(ChvCall::Quit));
                let _ = response_sender.send(response);
                if !ends {
                    return None;
                }
                let _ = written.recv_timeout(LAST_RESPONSE_TIMEOUT);
                Some(ExitCode::SUCCESS)
            }
            VmmEvent::Terminate => Some(self.quit()),
            VmmEvent::Guest(generation, event) => {
                let is_present = self.vm.as_ref().is_some_and(|vm| vm.generation == generation);
                if is_present { self.handle_guest(event) } else { None }
            }
        }
    }

    fn handle_guest(&mut self, event: EmulatorEvent) -> Option<ExitCode> {
        match event {
            EmulatorEvent::PoweredOff => {
                if let Some(emulator) = self.vm.as_ref().and_then(|vm| vm.emulator.as_ref()) {
                    emulator.drain();
                }
                let silently = self.faults.iter().find_map(|fault| match fault {
                    ChvFault::EndsSilently(status) => Some(ExitCode::from(*status)),
                    _ => None,
                });
                if silently.is_some() {
                    return silently;
                }
                let keeps_running = self.faults.contains(&ChvFault::CpuFailsAndStays);
                if keeps_running || self.faults.contains(&ChvFault::CpuFails) {
                    eprintln!("{}", ChvFault::CPU_FAILED);
                }
                if keeps_running {
                    return None;
                }
                if self.options.no_shutdown {
                    self.shut_down();
                    return None;
                }
                Some(self.quit())
            }
            EmulatorEvent::Reset => match self.reboot() {
                Ok(()) => None,
                // For example, the virtiofsd of a share exited with the first VM.
                Err(error) => Some(fatal(&["VM reboot error", &format!("{error:?}")])),
            },
            EmulatorEvent::Panicked(event) => {
                self.event_monitor.send_with("guest", "panic", Some(json!({ "event": event })));
                None
            }
            EmulatorEvent::Exited(stderr) => {
                eprintln!("the emulator exited: {stderr}");
                Some(ExitCode::from(EMULATOR_EXITED))
            }
        }
    }

    fn respond(&mut self, request: &HttpRequest) -> ApiResponse {
        for fault in self.faults.clone() {
            match fault {
                ChvFault::Exits(call, status) if call.name() == http::name(request) => {
                    eprintln!("{}", ChvFault::STDERR_LINE);
                    std::process::exit(i32::from(status));
                }
                ChvFault::Rejects(call) if call.name() == http::name(request) => {
                    return ApiError::new(
                        500,
                        &["Error from API", outer_error(call), ChvFault::CAUSE],
                    )
                    .into();
                }
                ChvFault::Ignores(call) if call.name() == http::name(request) => {
                    let status = if call == ChvCall::Quit { 200 } else { 204 };
                    return ApiResponse::new(status, String::new());
                }
                _ => {}
            }
        }
        self.route(request).unwrap_or_else(ApiResponse::from)
    }

    fn route(&mut self, request: &HttpRequest) -> ApiResult {
        let name = http::name(request);
        let bad_request = || ApiError::new(400, &["Bad Request"]);
        let is_get = match name {
            "vmm.ping" | "vm.info" | "vm.counters" => true,
            "vm.create" | "vm.boot" | "vm.pause" | "vm.resume" | "vm.power-button"
            | "vm.shutdown" | "vm.reboot" | "vm.delete" | "vm.nmi" | "vmm.shutdown" => false,
            _ => return Err(ApiError::new(404, &["Not Found"])),
        };
        match (request.method.as_str(), is_get) {
            ("GET", true) | ("PUT", false) => {}
            // The real one rejects the wrong method of these calls in the API, with an empty body, and
            // that of the others in the transport.
            ("PATCH" | "DELETE", _)
                if !["vm.create", "vm.info", "vmm.ping", "vmm.shutdown"].contains(&name) =>
            {
                return Ok(ApiResponse::new(400, String::new()));
            }
            _ => return Err(bad_request()),
        }
        if name == "vm.create" {
            return self.create(request.body.as_deref());
        }
        if request.body.is_some() {
            return Err(bad_request());
        }
        let api = |what| move |error: ApiError| error.within(&["Error from API", what]);
        match name {
            "vmm.ping" => return Ok(ApiResponse::new(200, ping().to_string())),
            "vm.info" => {
                let info = self.info().map_err(api("The VM info is not available"))?;
                return Ok(ApiResponse::new(200, info.to_string()));
            }
            "vm.counters" => {
                self.vm
                    .as_ref()
                    .ok_or_else(not_running)
                    .map_err(api("The VM info is not available"))?;
                return Ok(ApiResponse::new(200, "{}".into()));
            }
            "vm.boot" => self.boot().map_err(api(outer_error(ChvCall::Boot)))?,
            "vm.pause" => self.pause().map_err(api("The VM could not be paused"))?,
            "vm.resume" => self.resume().map_err(api("The VM could not resume"))?,
            "vm.power-button" => {
                self.execute("system_powerdown").map_err(api(outer_error(ChvCall::PowerButton)))?;
            }
            "vm.nmi" => self.execute("inject-nmi").map_err(api("Error triggering NMI"))?,
            "vm.shutdown" => {
                self.vm
                    .as_ref()
                    .ok_or_else(not_running)
                    .map_err(api("The VM could not shutdown"))?;
                self.shut_down();
            }
            "vm.reboot" => self.reboot().map_err(api("The VM could not reboot"))?,
            "vm.delete" => self.delete(),
            _ => {
                self.quit();
                return Ok(ApiResponse::new(200, String::new()));
            }
        }
        Ok(ApiResponse::new(204, String::new()))
    }

    fn create(&mut self, body: Option<&[u8]>) -> ApiResult {
        let Some(body) = body else { return Ok(ApiResponse::new(400, String::new())) };
        let not_json = |error: serde_json::Error| {
            ApiError::new(400, &["Failed to deserialize JSON", &error.to_string()])
        };
        let config: ChvVmConfig = serde_json::from_slice(body).map_err(not_json)?;
        let whole: Value = serde_json::from_slice(body).map_err(not_json)?;
        let ignored = config.ignored(&whole);
        if !ignored.is_empty() && !self.faults.contains(&ChvFault::Lenient) {
            eprintln!("vm.create: unknown or unsupported fields: {}", ignored.join(", "));
            std::process::exit(i32::from(UNKNOWN_CONFIG));
        }
        if self.config.is_some() {
            let chain = ["Error from API", outer_error(ChvCall::Create), "VM is already created"];
            return Err(ApiError::new(500, &chain));
        }
        self.config = Some(config);
        Ok(ApiResponse::new(204, String::new()))
    }

    fn boot(&mut self) -> Result<(), ApiError> {
        if self.vm.is_some() {
            return Err(ApiError::new(500, &["VM is already created"]));
        }
        self.event_monitor.send("vm", "booting");
        let missing = || ApiError::new(404, &["VM config is missing"]);
        let config = self.config.as_ref().ok_or_else(missing)?;
        api_error::check_before_creation(config)?;
        if let Err(what) = api_error::check_supported(config) {
            eprintln!("vm.boot: the stand-in does not support {what}");
            std::process::exit(i32::from(UNKNOWN_CONFIG));
        }
        self.generations += 1;
        let generation = self.generations;
        if let Err(error) = api_error::check_kernel(config) {
            self.vm = Some(VmInstance { state: VmmState::Created, emulator: None, generation });
            return Err(error);
        }
        self.vm = Some(start(config, generation, &self.sender)?);
        self.event_monitor.send("vm", "booted");
        Ok(())
    }

    fn pause(&mut self) -> Result<(), ApiError> {
        let vm = self.vm.as_ref().ok_or_else(not_running)?;
        self.event_monitor.send("vm", "pausing");
        if vm.state == VmmState::Paused {
            let chain = ["Cannot pause VM", "Failed to pause migratable component"];
            return Err(invalid(vm.state, VmmState::Paused).within(&chain));
        }
        self.execute("stop")?;
        self.set_state(VmmState::Paused);
        self.event_monitor.send("vm", "paused");
        Ok(())
    }

    fn resume(&mut self) -> Result<(), ApiError> {
        let vm = self.vm.as_ref().ok_or_else(not_running)?;
        self.event_monitor.send("vm", "resuming");
        if vm.state == VmmState::Running {
            let chain = ["Cannot resume VM", "Failed to resume migratable component"];
            return Err(invalid(vm.state, VmmState::Running).within(&chain));
        }
        self.execute("cont")?;
        self.set_state(VmmState::Running);
        self.event_monitor.send("vm", "resumed");
        Ok(())
    }

    fn reboot(&mut self) -> Result<(), ApiError> {
        self.event_monitor.send("vm", "rebooting");
        let missing = || ApiError::new(404, &["VM is not created"]);
        let (Some(config), Some(vm)) = (&self.config, &self.vm) else { return Err(missing()) };
        if let Some(emulator) = &vm.emulator {
            emulator.drain();
        }
        // As in the real one, a new VM replaces the old one. A reset inside QEMU would cause two reset
        // events: its firmware resets once more when it finds that it has run before.
        self.vm = None;
        self.generations += 1;
        let vm = start(config, self.generations, &self.sender)?;
        self.vm = Some(vm);
        self.event_monitor.send("vm", "rebooted");
        Ok(())
    }

    /// Turns the VM off. Its configuration stays, so that it can boot again.
    fn shut_down(&mut self) {
        self.vm = None;
        self.event_monitor.send("vm", "shutdown");
    }

    fn delete(&mut self) {
        if self.config.is_none() {
            return;
        }
        if self.vm.is_some() {
            self.shut_down();
        }
        self.config = None;
        self.event_monitor.send("vm", "deleted");
    }

    fn quit(&mut self) -> ExitCode {
        self.delete();
        self.event_monitor.send("vmm", "shutdown");
        ExitCode::SUCCESS
    }

    fn info(&self) -> Result<Value, ApiError> {
        let missing = || ApiError::new(404, &["VM is not created"]);
        let config = self.config.as_ref().ok_or_else(missing)?;
        let state = self.vm.as_ref().map_or(VmmState::Created, |vm| vm.state);
        let mut info = json!({
            "config": config.info(),
            "state": format!("{state:?}"),
            "memory_actual_size": config.memory.size,
        });
        if self.vm.is_some() {
            // The real one lists the devices. The list differs between versions, and no test reads it.
            info["device_tree"] = json!({});
        }
        Ok(info)
    }

    fn execute(&self, command: &str) -> Result<(), ApiError> {
        let vm = self.vm.as_ref().ok_or_else(not_running)?;
        let Some(emulator) = &vm.emulator else { return Ok(()) };
        emulator.execute(command).map_err(|why| ApiError::new(500, &[&why]))
    }

    fn set_state(&mut self, state: VmmState) {
        if let Some(vm) = &mut self.vm {
            vm.state = state;
        }
    }
}

/// The outermost error text of a failed call, as in v53.
fn outer_error(call: ChvCall) -> &'static str {
    match call {
        ChvCall::Create => "The VM could not be created",
        ChvCall::Boot => "The VM could not boot",
        ChvCall::PowerButton => "Error triggering power button",
        ChvCall::Quit => "The VMM could not shutdown",
    }
}

/// Starts the emulator of a VM.
fn start(
    config: &ChvVmConfig,
    generation: u64,
    to: &Sender<VmmEvent>,
) -> Result<VmInstance, ApiError> {
    let vm = guest_args::emulated_vm(config, io::stdin().is_terminal());
    let emulator = Emulator::start(&vm, generation, to)
        .map_err(|why| ApiError::new(500, &["Error from device manager", &why]))?;
    Ok(VmInstance { state: VmmState::Running, emulator: Some(emulator), generation })
}

fn not_running() -> ApiError {
    ApiError::new(500, &["VM is not running"])
}

fn invalid(from: VmmState, to: VmmState) -> ApiError {
    let what = format!("Invalid transition: InvalidStateTransition({from:?}, {to:?})");
    ApiError::new(500, &[&what])
}

fn ping() -> Value {
    json!({
        "build_version": VERSION,
        "version": VERSION.trim_start_matches('v'),
        "pid": std::process::id(),
        "features": ["kvm"],
    })
}
