//! A `cloud-hypervisor` for tests: see `capsa_test::stand_in`.

fn main() -> std::process::ExitCode {
    capsa_test::stand_in::main()
}
