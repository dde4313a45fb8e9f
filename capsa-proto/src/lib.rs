//! The pure core of Capsa: every decision, no effect.
//!
//! Nothing in this crate opens a file, reads a clock, starts a thread or knows an operating system.
//! Time comes in as an argument, bytes come in as slices, and what should happen comes out as data
//! for a driver (`capsa-io`) to carry out. So every rule here has a test that runs in microseconds.
//!
//! What is here, from the words a VM is described with to the machines that run it:
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`time`] | instants and deadlines that say why they are there |
//! | [`path`] | [`path::HostPath`], a path checked once |
//! | [`cmdline`] | machine 1: the kernel command line, parse, merge, build |
//! | [`spec`] | [`spec::VmSpec`], what a user asked for |
//! | [`qcow2`] | what an image's header says, and an empty overlay |
//! | [`host`] | [`host::HostFacts`], what the host was found to have |
//! | [`image_lock`] | what the locks on an image say of who has it |
//! | [`capabilities`] | what a backend can do, and the check that refuses the rest, all at once |
//! | [`console`] | machine 2: scrollback, matching, waits, login and command scripts |
//! | [`lifecycle`] | machine 3: from `Created` to a terminal status, as two tables |
//! | [`codec`] | machine 4: the control protocols, HTTP/1.1 and QMP |
//! | [`plan`] | [`plan::LaunchPlan`], the exact programs, arguments and messages |
//! | [`backend`] | [`backend::HypervisorBackend`], what a hypervisor has to answer |
//! | [`sim`] | simulated guests, for tests without a hypervisor |
//! | [`text`] | escapes for control characters of guests and hypervisors |
//! | [`helper`] | the programs beside a hypervisor: virtiofsd, passt, vhost-device-vsock |
//!
//! # Driving a machine
//!
//! All machines follow one rule: `handle_*` takes what happened, `poll_*` gives what to do next, and
//! plain verbs are wishes. Poll until `None`, then wait for the world or for the deadline.
//!
//! # Panics
//!
//! A panic in this crate is a bug of ours. User mistakes and hostile bytes are `Err` values.

#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod backend;
pub mod capabilities;
pub mod cmdline;
pub mod codec;
pub mod console;
pub mod helper;
pub mod host;
pub mod image_lock;
pub mod lifecycle;
pub mod path;
pub mod plan;
pub mod qcow2;
pub mod sim;
pub mod spec;
pub mod text;
pub mod time;
