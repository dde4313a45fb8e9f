//! Starts that fail, each with another cause.

use capsa::Error;
use capsa_testkit::fake;
use capsa_testkit::run_isolated;

/// The error text of a start that fails.
fn why_not(orders: &str) -> String {
    let vm = fake::vm(orders).build_blocking().unwrap();
    let Error::StartFailed(why) = vm.start().unwrap_err() else { panic!("another error") };
    assert!(vm.status().is_terminal());
    why.to_string()
}

#[test]
fn start_failing_names_cause() {
    run_isolated!();
    for (orders, expected) in [
        ("greet reply reject hang", "failed to start the guest: injected fault"),
        ("greet reject hang", "failed to negotiate capabilities"),
        ("greet exit=0", "exited with status 0"),
        ("exit=3", "exited with status 3"),
        // A command that is sent after the loss gets the same error.
        ("greet control*100000000 hang", "control channel"),
        ("greet control={]garbage hang", "control channel"),
        ("control=hello hang", "closed its control channel"),
        ("close-control hang", "closed its control channel"),
        ("greet reply close-control hang", "closed its control channel"),
    ] {
        let why = why_not(orders);
        assert!(why.contains(expected), "{orders}: {why}");
    }
}
