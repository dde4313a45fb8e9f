//! The example service for development VMs, as a program: `capsa/examples/devvm.rs`.

mod misuse;
mod service;
mod session;
