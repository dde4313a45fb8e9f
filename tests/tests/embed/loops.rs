//! The event loops of the examples, which the tests run.

// Each example is a program of its own, with the module of the guest and a `main`.
#![allow(clippy::duplicate_mod, dead_code)]

#[path = "../../../capsa/examples/guest/mod.rs"]
pub(crate) mod guest;
#[path = "../../../capsa/examples/loop_calloop.rs"]
pub(crate) mod loop_calloop;
#[path = "../../../capsa/examples/loop_io_uring.rs"]
pub(crate) mod loop_io_uring;
#[path = "../../../capsa/examples/loop_many.rs"]
pub(crate) mod loop_many;
#[path = "../../../capsa/examples/loop_mio.rs"]
pub(crate) mod loop_mio;
#[path = "../../../capsa/examples/loop_poll.rs"]
pub(crate) mod loop_poll;
#[path = "../../../capsa/examples/loop_smol.rs"]
pub(crate) mod loop_smol;
#[path = "../../../capsa/examples/loop_tokio.rs"]
pub(crate) mod loop_tokio;
