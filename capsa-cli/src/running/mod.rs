//! Running VMs: how `capsa ps`, `stop`, `console` and `gc` find them and control them.
//!
//! Every VM has a run directory, and its owner holds a lock in there as long as it lives. A VM that
//! `capsa run` owns also has a control socket in that directory and may have a name. This module
//! does not run a VM: that is [`crate::session`], which embeds the [`ControlServer`].
//!
//! | module | what it does |
//! | --- | --- |
//! | `protocol` | the types of the control socket's requests and replies, for both ends |
//! | `server` | the control socket of a run: listener, clients, input owner |
//! | `client` | connects to a control socket and sends a request |
//! | `registry` | lists the running VMs, finds one by name, reserves a name |
//! | `attach` | `capsa console` |
//! | `commands` | `capsa ps`, `stop`, `pause`, `resume`, `network` and `gc` |
//!
//! # Files in the run directory
//!
//! | file | content |
//! | --- | --- |
//! | `control` | the control socket, a Unix stream socket |
//! | `run.json` | a [`RunInfo`], replaced by rename, so that a reader never sees half of it |
//!
//! A VM without `run.json` belongs to another program that uses the library. It is listed, and it
//! cannot be controlled from here.
//!
//! # The protocol of the control socket
//!
//! A connection carries one request. Requests and replies are JSON objects, each on one line that
//! ends with `\n`. `>` is the client, `<` the run:
//!
//! ```text
//! > {"do":"stop","grace":30.0}      ask the guest to power off; null or no `grace`: the run's own
//! < {"ok":true,"grace":30.0}       the grace period that counts
//! < {"code":0,"ended_by":"guest-power-off","report":"guest powered off, as asked", …}
//!
//! > {"do":"kill"}                   end the VM at once
//! < {"ok":true}
//! < {"code":137,"ended_by":"owner", …}
//!
//! > {"do":"link","up":false}        take the link of the network down, or up again
//! < {"ok":true}
//!
//! > {"do":"policy","policy":{…}}    replace the policy of the network
//! < {"ok":true}
//!
//! > {"do":"counters"}               what the network counted
//! < {"ok":true,"counters":{"flows":3,…}}
//!
//! > {"do":"pause"}                  pause the guest; or "resume"
//! < {"ok":true}                     when it is paused
//!
//! > {"do":"console","input":true}   attach; `input` asks to become the input owner
//! < {"ok":true,"input":true}        `input`: whether it did
//! < console output, raw bytes       first what the run still has of it
//! > console input, raw bytes        discarded unless `input` is true
//!
//! > {"do":"reboot"}
//! < {"ok":false,"reason":"invalid request: unknown variant `reboot`, …"}
//! ```
//!
//! - **End**: the second line of `stop` and `kill` comes when the VM has ended and has the content
//!   of `capsa run --json`. Then the run closes the connection. A console's output ends where the
//!   connection does. Several stops may be pending: the shortest grace period counts.
//! - **Input owner**: at most one client, and none while the run's own standard input or a command
//!   after `--` uses the console. The first that asks gets it, and keeps it until it disconnects.
//! - **Limits**: 64 clients; more wait in the listener's backlog. A request that has no `\n` within
//!   256 KiB is rejected. Input beyond the VM's input queue of 256 KiB is lost.
//! - **Suspended runs** do not reply: a client gives up 35 seconds after its request, and 30 seconds after
//!   the grace period of a stop.
//! - **Idle clients** stay connected, without a time limit, and count as clients.
//! - **Slow clients**: a console client that has 2 MiB to read is disconnected, so that it never
//!   slows down the guest. The run writes without blocking.
//! - **Disconnecting** by the client, half-closing included, ends its request. A stop that has
//!   begun goes on.
//! - **Permissions**: the run directory has mode 0700. A process that can open the socket may
//!   send all of these requests; there is no further authentication.
//! - **Versions**: there is no version number. A new request is a new value of `do`, which an older
//!   run rejects; it also rejects keys that it does not know. Replies and `run.json` may get new
//!   keys, which older clients ignore.

mod attach;
mod client;
mod commands;
mod protocol;
mod registry;
mod server;

pub(crate) use attach::console;
pub(crate) use commands::{gc, pause, ps, set_link, set_policy, stop};
pub(crate) use registry::reserve_name;
pub(crate) use server::{ClientCommand, ControlServer, ControlSource};
