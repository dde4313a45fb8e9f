//! vsock connections, reads and writes that are dropped at any await: no byte is lost or read twice, and
//! no descriptor is left.

use std::time::Duration;

use capsa::vsock::VsockStream;
use capsa::{Error, VmHandle};
use capsa_testkit::drop_futures::RandomDrops;
use capsa_testkit::fake;
use capsa_testkit::processes::descriptors;
use capsa_testkit::programs::TestProgram;
use capsa_testkit::run_isolated;
use capsa_testkit::vm::{PATIENCE, eventually};
use futures_lite::future::block_on;
use futures_lite::{AsyncReadExt, AsyncWriteExt};

const FAKE_VSOCK: TestProgram = TestProgram::new("fake-vsock");

// The guest's services: `testing/stand-ins/src/bin/fake-vsock.rs`.
const ECHO: u32 = 1;
const REFUSED: u32 = 2;
const SILENT: u32 = 3;
const HESITANT: u32 = 4;
const COUNT: u32 = 5;

async fn started() -> VmHandle {
    let builder = fake::vm("up echo serve").vsock().program("vhost-device-vsock", FAKE_VSOCK);
    let vm = builder.build().await.unwrap();
    vm.start().await.unwrap();
    vm
}

/// The number of the device's connections, without the one of this request.
async fn open(vm: &VmHandle) -> usize {
    let mut output = String::new();
    vm.vsock_connect(COUNT).await.unwrap().read_to_string(&mut output).await.unwrap();
    output.parse::<usize>().unwrap() - 1
}

async fn echoes(stream: &mut VsockStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut received = vec![0; text.len()];
    stream.read_exact(&mut received).await.unwrap();
    assert_eq!(received, text);
}

#[test]
fn connect_dropped_at_any_await_leaves_nothing() {
    run_isolated!();
    let random = &mut RandomDrops::new(0x50c3);
    block_on(async {
        let vm = started().await;
        drop(vm.vsock_connect(ECHO).await.unwrap()); // async-io has its own descriptors now.
        eventually("the first connection is closed", || block_on(open(&vm)) == 0);
        let before = descriptors();
        let (mut made, mut cut) = (0, 0);
        for _ in 0..1000 {
            let port = [ECHO, REFUSED, SILENT, HESITANT][random.index(4)];
            let result = match random.below(3) {
                0 => random.poll_and_drop(vm.vsock_connect(port)).await,
                1 => random.poll_and_drop(vm.vsock_connect_timeout(port, PATIENCE)).await,
                _ => {
                    random
                        .poll_and_drop(vm.vsock_connect_timeout(port, Duration::from_micros(200)))
                        .await
                }
            };
            match (port, result) {
                (_, None) => cut += 1,
                (ECHO, Some(Ok(mut stream))) => {
                    made += 1;
                    echoes(&mut stream, b"ping").await;
                }
                (HESITANT, Some(Ok(mut stream))) => {
                    made += 1;
                    // Bytes right after the device's reply are the guest's.
                    let mut hello = [0; 5];
                    stream.read_exact(&mut hello).await.unwrap();
                    assert_eq!(&hello, b"hello");
                }
                (REFUSED, Some(Err(Error::VsockRefused { port: REFUSED })))
                | (_, Some(Err(Error::Timeout { .. }))) => {}
                (port, result) => panic!("{port}: {result:?}"),
            }
        }
        assert!(made > 50 && cut > 300, "{made} made, {cut} cut");
        eventually("the device has no connection", || block_on(open(&vm)) == 0);
        assert_eq!(descriptors(), before);

        let mut console = vm.console().await.unwrap();
        console.write_str("still here").await.unwrap();
        console.wait_for_timeout("still here", PATIENCE).await.unwrap();
        echoes(&mut vm.vsock_connect(ECHO).await.unwrap(), b"here too").await;
        vm.kill().await.unwrap();
    });
}

#[test]
fn stream_futures_dropped_lose_nothing() {
    const BYTES: usize = 2_000_000;
    run_isolated!();
    let random = &mut RandomDrops::new(0xb17e);
    block_on(async {
        let vm = started().await;
        let mut stream = vm.vsock_connect(ECHO).await.unwrap();
        let sent = fake::flood(BYTES);
        let (mut rest, mut received) = (sent.as_slice(), Vec::<u8>::new());
        let mut cut = 0;
        while received.len() < BYTES {
            // More than the sockets hold, so that writes wait too.
            let some = rest.len().min(1 + random.index(500_000));
            let wrote = random.poll_and_drop(stream.write(&rest[..some])).await.map(Result::unwrap);
            rest = &rest[wrote.unwrap_or(0)..];
            cut += usize::from(wrote.is_none());
            cut += usize::from(random.poll_and_drop(stream.flush()).await.is_none());
            let mut chunk = vec![0; 1 + random.index(50_000)];
            let read = random.poll_and_drop(stream.read(&mut chunk)).await.map(Result::unwrap);
            received.extend(&chunk[..read.unwrap_or(0)]);
            cut += usize::from(read.is_none());
        }
        assert!(received == sent, "the echo differs from the input");
        assert!(cut > 50, "{cut} futures were dropped");
        // A close that was dropped succeeds when it is called again.
        random.poll_and_drop(stream.close()).await;
        stream.close().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        vm.kill().await.unwrap();
    });
}

#[test]
fn connect_pending_vm_killed_returns_error() {
    run_isolated!();
    block_on(async {
        let vm = started().await;
        let connecting = {
            let vm = vm.clone();
            std::thread::spawn(move || block_on(vm.vsock_connect(SILENT)))
        };
        eventually("the guest connects", || block_on(open(&vm)) == 1);
        let mut made = vm.vsock_connect(ECHO).await.unwrap();
        vm.kill().await.unwrap();
        assert_eq!(made.read(&mut [0]).await.unwrap_or(0), 0);
        let result = connecting.join().unwrap();
        assert!(matches!(result, Err(Error::VsockRefused { port: SILENT })), "{result:?}");
    });
}
