//! A program that holds the lock of a file, for tests of programs that need the lock.
//!
//! `lock-holder FILE`: takes the lock, prints `locked`, and exits when its standard input closes.

use std::fs::OpenOptions;
use std::io::{self, Read};

fn main() -> io::Result<()> {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: lock-holder FILE");
        std::process::exit(2);
    };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.lock()?;
    println!("locked");
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
