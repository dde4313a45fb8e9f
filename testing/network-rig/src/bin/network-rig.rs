//! The processes of the rig. [`capsa_network_rig::main`] lists what it does.

fn main() -> std::process::ExitCode {
    capsa_network_rig::main()
}
