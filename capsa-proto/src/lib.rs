//! The sans-I/O core of Capsa: all decisions, no side effects.
//!
//! This crate opens no file, reads no clock, starts no thread and has no code for a specific operating
//! system. Time is an argument, bytes are slices, and the result is data: a plan, or the next action.
//! The crate `capsa-io` carries the actions out and feeds the results back. So each rule here has a
//! unit test that runs in microseconds, and the state machines are fuzzed without a hypervisor.
//!
//! A VM goes through the modules in this order: a [`spec::VmSpec`] is validated against a backend's
//! [`capabilities`] and the [`host::HostFacts`]; the [`backend`] turns it into a [`plan::LaunchPlan`];
//! [`vm::VmCore`] executes the plan with the [`lifecycle`], the [`console`] and the control protocols of
//! [`codec`].
//!
//! | module | contents |
//! | --- | --- |
//! | [`spec`] | [`spec::VmSpec`]: the description of a VM, not yet validated |
//! | [`host`] | [`host::HostFacts`]: what was found on the host |
//! | [`capabilities`] | what a backend supports, and the validation that returns all violations at once |
//! | [`backend`] | [`backend::HypervisorBackend`]: the interface of a backend |
//! | [`plan`] | [`plan::LaunchPlan`]: the exact programs, arguments and control messages |
//! | [`policy`] | [`policy::NetworkPolicy`]: what a guest may reach, and the verdicts that follow |
//! | [`lifecycle`] | state machine from `Created` to a terminal status |
//! | [`console`] | scrollback, pattern matching, waits, and scripts for login and commands |
//! | [`codec`] | the control protocols HTTP/1.1 and QMP, and the recording format |
//! | [`cmdline`] | the kernel command line: parse, merge, build |
//! | [`helper`] | helper processes: virtiofsd, vhost-device-vsock |
//! | [`qcow2`] | image headers, backing chains, and empty overlays |
//! | [`image_lock`] | how the locks on a disk image tell whether it is in use |
//! | [`sim`] | simulated guests, for tests without a hypervisor |
//! | [`path`], [`time`] | [`path::HostPath`], a validated path; instants, and deadlines with a reason |
//! | [`text`] | escapes for control characters of guests and hypervisors |
//! | [`vm`] | [`vm::VmCore`]: a whole VM as one state machine; control client, events |
//!
//! # Calling conventions
//!
//! The lifecycle and the decoders take input with `handle_*` and return the next output with `poll_*`;
//! other methods are requests. Call `poll_*` until it returns `None`, then wait for the next event or for
//! the deadline of `poll_timeout`. The console works on positions of the scrollback instead: `push`
//! appends output, and each reader or wait polls from its own position. The kernel command line is a
//! plain value.
//!
//! # Panics
//!
//! A panic in this crate is a bug in Capsa. Invalid configuration and hostile bytes are `Err` values.

#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod agent;
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
pub mod policy;
pub mod qcow2;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod sim;
pub mod spec;
pub mod text;
pub mod time;
pub mod vm;
