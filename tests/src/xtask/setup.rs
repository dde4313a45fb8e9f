//! `cargo xtask setup`: installs what the tests need, or says how to.

use std::collections::BTreeSet;

use capsa_test::host::{self, Need};

use super::{Outcome, finish};

pub(super) fn run(arguments: pico_args::Arguments) -> Outcome {
    finish(arguments)?;
    host::ensure(&Need::ALL)?;
    let programs: BTreeSet<_> = Need::ALL.iter().flat_map(|need| need.programs()).collect();
    let find = |program: &&str| match *program {
        "passt" => host::passt::find(),
        program => host::find_program(program),
    };
    for path in programs.into_iter().filter_map(find) {
        println!("{}", path.display());
    }
    Ok(())
}
