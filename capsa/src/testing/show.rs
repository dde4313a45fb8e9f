//! What the consoles said, for those tests that fail and for no others.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Weak};

use super::transcript::{TAIL, last_lines};
use crate::VmHandle;
use crate::driver::Shared;

thread_local! {
    /// The machines whose console this test wants to see when it fails.
    static WATCHED: RefCell<Vec<Weak<Shared>>> = const { RefCell::new(Vec::new()) };
}

/// Shows the last lines of this machine's console if the test fails, and nothing if it does not.
///
/// A test that panics (a failed `assert!`, an `unwrap`) has them printed to standard error when the
/// guard is dropped. A test that returns [`TestResult`] has them in the error, which the test
/// harness prints. The guard does not keep the machine alive. It belongs to the thread of the test.
///
/// ```
/// # #[cfg(feature = "blocking")] {
/// use capsa::testing::{self, ScriptedGuest, TestResult};
///
/// fn test() -> TestResult {
///     let vm = testing::vm(ScriptedGuest::new().print("no init found\r\n")).build_blocking()?;
///     let _shown = testing::show_on_failure(&vm);
///     vm.start()?;
///     vm.console()?.wait_for_timeout("init", std::time::Duration::from_secs(5))?;
///     Err("and now?")?
/// }
/// let shown = format!("{:?}", test().unwrap_err());
/// assert_eq!(shown, "and now?\nconsole of the simulated VM, which is running, at its end:\n  | no init found");
/// # }
/// ```
pub fn show_on_failure(vm: &impl AsRef<VmHandle>) -> ShowOnFailure {
    let shared = Arc::downgrade(vm.as_ref().shared());
    WATCHED.with_borrow_mut(|watched| watched.push(Weak::clone(&shared)));
    ShowOnFailure { shared }
}

/// Shows a console when it is dropped by a panic. Made by [`show_on_failure`].
#[derive(Debug)]
#[must_use = "it shows something only as long as it lives: bind it to a name such as _shown"]
pub struct ShowOnFailure {
    shared: Weak<Shared>,
}

impl Drop for ShowOnFailure {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(shared) = self.shared.upgrade()
        {
            // The macro, unlike the stream, is captured by the harness, which shows it with the test.
            eprintln!("{}", transcript(&shared));
        }
        // A test that ends its thread has taken the list along.
        let _ = WATCHED.try_with(|watched| {
            if let Ok(mut watched) = watched.try_borrow_mut() {
                watched.retain(|other| !Weak::ptr_eq(other, &self.shared));
            }
        });
    }
}

/// What a test returns that uses `?` and shows its consoles when it fails.
pub type TestResult<T = ()> = std::result::Result<T, Failure>;

/// Any error, with what the consoles of the test had said by then: those that
/// [`show_on_failure`] was told of.
///
/// Its `Debug` form is what the test harness prints, so it is made to be read.
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
        write!(f, "{}", self.error)?;
        let mut cause = self.error.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        self.transcripts.iter().try_for_each(|transcript| write!(f, "\n{transcript}"))
    }
}

fn transcript(shared: &Shared) -> String {
    let state = shared.lock();
    let (backend, status) = (state.vm.launch_plan().backend, state.vm.status());
    let lines = last_lines(state.vm.scrollback().tail(TAIL));
    drop(state);
    if lines.is_empty() {
        return format!("the console of the {backend} VM, which is {status}, said nothing");
    }
    let lines = lines.join("\n  | ");
    format!("console of the {backend} VM, which is {status}, at its end:\n  | {lines}")
}
