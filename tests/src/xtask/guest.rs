//! `cargo xtask guest`: makes the Linux guests that tests boot.

use capsa_test::guest::{self, Variant};

use super::{Outcome, finish};

pub(super) fn run(mut arguments: pico_args::Arguments) -> Outcome {
    let generic = arguments.contains("--generic");
    let debian = arguments.contains("--debian");
    finish(arguments)?;
    let mut paths = Vec::new();
    for variant in [Variant::Cloud].into_iter().chain(generic.then_some(Variant::Generic)) {
        let made = guest::linux(variant)?;
        paths.extend([made.kernel, made.initrd, made.disk_raw, made.disk_qcow2]);
    }
    if debian {
        let made = guest::debian()?;
        paths.extend([made.kernel, made.initrd, made.disk]);
    }
    for path in paths {
        println!("{}", path.display());
    }
    Ok(())
}
