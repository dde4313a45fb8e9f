//! `cargo xtask setup`: installs what the tests need, or says how to.

use std::collections::BTreeSet;

use capsa_test::host::{self, Need};

use super::{Outcome, finish};

pub(super) fn run(arguments: pico_args::Arguments) -> Outcome {
    finish(arguments)?;
    host::ensure(&Need::ALL)?;
    let programs: BTreeSet<_> = Need::ALL.iter().flat_map(|need| need.programs()).collect();
    for path in programs.into_iter().filter_map(|program| host::find_program(program)) {
        println!("{}", path.display());
    }
    Ok(())
}
