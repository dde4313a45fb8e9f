//! A `cloud-hypervisor` for tests: see `capsa_test::stand_in::cloud_hypervisor`.

fn main() -> std::process::ExitCode {
    capsa_test::stand_in::cloud_hypervisor::main()
}
