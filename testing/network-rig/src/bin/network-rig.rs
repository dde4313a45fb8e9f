//! The processes of the rig. [`capsa_network_rig::main`] lists what it does.

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return capsa_network_rig::main();
    #[cfg(not(target_os = "linux"))]
    {
        eprintln!("network-rig needs the network namespaces of Linux");
        std::process::ExitCode::FAILURE
    }
}
