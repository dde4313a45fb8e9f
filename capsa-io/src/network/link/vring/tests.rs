//! A hypervisor and a guest, played by the test, against a whole network.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use capsa_net::vhost::model::{self, ModelRing, RING_SIZE, message};
use capsa_net::vhost::{FeatureBits, MemoryFiles};
use capsa_proto::path::HostPath;
use capsa_proto::plan::{MacAddress, NetworkLink, NetworkPlan};
use capsa_proto::spec::NetworkOptions;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};

use crate::sys;

use super::{GuestFiles, REST};
use crate::clock::MonotonicClock;
use crate::network::Network;
use crate::network::tests::is_alone;

const MEMORY: u64 = 4 << 20;
const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

struct TestNetwork {
    network: Network,
    clock: MonotonicClock,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl TestNetwork {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.sock");
        let run_dir = HostPath::new(dir.path().to_str().unwrap()).unwrap();
        let plan = NetworkPlan {
            mac: MAC,
            mtu: 1500,
            link: NetworkLink::VhostUser { socket: HostPath::new(path.to_str().unwrap()).unwrap() },
            policy: None,
            options: NetworkOptions::default(),
            carrier: None,
        };
        let mut network = Network::new(&plan, &run_dir).unwrap();
        network.listen(&path).unwrap();
        Self { network, clock: MonotonicClock::new(), path, _dir: dir }
    }

    /// Lets the network do its work. Returns the number of calls.
    fn run(&mut self) -> usize {
        for calls in 1..10_000 {
            self.network.on_ready(self.clock.now()).unwrap();
            let is_ready = rustix::event::poll(
                &mut [rustix::event::PollFd::new(&self.network, rustix::event::PollFlags::IN)],
                Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }),
            );
            if !self.network.has_work() && is_ready.unwrap() == 0 {
                return calls;
            }
        }
        panic!("the network does not come to rest");
    }
}

/// A hypervisor with a guest.
struct TestFrontEnd {
    socket: UnixStream,
    memory: GuestFiles,
    rings: [ModelRing; 2],
    kicks: [OwnedFd; 2],
    calls: [File; 2],
}

impl TestFrontEnd {
    fn connect(path: &Path) -> Self {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY).unwrap();
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        Self {
            socket,
            memory: GuestFiles(vec![memory]),
            rings: [0, 1].map(|ring| ModelRing::new(ring, FeatureBits::OFFERED)),
            kicks: [event(), event()],
            calls: [event().into(), event().into()],
        }
    }

    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let sent = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, sys::NO_SIGPIPE);
        sent == Ok(bytes.len())
    }

    fn set_up(&self, network: &mut TestNetwork) {
        for (bytes, descriptors) in model::set_up(MEMORY, FeatureBits::OFFERED, [0, 0]) {
            assert!(self.send(&bytes, &vec![self.memory.0[0].as_fd(); descriptors]));
            network.run();
        }
        for ring in 0..2 {
            let number = (ring as u64).to_le_bytes();
            assert!(self.send(&message(13, &number), &[self.calls[ring].as_fd()]));
            assert!(self.send(&message(12, &number), &[self.kicks[ring].as_fd()]));
        }
        network.run();
    }

    fn kick(&self, ring: usize) {
        rustix::io::write(&self.kicks[ring], &1u64.to_ne_bytes()).unwrap();
    }

    /// Whether the guest was interrupted.
    fn takes_interrupt(&mut self, ring: usize) -> bool {
        self.calls[ring].read(&mut [0; 8]).is_ok()
    }

    fn post_buffers(&mut self, count: usize) {
        let mut kicks = false;
        for n in 0..count {
            let at = model::BUFFERS + 0x1_0000 + 2048 * (n as u64 % 512);
            let (_, kick) = self.rings[0].add(&self.memory, &[(at, 2048)], true, false).unwrap();
            kicks |= kick;
        }
        if kicks {
            self.kick(0);
        }
    }

    /// Sends an ARP request for the gateway, to which the network replies. Returns whether there was room.
    fn request(&mut self) -> bool {
        let mut bytes = vec![0; 12];
        bytes.extend([0xff; 6]);
        bytes.extend(MAC.0);
        bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        bytes.extend(MAC.0);
        bytes.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
        let at = model::BUFFERS;
        if self.memory.write(0, at, &[&bytes]).is_err() {
            return false;
        }
        match self.rings[1].add(&self.memory, &[(at, bytes.len() as u32)], false, true) {
            Some((_, kicks)) => {
                if kicks {
                    self.kick(1);
                }
                true
            }
            None => false,
        }
    }

    /// The number of replies that have arrived.
    fn replies(&mut self) -> usize {
        while self.rings[1].take_used(&self.memory).is_some() {}
        let mut count = 0;
        while let Some((_, len)) = self.rings[0].take_used(&self.memory) {
            assert_eq!(len, 12 + 42);
            count += 1;
        }
        count
    }
}

#[test]
fn vring_guest_gets_replies_and_interrupts() {
    let mut network = TestNetwork::new();
    let mut guest = TestFrontEnd::connect(&network.path);
    guest.set_up(&mut network);
    assert_eq!(guest.replies(), 0);
    for _ in 0..5 {
        for _ in 0..60 {
            assert!(guest.request());
        }
        network.run();
        // No buffers: the replies wait.
        assert_eq!(guest.replies(), 0);
        guest.post_buffers(60);
        network.run();
        assert!(guest.takes_interrupt(0));
        assert_eq!(guest.replies(), 60);
        assert!(!guest.takes_interrupt(0));
    }
    // Kicks without frames, as fast as possible: a call for each is the most.
    for _ in 0..1000 {
        guest.kick(1);
        guest.kick(0);
    }
    assert!(network.run() <= 3);
}

#[test]
fn vring_reset_guest_connects_again() {
    let mut network = TestNetwork::new();
    for n in 0..200 {
        let mut guest = TestFrontEnd::connect(&network.path);
        guest.set_up(&mut network);
        guest.post_buffers(10);
        assert!(guest.request());
        network.run();
        assert_eq!(guest.replies(), 1);
        if n % 2 == 0 {
            // Also while the old connection is there: the new one replaces it.
            drop(guest);
        } else {
            std::mem::forget(guest.socket.try_clone().unwrap());
        }
    }
}

#[test]
fn vring_memory_shrinks_under_traffic_is_survived() {
    let mut network = TestNetwork::new();
    for size in [0, model::BUFFERS, model::BUFFERS + 0x1_0100] {
        let mut guest = TestFrontEnd::connect(&network.path);
        guest.set_up(&mut network);
        guest.post_buffers(usize::from(RING_SIZE));
        let file = guest.memory.0[0].try_clone().unwrap();
        // Only the device works while the memory shrinks: the guest's driver would read zeros.
        let is_shrunk = std::sync::Arc::new(std::sync::Mutex::new(false));
        let shrinks = std::sync::Arc::clone(&is_shrunk);
        let shrink = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut is_shrunk = shrinks.lock().unwrap();
            file.set_len(size).unwrap();
            *is_shrunk = true;
        });
        let end = std::time::Instant::now() + std::time::Duration::from_millis(60);
        let mut replies = 0;
        while std::time::Instant::now() < end {
            guest.request();
            network.run();
            let is_shrunk = is_shrunk.lock().unwrap();
            if !*is_shrunk {
                replies += guest.replies();
                let room = guest.rings[0].room();
                guest.post_buffers(room.min(1));
            }
        }
        shrink.join().unwrap();
        assert!(replies > 10, "{replies}");
        assert!(guest.memory.0[0].metadata().unwrap().len() < MEMORY);
    }
    // The network serves the next connection.
    let mut guest = TestFrontEnd::connect(&network.path);
    guest.set_up(&mut network);
    guest.post_buffers(10);
    assert!(guest.request());
    network.run();
    assert_eq!(guest.replies(), 1);
}

#[test]
fn vring_hostile_messages_end_connection() {
    let mut network = TestNetwork::new();
    let file = tempfile::tempfile_in("/").or_else(|_| tempfile::tempfile()).unwrap();
    let (pipe, _other) = std::io::pipe().unwrap();
    let region: Vec<u8> = [1, 0, 4096, 0, 0].iter().flat_map(|w: &u64| w.to_le_bytes()).collect();
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let kick = message(12, &0u64.to_le_bytes());
    let many = vec![event.as_fd(); 20];
    let mut cases: Vec<(&str, Vec<u8>, &[BorrowedFd<'_>])> = vec![
        ("unknown", message(99, &[]), &[]),
        ("too long", [&[1, 0, 0, 0, 1, 0, 0, 0][..], &[255; 4]].concat(), &[]),
        ("wrong version", [0; 12].to_vec(), &[]),
        ("no descriptor", kick.clone(), &[]),
        ("two descriptors", kick.clone(), &many[..2]),
        ("too many descriptors", kick.clone(), &many),
        ("unexpected descriptor", message(3, &[]), &many[..1]),
    ];
    let pipe_of_memory = [pipe.as_fd()];
    cases.push(("memory is a pipe", message(5, &region), &pipe_of_memory));
    let file_of_memory = [file.as_fd()];
    cases.push(("memory is on a disk", message(5, &region), &file_of_memory));
    let file_of_kick = [file.as_fd()];
    cases.push(("kick is a file", kick, &file_of_kick));
    // A write to it would raise SIGPIPE.
    let pipe_of_call = [pipe.as_fd()];
    cases.push(("call is a pipe", message(13, &0u64.to_le_bytes()), &pipe_of_call));
    for (what, bytes, descriptors) in cases {
        let guest = TestFrontEnd::connect(&network.path);
        network.run();
        assert!(guest.send(&bytes, descriptors), "{what}");
        network.run();
        let ended = (&guest.socket).read(&mut [0; 20]);
        assert!(
            matches!(ended, Ok(0))
                || ended.is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock),
            "{what}"
        );
    }
    // Each byte of a message alone, and a connection that says nothing.
    let guest = TestFrontEnd::connect(&network.path);
    for byte in message(1, &[]) {
        assert!(guest.send(&[byte], &[]));
        network.run();
    }
    let mut reply = [0; 20];
    (&guest.socket).read_exact(&mut reply).unwrap();
    assert_eq!(reply[12..], FeatureBits::OFFERED.to_le_bytes());
    assert!(network.run() < 3);
}

#[test]
fn exhausted_descriptors_delay_the_connection() {
    let name = "network::link::vring::tests::exhausted_descriptors_delay_the_connection";
    if !is_alone(name, &[]) {
        return;
    }
    let mut network = TestNetwork::new();
    network.run();
    let mut front_end = TestFrontEnd::connect(&network.path);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 100, hard).unwrap();
    let mut fill = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        fill.push(file);
    }
    network.run();
    let deadline = network.network.poll_timeout().expect("a time to try again");
    assert!(deadline.at <= network.clock.now() + REST);
    std::thread::sleep(REST);
    // The second attempt fails too, and the third is as soon after it.
    network.run();
    fill.clear();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    std::thread::sleep(REST);
    network.run();
    front_end.set_up(&mut network);
    front_end.post_buffers(4);
    assert!(front_end.request());
    network.run();
    assert_eq!(front_end.replies(), 1);
}
