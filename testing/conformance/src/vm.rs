//! A VM of a scenario: starts it, controls its guest, and prints the last console lines when the
//! scenario fails.

use std::time::Duration;

use capsa::StopReport;
use capsa::blocking::{VmConsole, VmHandle};

use capsa_fixtures::nano;

/// The time limit of each wait. In emulation on a loaded host, a step of seconds can take minutes.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The number of console lines that a failure prints.
const TAIL: usize = 25;

/// How a scenario controls a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestInterface {
    /// The nano guest: it echoes bytes; some are commands.
    Nano,
    /// Linux: a shell after a login.
    Shell,
}

/// A VM, its console and its guest.
#[derive(Debug)]
pub struct TestVm {
    /// The handle of the VM.
    pub handle: VmHandle,
    /// A console, from the first byte on.
    pub console: VmConsole,
    interface: GuestInterface,
}

impl TestVm {
    pub(super) fn new(vm: VmHandle, interface: GuestInterface) -> Self {
        let console = vm.console().expect("every VM of the suite has a console");
        Self { handle: vm, console, interface }
    }

    /// Starts the VM.
    ///
    /// # Panics
    ///
    /// When that fails.
    #[track_caller]
    pub fn start(&self) {
        self.handle.start().unwrap_or_else(|error| panic!("the start failed: {error}"));
    }

    /// Waits until the guest accepts input after its boot.
    ///
    /// # Panics
    ///
    /// When that takes too long.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let ready = match self.interface {
            GuestInterface::Nano => {
                self.console.wait_for_timeout("NANO READY\r\n", PATIENCE).map(drop)
            }
            GuestInterface::Shell => self.console.login_timeout("root", None, PATIENCE),
        };
        ready.unwrap_or_else(|error| panic!("the guest is not ready: {error:#}"));
    }

    /// Waits until the guest accepts input after a reboot.
    ///
    /// # Panics
    ///
    /// When that takes too long.
    #[track_caller]
    pub fn wait_until_rebooted(&mut self) {
        if self.interface == GuestInterface::Shell {
            // The prompt of the old shell may still be unread; the login prompt is new.
            self.expect("capsa login: ");
            self.console.write_line("root").unwrap();
            self.expect("# ");
        } else {
            self.wait_until_ready();
        }
    }

    /// Reads up to the end of `text` and returns what was read.
    ///
    /// # Panics
    ///
    /// When that takes too long.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let seen = self.console.wait_for_timeout(text, PATIENCE);
        seen.unwrap_or_else(|error| panic!("no {text:?} on the console: {error:#}"))
    }

    /// Sends a line and checks that the guest echoes it.
    ///
    /// # Panics
    ///
    /// When the echo is missing or different.
    #[track_caller]
    pub fn echoes(&mut self, line: &str) {
        match self.interface {
            GuestInterface::Nano => {
                self.console.write_line(line).unwrap();
                assert_eq!(self.expect("\n"), format!("{line}\n"));
            }
            GuestInterface::Shell => assert_eq!(self.sh(&format!("echo '{line}'")), line),
        }
    }

    /// Runs a shell command and returns its output, without blanks at the end.
    ///
    /// # Panics
    ///
    /// When the command fails, or the guest has no shell.
    #[track_caller]
    pub fn sh(&mut self, command: &str) -> String {
        let (status, output) = self.run(command);
        assert_eq!(status, 0, "{command}: {output}");
        output
    }

    /// Whether a shell command succeeds.
    ///
    /// # Panics
    ///
    /// When it cannot be run.
    #[track_caller]
    pub fn succeeds(&mut self, command: &str) -> bool {
        self.run(command).0 == 0
    }

    #[track_caller]
    fn run(&mut self, command: &str) -> (i32, String) {
        assert_eq!(
            self.interface,
            GuestInterface::Shell,
            "cannot run {command}: the guest has no shell"
        );
        let reply = self.console.run(command, Some(PATIENCE));
        let reply = reply.unwrap_or_else(|error| panic!("{command}: {error:#}"));
        let output = String::from_utf8_lossy(&reply.output).trim_end().to_owned();
        (reply.status.expect("a command has a status"), output)
    }

    /// Makes the guest power off.
    ///
    /// # Panics
    ///
    /// When the console cannot be written.
    pub fn power_off(&mut self) {
        self.command(nano::POWER_OFF, "poweroff");
    }

    /// Makes the guest reboot.
    ///
    /// # Panics
    ///
    /// When the console cannot be written.
    pub fn reset(&mut self) {
        self.command(nano::RESET, "reboot");
    }

    /// The bulk output of the guest: many numbered lines. Linux prints a quarter of what the nano guest
    /// prints, because an emulated serial port takes 0.4 ms for each byte.
    pub fn bulk_output(&self) -> Vec<u8> {
        let mut flood = nano::flood();
        if self.interface == GuestInterface::Shell {
            flood.truncate(flood.len() / 4);
        }
        flood
    }

    /// Makes the guest print its [`bulk_output`](Self::bulk_output) and then power off.
    ///
    /// # Panics
    ///
    /// When the console cannot be written.
    pub fn print_bulk_and_power_off(&mut self) {
        match self.interface {
            GuestInterface::Nano => self.console.write(&[nano::FLOOD, nano::POWER_OFF]).unwrap(),
            GuestInterface::Shell => {
                // The terminal converts \n to \r\n, which the nano guest prints itself.
                let flood = String::from_utf8(self.bulk_output()).expect("letters and digits");
                let lines = flood.lines().count();
                let line = flood.lines().next().expect("many lines").replace("0000", "%04x");
                let print =
                    format!("awk 'BEGIN {{ for (; i < {lines}; i++) printf \"{line}\\n\", i }}'");
                // `stty` waits until the terminal's output is sent. The kernel's last messages would not
                // wait for it.
                self.console.write_line(&format!("{print}; stty -echo; poweroff")).unwrap();
            }
        }
    }

    /// Makes Linux ignore the power button. A nano guest must have been built without one.
    ///
    /// # Panics
    ///
    /// When the console cannot be written.
    pub fn ignore_power_button(&mut self) {
        if self.interface == GuestInterface::Shell {
            self.sh("killall acpid");
        }
    }

    fn command(&mut self, byte: u8, command: &str) {
        match self.interface {
            GuestInterface::Nano => self.console.write(&[byte]).unwrap(),
            GuestInterface::Shell => self.console.write_line(command).unwrap(),
        }
    }

    /// Waits for the end of the VM and returns the stop report.
    ///
    /// # Panics
    ///
    /// When that takes too long.
    #[track_caller]
    pub fn wait_for_end(&self) -> StopReport {
        let status = self.handle.wait_timeout(PATIENCE).expect("a wait");
        let status =
            status.unwrap_or_else(|| panic!("the VM does not end: {}", self.handle.status()));
        self.handle.stop_report().unwrap_or_else(|| panic!("{status}, without a stop report"))
    }

    /// The process id of the hypervisor.
    ///
    /// # Panics
    ///
    /// When it is not running.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.handle.hypervisor_pid().unwrap_or_else(|| panic!("the VM is {}", self.handle.status()))
    }
}

impl Drop for TestVm {
    /// When the scenario fails, prints the state of the VM and the last console lines.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let plan = self.handle.launch_plan();
        eprintln!("the VM of {} was {}", plan.run_dir().display(), self.handle.status());
        if let Some(report) = self.handle.stop_report() {
            eprintln!("stop report: {report:?}");
        }
        for note in plan.notes() {
            eprintln!("note: {}", note.text);
        }
        let output = self.handle.console().and_then(|mut console| console.read_available());
        let output = output.unwrap_or_default();
        let lines: Vec<_> = output.lines().collect();
        eprintln!("the console has {} lines; the last ones:", lines.len());
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            eprintln!("  | {}", capsa::console::escape_control_line(line.trim_end()));
        }
    }
}
