//! A `vfkit` for tests: see `capsa_test::stand_in::vfkit`.

fn main() -> std::process::ExitCode {
    capsa_test::stand_in::vfkit::main()
}
