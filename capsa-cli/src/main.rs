//! The program `capsa`; its code is in the library `capsa_cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    capsa_cli::main(std::env::args_os().skip(1).collect())
}
