//! A `vfkit` for tests: see `capsa_stand_ins::vfkit`.

fn main() -> std::process::ExitCode {
    capsa_stand_ins::vfkit::main()
}
