//! A run directory too long for a socket. In a program of its own, because a variable says where it
//! is.

use std::process::Command;

use capsa_test::vm::NanoGuest;

#[test]
fn a_run_directory_too_long_for_a_socket_is_refused() {
    let Some(guest) = NanoGuest::new("long run directory") else { return };
    let long = guest.dir().join("r".repeat(100));
    let owner = Command::new(env!("CARGO_BIN_EXE_owner"))
        .args([guest.kernel(), guest.dir()])
        .env("CAPSA_RUN_DIR", &long)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&owner.stderr);
    assert!(!owner.status.success());
    for part in ["InvalidConfig", "run_dir", "TooLong", "CAPSA_RUN_DIR"] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    assert!(!long.exists(), "nothing was made");
}
