//! A machine of a scenario: boots, speaks with its guest, and says what that said last when the
//! scenario fails.

use std::time::Duration;

use capsa::StopReport;
use capsa::blocking::{VmConsole, VmHandle};

use capsa_fixtures::nano;

/// How long anything may take that takes seconds: emulated, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How many lines of the console a failure shows.
const TAIL: usize = 25;

/// How one speaks with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// The nano guest: bytes are echoed, some are orders.
    Nano,
    /// Linux: a shell, after a login.
    Shell,
}

/// A machine, its console and how to speak with it.
#[derive(Debug)]
pub struct Machine {
    /// Its handle.
    pub vm: VmHandle,
    /// A console, from the first byte on.
    pub console: VmConsole,
    speech: Speech,
}

impl Machine {
    pub(super) fn new(vm: VmHandle, speech: Speech) -> Self {
        let console = vm.console().expect("every machine of the suite has a console");
        Self { vm, console, speech }
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// When that fails.
    #[track_caller]
    pub fn start(&self) {
        self.vm.start().unwrap_or_else(|error| panic!("it does not start: {error}"));
    }

    /// Waits until the guest listens, from its boot on.
    ///
    /// # Panics
    ///
    /// When it does not come to that.
    #[track_caller]
    pub fn listens(&mut self) {
        let listens = match self.speech {
            Speech::Nano => self.console.wait_for_timeout("NANO READY\r\n", PATIENCE).map(drop),
            Speech::Shell => self.console.login_timeout("root", None, PATIENCE),
        };
        listens.unwrap_or_else(|error| panic!("the guest does not listen: {error}"));
    }

    /// Waits until the guest listens again after a reboot.
    ///
    /// # Panics
    ///
    /// When it does not come to that.
    #[track_caller]
    pub fn listens_again(&mut self) {
        if self.speech == Speech::Shell {
            // The old shell's prompt may still be unread: only a login prompt is the new guest's.
            self.expect("capsa login: ");
            self.console.write_line("root").unwrap();
            self.expect("# ");
        } else {
            self.listens();
        }
    }

    /// Reads until `text`, and gives everything up to and with it.
    ///
    /// # Panics
    ///
    /// When it does not come.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let seen = self.console.wait_for_timeout(text, PATIENCE);
        seen.unwrap_or_else(|error| panic!("{text:?} does not come: {error}"))
    }

    /// Says a line, which the guest says back.
    ///
    /// # Panics
    ///
    /// When it does not come back, or not as it was.
    #[track_caller]
    pub fn echoes(&mut self, line: &str) {
        match self.speech {
            Speech::Nano => {
                self.console.write_line(line).unwrap();
                assert_eq!(self.expect("\n"), format!("{line}\n"));
            }
            Speech::Shell => assert_eq!(self.sh(&format!("echo '{line}'")), line),
        }
    }

    /// What a shell command that must succeed prints, without blanks at its end.
    ///
    /// # Panics
    ///
    /// When it fails, or there is no shell.
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
        assert_eq!(self.speech, Speech::Shell, "there is no shell to run {command}");
        let reply = self.console.run(command, Some(PATIENCE));
        let reply = reply.unwrap_or_else(|error| panic!("{command}: {error}"));
        let output = String::from_utf8_lossy(&reply.output).trim_end().to_owned();
        (reply.status.expect("a command has a status"), output)
    }

    /// Has the guest power off.
    ///
    /// # Panics
    ///
    /// When it cannot be told.
    pub fn power_off(&mut self) {
        self.order(nano::POWER_OFF, "poweroff");
    }

    /// Has the guest reset its machine.
    ///
    /// # Panics
    ///
    /// When it cannot be told.
    pub fn reset(&mut self) {
        self.order(nano::RESET, "reboot");
    }

    /// What the guest is to print at once: many lines, each with its number. Linux prints a quarter of
    /// the nano guest's, since a serial port in an emulated machine takes 0.4 ms a byte.
    pub fn flood(&self) -> Vec<u8> {
        let mut flood = nano::flood();
        if self.speech == Speech::Shell {
            flood.truncate(flood.len() / 4);
        }
        flood
    }

    /// Has the guest print its [`flood`](Self::flood) and then power off.
    ///
    /// # Panics
    ///
    /// When it cannot be told.
    pub fn flood_and_power_off(&mut self) {
        match self.speech {
            Speech::Nano => self.console.write(&[nano::FLOOD, nano::POWER_OFF]).unwrap(),
            Speech::Shell => {
                // The terminal makes each \n a \r\n, as the nano guest has it.
                let flood = String::from_utf8(self.flood()).expect("letters and digits");
                let lines = flood.lines().count();
                let line = flood.lines().next().expect("many lines").replace("0000", "%04x");
                let print =
                    format!("awk 'BEGIN {{ for (; i < {lines}; i++) printf \"{line}\\n\", i }}'");
                // What changes a terminal waits until its output has left: the kernel's own words at
                // the end do not wait for it.
                self.console.write_line(&format!("{print}; stty -echo; poweroff")).unwrap();
            }
        }
    }

    /// Has the guest ignore its power button from now on. A nano guest must have been built deaf.
    ///
    /// # Panics
    ///
    /// When it cannot be told.
    pub fn deafen(&mut self) {
        if self.speech == Speech::Shell {
            self.sh("killall acpid");
        }
    }

    fn order(&mut self, byte: u8, command: &str) {
        match self.speech {
            Speech::Nano => self.console.write(&[byte]).unwrap(),
            Speech::Shell => self.console.write_line(command).unwrap(),
        }
    }

    /// Waits for its end and gives the report of it.
    ///
    /// # Panics
    ///
    /// When it does not end.
    #[track_caller]
    pub fn ended(&self) -> StopReport {
        let status = self.vm.wait_timeout(PATIENCE).expect("a wait");
        let status = status.unwrap_or_else(|| panic!("it does not end: {}", self.vm.status()));
        self.vm.stop_report().unwrap_or_else(|| panic!("{status}, and no report"))
    }

    /// Its hypervisor's process.
    ///
    /// # Panics
    ///
    /// When it does not run.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.vm.hypervisor_pid().unwrap_or_else(|| panic!("it is {}", self.vm.status()))
    }
}

impl Drop for Machine {
    /// A scenario that fails has the machine tell what it knows: the guest's last words say more
    /// than that something did not come.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let plan = self.vm.launch_plan();
        eprintln!("the machine of {} was {}", plan.run_dir, self.vm.status());
        if let Some(report) = self.vm.stop_report() {
            eprintln!("its end: {report:?}");
        }
        for note in &plan.notes {
            eprintln!("note: {}", note.text);
        }
        let said = self.vm.console().and_then(|mut console| console.read_available());
        let said = said.unwrap_or_default();
        let lines: Vec<_> = said.lines().collect();
        eprintln!("its guest said {} lines, these last:", lines.len());
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            eprintln!("  | {}", capsa::escape_control_line(line.trim_end()));
        }
    }
}
