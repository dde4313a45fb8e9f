//! The program `capsa-agent` in a guest: carries out operations for the host.
//!
//! As process 1 (`rdinit=`) it starts itself as a second process and becomes the guest's own init.
//! `agent serve NONCE` serves the socket that is its standard input, without a guest; tests use that.
//!
//! The program has one thread. It uses no C library and no file of the guest, except what an operation needs.

#![no_std]
#![no_main]

extern crate alloc;

mod agent;
mod child;
mod file_work;
mod guest;
mod init;
mod job;
mod links;
#[allow(dead_code, unused_imports)]
mod protocol;
mod sys;
mod user;

use alloc::vec::Vec;

use agent::Agent;
use guest::BootedGuest;
use links::Links;
use protocol::NONCE_LEN;
use sys::{Errno, Fd, Outcome, Start};

fn main(start: &Start) -> i32 {
    let args: Vec<&[u8]> = start.args().collect();
    let served = match args[..] {
        [_, b"serve", nonce] => serve(nonce),
        _ if sys::process_id() == 1 => init::run(start),
        _ => Err(Errno::EINVAL),
    };
    match served {
        Ok(()) => 0,
        Err(Errno(errno)) => errno,
    }
}

/// Serves the socket that is the standard input until its other end is closed.
fn serve(nonce: &[u8]) -> Outcome<()> {
    let nonce = read_nonce(nonce)?;
    let guest = BootedGuest::none()?;
    let socket = Fd::inherited(0).above_standard()?;
    guest.null().duplicate_to(0)?;
    Agent::new(nonce, guest, Links::one(socket))?.run();
    Ok(())
}

fn read_nonce(path: &[u8]) -> Outcome<[u8; NONCE_LEN]> {
    let nonce = sys::read_file(None, path, NONCE_LEN)?;
    nonce.try_into().map_err(|_| Errno::EINVAL)
}
