//! `cargo xtask setup`: installs what the tests need, or says how to.

use capsa_test::host::{self, Need};

use super::{Outcome, finish};

pub(super) fn run(arguments: pico_args::Arguments) -> Outcome {
    finish(arguments)?;
    host::ensure(&Need::ALL)?;
    for program in Need::ALL.iter().flat_map(|need| need.programs()) {
        if let Some(path) = host::find_program(program) {
            println!("{}", path.display());
        }
    }
    Ok(())
}
