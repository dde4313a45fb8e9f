//! A `cloud-hypervisor` for tests: see `capsa_stand_ins::cloud_hypervisor`.

fn main() -> std::process::ExitCode {
    capsa_stand_ins::cloud_hypervisor::main()
}
