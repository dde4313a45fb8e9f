//! The bodies of the fuzz targets of both ends of the protocol.

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use super::protocol::{
    AgentServer, FrameDecoder, FrameEvent, GuestMessage, GuestState, INITIAL_WINDOW, NONCE_LEN,
    OperationEnd, OutputStream, ServerEvent, put_sync,
};

/// The operations whose streams are checked.
const IDS: core::ops::Range<u32> = 0..8;

/// Laws of the [`AgentClient`](super::AgentClient), with a hostile agent.
///
/// # Panics
///
/// When a law does not hold.
pub fn client(data: &[u8]) {
    super::client::fuzz::run(data);
}

/// Passes bytes to the agent's end after a sync mark: what it does must not depend on their chunks, it sends only
/// valid messages, its memory is bounded, and it takes a new session afterwards.
pub fn server(data: &[u8]) {
    let whole = received(data, data.len().max(1));
    assert_eq!(whole, received(data, 7), "in chunks of 7");
}

/// What the agent does with the bytes, as text.
fn received(data: &[u8], chunk: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut server = AgentServer::new([7; NONCE_LEN], 1);
    server.set_state(GuestState::Ready);
    let mut first = Vec::new();
    put_sync(1, &mut first);
    for bytes in core::iter::once(&first[..]).chain(data.chunks(chunk)) {
        server.handle_bytes(0, bytes);
        while let Some(event) = server.poll() {
            match event {
                ServerEvent::Begin(id, _) if id % 2 == 0 => {
                    let room = server.output_room(id, OutputStream::Stderr);
                    server.put_output(id, OutputStream::Stderr, &vec![b'x'; room.min(100)]);
                    server.finish(id, OperationEnd::Done);
                }
                ServerEvent::Cancel(id) => server.finish(id, OperationEnd::Cancelled),
                _ => {}
            }
            found.push(format!("{event:?}"));
            check_sent(&mut server, &mut found);
        }
        check_sent(&mut server, &mut found);
    }
    for id in IDS {
        assert!(server.input(id).len() <= INITIAL_WINDOW as usize);
        found.push(format!("{:?} {}", server.input(id), server.is_input_ended(id)));
    }
    // What is incomplete may take the mark as a part of it; a transport that is closed begins anew.
    server.handle_close(0);
    let mut last = Vec::new();
    put_sync(u64::MAX, &mut last);
    server.handle_bytes(0, &last);
    while server.poll().is_some() {}
    found
}

/// Takes what the agent sends, and checks it.
fn check_sent(server: &mut AgentServer, found: &mut Vec<String>) {
    let mut sync = Vec::new();
    put_sync(0, &mut sync);
    let mut decoder = FrameDecoder::new();
    decoder.handle_bytes(&sync);
    decoder.handle_bytes(server.output());
    server.handle_sent(server.output().len());
    let _ = decoder.poll();
    while let Some(event) = decoder.poll().expect("frames") {
        found.push(match event {
            FrameEvent::Sync(session) => format!("Sync({session})"),
            FrameEvent::Frame(frame) => {
                format!("{:?}", GuestMessage::read(frame).expect("a message"))
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::protocol::{CommandSpec, HostMessage, Operation, TerminalSize};
    use super::*;

    fn message() -> impl Strategy<Value = Vec<u8>> {
        (0..8_u8, IDS, prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(kind, id, bytes)| {
            let mut out = Vec::new();
            let run =
                Operation::Run(CommandSpec { args: vec![bytes.clone()], ..CommandSpec::default() });
            match kind {
                0 | 1 => HostMessage::Begin(id, run).write(&mut out),
                2 => HostMessage::Input(id, &bytes).write(&mut out),
                3 => HostMessage::InputEnd(id).write(&mut out),
                4 => HostMessage::Window(id, OutputStream::Stderr, bytes.len() as u32)
                    .write(&mut out),
                5 => HostMessage::Signal(id, 9).write(&mut out),
                6 => HostMessage::Resize(id, TerminalSize { rows: 1, columns: 2 }).write(&mut out),
                _ => HostMessage::Cancel(id).write(&mut out),
            }
            out
        })
    }

    proptest! {
        #[test]
        fn server_laws_hold_for_random_messages(
            messages in prop::collection::vec(message(), 0..30),
            end in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let mut data = messages.concat();
            data.extend(end);
            server(&data);
        }
    }
}
