//! Console output in the reports of failed tests.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Weak};

use super::transcript::{TAIL, last_lines};
use crate::VmHandle;
use crate::driver::Shared;

thread_local! {
    /// The VMs whose console output the current test shows on failure.
    static WATCHED: RefCell<Vec<Weak<Shared>>> = const { RefCell::new(Vec::new()) };
}

/// Shows the last lines of this VM's console if the test fails.
///
/// If the test panics (a failed `assert!`, an `unwrap`), dropping the guard prints the lines to
/// standard error. If the test returns [`TestResult`], the error contains the lines, and the test
/// harness prints it. The guard does not keep the VM alive. It belongs to the thread of the test.
///
/// ```
/// # #[cfg(feature = "blocking")] {
/// use capsa::testing::{self, ScriptedGuest, TestResult};
///
/// fn test() -> TestResult {
///     let vm = testing::vm(ScriptedGuest::new().print("no init found\r\n")).build_blocking()?;
///     let _guard = testing::show_on_failure(&vm);
///     vm.start()?;
///     vm.console()?.wait_for_timeout("init", std::time::Duration::from_secs(5))?;
///     Err("an error of the test")?
/// }
/// let shown = format!("{:?}", test().unwrap_err());
/// let want = "an error of the test\nlast console lines of the simulated VM (running):\n  | no init found";
/// assert_eq!(shown, want);
/// # }
/// ```
pub fn show_on_failure(vm: &impl AsRef<VmHandle>) -> ShowOnFailure {
    let shared = Arc::downgrade(vm.as_ref().shared());
    WATCHED.with_borrow_mut(|watched| watched.push(Weak::clone(&shared)));
    ShowOnFailure { shared }
}

/// Prints the last console lines when it is dropped during a panic; see [`show_on_failure`].
#[derive(Debug)]
#[must_use = "the guard shows the console only while it lives: bind it to a name such as _guard"]
pub struct ShowOnFailure {
    shared: Weak<Shared>,
}

impl Drop for ShowOnFailure {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(shared) = self.shared.upgrade()
        {
            // The test harness captures the output of the macro but not of the stream.
            eprintln!("{}", transcript(&shared));
        }
        // The list is gone if the thread of the test has ended.
        let _ = WATCHED.try_with(|watched| {
            if let Ok(mut watched) = watched.try_borrow_mut() {
                watched.retain(|other| !Weak::ptr_eq(other, &self.shared));
            }
        });
    }
}

/// The return type of a test that uses `?` and shows console output on failure.
pub type TestResult<T = ()> = std::result::Result<T, Failure>;

/// Any error, with the last console lines of the VMs registered by [`show_on_failure`].
///
/// The test harness prints its `Debug` form, which is meant for people.
pub struct Failure {
    error: Box<dyn std::error::Error>,
    transcripts: Vec<String>,
}

impl<E: Into<Box<dyn std::error::Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        let watched = WATCHED.try_with(|watched| {
            let watched = watched.borrow();
            watched.iter().filter_map(Weak::upgrade).collect::<Vec<_>>()
        });
        let transcripts = watched.unwrap_or_default();
        let transcripts = transcripts.iter().map(|shared| transcript(shared)).collect();
        Self { error: error.into(), transcripts }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.error.to_string();
        let mut cause = self.error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Errors of Capsa end with the text of their cause.
            if !shown.ends_with(&text) {
                shown = format!("{shown}: {text}");
            }
            cause = error.source();
        }
        f.write_str(&shown)?;
        self.transcripts.iter().try_for_each(|transcript| write!(f, "\n{transcript}"))
    }
}

fn transcript(shared: &Shared) -> String {
    let state = shared.lock();
    let (backend, status) = (state.vm.launch_plan().backend(), state.vm.status());
    let lines = last_lines(state.vm.scrollback().tail(TAIL));
    drop(state);
    if lines.is_empty() {
        return format!("no console output of the {backend} VM ({status})");
    }
    let lines = lines.join("\n  | ");
    format!("last console lines of the {backend} VM ({status}):\n  | {lines}")
}
