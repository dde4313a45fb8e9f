//! The command. Everything is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    capsa_cli::main(std::env::args_os().skip(1).collect())
}
