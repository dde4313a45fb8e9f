//! [`SmoltcpGuest`]: a guest with another TCP, that of smoltcp, and the same programs.
//!
//! Its connections have ports of their own, and it has no datagrams. It does not end a connection for an
//! ICMP error, as the model guest does: it sends its SYN again until it gives up.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use alloc::{fmt, vec};
use core::time::Duration;

use capsa_proto::time::Instant;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::guest::{GATEWAY, GUEST, GUEST_MAC, GuestKernel, GuestView, TCP_PORT, remote_of};
use super::guest_tcp::{BrokenLaw, GuestTcpEnd, byte_at, download_of, upload_of};
use super::plan::{ConnectionPlan, NetPlan, Pace, SideEnd};
use super::random::ScheduleRandom;
use crate::wire::ethernet;
use crate::wire::ip::{self, IpPacket};
use crate::wire::tcp::TcpHeader;

/// Without an answer for this long, a connection ends.
const GIVES_UP: u64 = 100;
/// Longer than any timer of a TCP.
const SILENT: Duration = Duration::from_secs(90);

/// Frames of the guest that its card holds, at most.
const QUEUED: usize = 64;

/// Frames on their way between smoltcp and the link.
#[derive(Debug, Default)]
struct FrameQueues {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct ArrivedFrame(Vec<u8>);
struct NewFrame<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for ArrivedFrame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for NewFrame<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for FrameQueues {
    type RxToken<'a> = ArrivedFrame;
    type TxToken<'a> = NewFrame<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(ArrivedFrame, NewFrame<'_>)> {
        let is_full = self.from_guest.len() >= QUEUED;
        let frame = self.to_guest.pop_front_if(|_| !is_full)?;
        Some((ArrivedFrame(frame), NewFrame(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<NewFrame<'_>> {
        let is_full = self.from_guest.len() >= QUEUED;
        (!is_full).then_some(NewFrame(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ethernet::HEADER_LEN;
        capabilities
    }
}

/// The program of a connection.
#[derive(Debug)]
struct SmoltcpProgram {
    plan: ConnectionPlan,
    handle: Option<SocketHandle>,
    /// The guest has begun to connect, or a forward has been accepted.
    has_begun: bool,
    written: u64,
    received: u64,
    is_closed: bool,
    has_seen_end: bool,
    end: Option<GuestTcpEnd>,
    was_reset: bool,
    /// What the network has acknowledged.
    acknowledged: u32,
    /// When it last sent what the network waits for.
    sent_at: Instant,
    /// A defect of smoltcp ended it: see `note_ends` and `drop_endless`.
    is_lost: bool,
    acts_at: Instant,
}

/// The guest.
pub(super) struct SmoltcpGuest {
    programs: Vec<SmoltcpProgram>,
    queues: FrameQueues,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl fmt::Debug for SmoltcpGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmoltcpGuest").field("programs", &self.programs).finish_non_exhaustive()
    }
}

fn time(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(now.as_micros() as i64)
}

impl SmoltcpGuest {
    pub(super) fn new(plan: &NetPlan, random: &mut ScheduleRandom) -> Self {
        let mut queues = FrameQueues { mtu: usize::from(plan.mtu), ..FrameQueues::default() };
        let address = HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC.0));
        let mut config = Config::new(address);
        config.random_seed = random.next();
        let mut interface = Interface::new(config, &mut queues, time(Instant::ZERO));
        interface.update_ip_addrs(|all| {
            all.push(IpCidr::new(GUEST.into(), 24)).expect("there is room for one address");
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("there is room for a route");
        let mut guest =
            Self { programs: Vec::new(), queues, interface, sockets: SocketSet::new(vec![]) };
        for plan in &plan.connections {
            let handle = (!plan.is_from_guest).then(|| {
                let mut socket = socket(plan, random);
                socket.listen(TCP_PORT + plan.slot as u16).expect("the socket is new");
                guest.sockets.add(socket)
            });
            guest.programs.push(SmoltcpProgram {
                plan: plan.clone(),
                handle,
                has_begun: false,
                written: 0,
                received: 0,
                is_closed: false,
                has_seen_end: false,
                end: None,
                was_reset: false,
                acknowledged: 0,
                sent_at: Instant::ZERO,
                is_lost: false,
                acts_at: plan.begins,
            });
        }
        guest
    }
}

fn socket(plan: &ConnectionPlan, random: &mut ScheduleRandom) -> Socket<'static> {
    let mut buffer = |least: u64| {
        let len = random.skewed(120_000).max(2000).max(least / 300);
        SocketBuffer::new(vec![0; len as usize])
    };
    let mut socket = Socket::new(buffer(plan.download), buffer(plan.upload));
    socket.set_timeout(Some(smoltcp::time::Duration::from_secs(GIVES_UP)));
    socket.set_nagle_enabled(random.chance(50));
    if random.chance(50) {
        socket.set_ack_delay(None);
    }
    socket
}

impl SmoltcpProgram {
    fn has_vanished(&self, now: Instant) -> bool {
        matches!(self.plan.guest_end, SideEnd::Vanishes(at) if at <= now)
    }

    fn can_read(&self, socket: &Socket<'_>) -> bool {
        let has_stopped = matches!(self.plan.guest_pace, Pace::Stops(at) if self.received >= at);
        !self.has_seen_end && !has_stopped && (socket.can_recv() || !socket.may_recv())
    }

    fn can_write(&self, socket: &Socket<'_>) -> bool {
        !self.is_closed && (self.written == self.plan.upload || socket.can_send())
    }

    /// What the program does with an open connection.
    fn act(
        &mut self,
        index: usize,
        socket: &mut Socket<'_>,
        random: &mut ScheduleRandom,
    ) -> Result<(), BrokenLaw> {
        if self.written < self.plan.upload {
            let count = random.skewed(40_000).max(1).min(self.plan.upload - self.written);
            let stream = upload_of(index);
            let data: Vec<u8> =
                (self.written..self.written + count).map(|at| byte_at(stream, at)).collect();
            self.written += socket.send_slice(&data).unwrap_or(0) as u64;
        } else if !self.is_closed {
            self.is_closed = true;
            socket.close();
        }
        if !self.can_read(socket) {
            return Ok(());
        }
        let (most, from) = (random.skewed(40_000).max(1) as usize, self.received);
        let stream = download_of(index);
        let read = socket.recv(|data| {
            let count = data.len().min(most);
            let is_right =
                data[..count].iter().zip(from..).all(|(byte, at)| *byte == byte_at(stream, at));
            (count, is_right.then_some(count as u64))
        });
        match read {
            Ok(None) => return Err("a byte for the guest is wrong"),
            Ok(Some(count)) => self.received += count,
            Err(RecvError::Finished) if self.received != self.plan.download => {
                return Err("the stream to the guest ends early");
            }
            Err(RecvError::Finished) => self.has_seen_end = true,
            Err(RecvError::InvalidState) => {}
        }
        Ok(())
    }
}

impl GuestKernel for SmoltcpGuest {
    fn owner_of(&self, slot: usize) -> Option<usize> {
        let is_owner =
            |p: &SmoltcpProgram| p.has_begun && p.plan.is_from_guest && p.plan.slot == slot;
        self.programs.iter().position(is_owner)
    }

    fn free_at(&self, index: usize) -> Option<Instant> {
        Some(self.programs[index].plan.begins)
    }

    fn note_ends(&mut self, now: Instant) {
        for program in self.programs.iter_mut().filter(|program| program.end.is_none()) {
            let Some(handle) = program.handle else { continue };
            let socket = self.sockets.get_mut::<Socket<'_>>(handle);
            let state = socket.state();
            // A socket that listens is closed only after a connection.
            program.has_begun |= !matches!(state, State::Listen | State::SynReceived);
            // The program may still read the end of the stream.
            let has_end = !matches!(socket.recv(|_| (0, ())), Err(RecvError::InvalidState));
            let is_whole = program.is_closed && has_end;
            // smoltcp 0.14 repeats a segment beyond a closed window, stops its timer when one expires while
            // the window is closed, and forgets a FIN. It then sends nothing that the network waits for, and
            // gives up. A TCP that works does not do so for so long.
            let is_silent = now >= program.sent_at + SILENT && !program.was_reset;
            let has_unsent = socket.send_queue() > 0 || (program.is_closed && has_end);
            program.is_lost = state == State::Closed && is_silent && has_unsent;
            let is_over = program.is_lost || (state == State::Closed && !is_whole);
            if program.has_begun && is_over {
                program.end = Some(GuestTcpEnd::Reset);
            }
        }
    }

    fn handle(
        &mut self,
        frame: &[u8],
        now: Instant,
        _: &mut ScheduleRandom,
    ) -> Result<Option<Vec<u8>>, BrokenLaw> {
        if let Some((header, _)) = segment(frame)
            && let Some(program) = slot_at(frame, 36).and_then(|slot| self.programs.get_mut(slot))
        {
            program.was_reset |= header.flags.rst;
            let newer = header.acknowledgement.wrapping_sub(program.acknowledged) as i32 > 0;
            if header.flags.ack && (newer || header.flags.syn) {
                program.acknowledged = header.acknowledgement;
            }
        }
        if !self.is_of_vanished(frame, 36, now) {
            self.queues.to_guest.push_back(frame.to_vec());
        }
        Ok(None)
    }

    fn act(
        &mut self,
        index: usize,
        now: Instant,
        random: &mut ScheduleRandom,
    ) -> Result<Option<Vec<u8>>, BrokenLaw> {
        let program = &mut self.programs[index];
        if program.has_vanished(now) || program.acts_at > now || program.is_lost {
            return Ok(None);
        }
        let Some(handle) = program.handle else {
            let mut socket = socket(&program.plan, random);
            let port = TCP_PORT + program.plan.slot as u16;
            let remote = remote_of(&program.plan);
            let is_connecting = socket.connect(self.interface.context(), remote, port).is_ok();
            assert!(is_connecting, "smoltcp cannot connect");
            (program.handle, program.has_begun) = (Some(self.sockets.add(socket)), true);
            return Ok(None);
        };
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        if matches!(program.plan.guest_end, SideEnd::Aborts(at) if at <= now)
            && program.has_begun
            && program.end.is_none()
        {
            socket.abort();
            program.end = Some(GuestTcpEnd::Aborted);
        }
        if is_opening(socket) || program.end.is_some() {
            return Ok(None);
        }
        program.act(index, socket, random)?;
        let pause = match program.plan.guest_pace {
            Pace::Slow => random.skewed(200_000),
            _ => random.skewed(1000),
        };
        program.acts_at = now + Duration::from_micros(pause + 1);
        Ok(None)
    }

    fn poll(&mut self, _: usize, now: Instant) -> Option<Vec<u8>> {
        if self.queues.from_guest.is_empty() {
            self.interface.poll(time(now), &mut self.queues, &mut self.sockets);
            self.drop_endless();
        }
        while let Some(frame) = self.queues.from_guest.pop_front() {
            if let Some((header, len)) = segment(&frame)
                && let Some(program) =
                    slot_at(&frame, 34).and_then(|slot| self.programs.get_mut(slot))
            {
                // An acknowledgement alone has no answer, and a probe beyond what is missing moves nothing.
                let has_content = header.flags.fin || len > 0;
                let ahead = header.sequence.wrapping_sub(program.acknowledged) as i32;
                if header.flags.syn || (has_content && ahead <= 0) {
                    program.sent_at = now;
                }
            }
            if !self.is_of_vanished(&frame, 34, now) {
                return Some(frame);
            }
        }
        None
    }

    fn next_at(&mut self, now: Instant) -> Option<Instant> {
        let program = |program: &SmoltcpProgram| {
            if program.has_vanished(now) || program.end.is_some() {
                return None;
            }
            let Some(handle) = program.handle else { return Some(program.acts_at) };
            let socket = self.sockets.get::<Socket<'_>>(handle);
            let aborts = match program.plan.guest_end {
                SideEnd::Aborts(at) if program.has_begun => Some(at.max(program.acts_at)),
                _ => None,
            };
            let acts =
                !is_opening(socket) && (program.can_write(socket) || program.can_read(socket));
            [aborts, acts.then_some(program.acts_at)].into_iter().flatten().min()
        };
        let program = self.programs.iter().filter_map(program).min();
        let kernel = self.interface.poll_at(time(now), &self.sockets).map(|at| {
            // It may be due, and wait for an address.
            Instant::from_micros(at.total_micros() as u64).max(now + Duration::from_micros(1))
        });
        [program, kernel].into_iter().flatten().min()
    }

    fn view(&self, index: usize) -> Option<GuestView> {
        let program = self.programs.get(index).filter(|program| program.has_begun)?;
        Some(GuestView {
            received: program.received,
            read: program.received,
            is_whole: program.is_closed && program.has_seen_end,
            end: program.end,
            is_lost: program.is_lost,
        })
    }
}

/// The slot of the guest's port, which is at `at`.
fn slot_at(frame: &[u8], at: usize) -> Option<usize> {
    let port = u16::from_be_bytes(*frame.get(at..)?.first_chunk()?);
    Some(usize::from(port.wrapping_sub(TCP_PORT)))
}

/// The TCP segment in a frame, and the length of its data.
fn segment(frame: &[u8]) -> Option<(TcpHeader, usize)> {
    let packet = frame.get(ethernet::HEADER_LEN..)?;
    let ip = IpPacket::parse_v4(packet).ok().filter(|ip| ip.header.protocol == ip::TCP)?;
    let (header, data) = TcpHeader::parse(&ip.header, &packet[ip.payload]).ok()?;
    Some((header, data.len()))
}

fn is_opening(socket: &Socket<'_>) -> bool {
    matches!(socket.state(), State::Listen | State::SynSent | State::SynReceived)
}

impl SmoltcpGuest {
    /// smoltcp 0.14 can have a socket that sends the same acknowledgement for ever, in no time. The guest
    /// forgets it, as if its kernel were gone.
    fn drop_endless(&mut self) {
        let (frames, len) = (&self.queues.from_guest, ethernet::HEADER_LEN + 40);
        let Some(first) = frames.front().filter(|first| first.len() == len) else { return };
        if frames.len() < QUEUED || frames.iter().any(|frame| frame != first) {
            return;
        }
        let slot = u16::from_be_bytes([first[34], first[35]]).wrapping_sub(TCP_PORT);
        if let Some(program) = self.programs.get_mut(usize::from(slot))
            && let Some(handle) = program.handle.take()
        {
            self.sockets.remove(handle);
            (program.end, program.is_lost) = (Some(GuestTcpEnd::GaveUp), true);
            self.queues.from_guest.clear();
        }
    }

    /// Whether the frame is one of a connection whose kernel is gone; its port is at `at`.
    fn is_of_vanished(&self, frame: &[u8], at: usize, now: Instant) -> bool {
        let slot = slot_at(frame, at);
        let vanished = |p: &SmoltcpProgram| Some(p.plan.slot) == slot && p.has_vanished(now);
        self.programs.iter().any(vanished)
    }
}

/// A guest with smoltcp, for the plan of a schedule: changes the parts of the plan that it does not have.
pub(super) fn smoltcp_guest(plan: &mut NetPlan, random: &mut ScheduleRandom) -> Box<SmoltcpGuest> {
    plan.datagrams.clear();
    for (slot, connection) in plan.connections.iter_mut().enumerate() {
        connection.slot = slot;
    }
    Box::new(SmoltcpGuest::new(plan, random))
}
