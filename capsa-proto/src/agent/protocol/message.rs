//! The messages of both sides, as the payloads of frames.

use alloc::vec::Vec;
use core::fmt;

use super::NONCE_LEN;
use super::bytes::{Field, FieldReader, FieldWriter, List};
use super::frame::{Frame, put_frame};

/// The number of an operation, chosen by the host. Not 0.
pub type OperationId = u32;

/// A message of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostMessage<'a> {
    /// Begins an operation.
    Begin(OperationId, Operation),
    /// Bytes of the operation's input.
    Input(OperationId, &'a [u8]),
    /// The end of the operation's input.
    InputEnd(OperationId),
    /// The host has taken this many bytes of an output.
    Window(OperationId, OutputStream, u32),
    /// Sends a signal to the process group of a command.
    Signal(OperationId, i32),
    /// The size of a command's terminal has changed.
    Resize(OperationId, TerminalSize),
    /// Ends the operation: kills the process group of a command. [`GuestMessage::Finished`] follows.
    Cancel(OperationId),
}

/// A message of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestMessage<'a> {
    /// The first message of a session.
    Hello {
        /// [`super::VERSION`].
        version: u16,
        /// Proves that this is the agent of this VM.
        nonce: [u8; NONCE_LEN],
    },
    /// How far the guest has booted. Sent after `Hello` and when it changes.
    State(GuestState),
    /// The process of a command was started; its process id in the guest.
    Started(OperationId, u32),
    /// Bytes of an output.
    Output(OperationId, OutputStream, &'a [u8]),
    /// The agent has taken this many bytes of the input.
    Window(OperationId, u32),
    /// The operation has ended.
    Finished(OperationId, OperationEnd),
}

/// How far a guest has booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuestState {
    /// The guest's init has not reached its final root. The agent queues operations.
    Booting,
    /// Operations run in the final root.
    Ready,
}

/// An output of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputStream {
    /// The standard output, or the only output.
    Stdout,
    /// The standard error.
    Stderr,
}

/// What an operation does. Paths are absolute and belong to the guest's final root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Runs a command. Input: its standard input. Outputs: its standard output and error.
    Run(CommandSpec),
    /// Reads a file. Output: its content.
    ReadFile(Vec<u8>),
    /// Writes a file. Input: its content.
    WriteFile {
        /// The path.
        path: Vec<u8>,
        /// The permission bits of a new file.
        mode: u32,
        /// What happens to an existing file.
        write: WriteMode,
    },
    /// Describes a file, without following a symlink. Output: one directory entry.
    Stat(Vec<u8>),
    /// Lists a directory. Output: directory entries.
    ReadDir(Vec<u8>),
    /// Makes a directory, with all that are missing above it.
    MakeDir {
        /// The path.
        path: Vec<u8>,
        /// The permission bits.
        mode: u32,
    },
    /// Removes a file, a symlink or a directory.
    Remove {
        /// The path.
        path: Vec<u8>,
        /// With everything in it. Mounts in it are left.
        recursive: bool,
    },
    /// Mounts a file system, unless the same one is mounted there.
    Mount(MountSpec),
    /// Writes dirty pages to the disks, and ends the guest.
    PowerOff(PowerAction),
    /// Sets the guest's clock: nanoseconds since 1970.
    SetClock(u64),
}

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandSpec {
    /// The program and its arguments. A program without a slash is searched in `PATH`.
    pub args: Vec<Vec<u8>>,
    /// The environment in addition to `PATH`, `HOME`, `USER`, `LOGNAME` and `SHELL`, or in their place.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// The working directory; default: the home directory of the user.
    pub cwd: Option<Vec<u8>>,
    /// The user: a name, or `UID` or `UID:GID` in decimal; default: root.
    pub user: Option<Vec<u8>>,
    /// Runs it in a terminal of this size: its input and both outputs are the terminal, and everything
    /// arrives on standard output.
    pub terminal: Option<TerminalSize>,
    /// Whether it has an input. If not, its standard input is `/dev/null`.
    pub has_input: bool,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// What writing does to an existing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// Its content is replaced.
    Truncate,
    /// The new content is appended.
    Append,
    /// An error: it must not exist.
    CreateNew,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    /// The type of the file system: `virtiofs`, `9p`.
    pub kind: Vec<u8>,
    /// The source: the tag of a share.
    pub source: Vec<u8>,
    /// Where. Missing directories are made.
    pub target: Vec<u8>,
    /// Options of the file system, comma-separated.
    pub options: Vec<u8>,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// How to end a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerAction {
    /// Through the guest's init where there is one that can, otherwise as [`PowerAction::Now`].
    Orderly,
    /// Sync and power off.
    Now,
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device node, a FIFO or a socket.
    Other,
}

/// An entry of a directory: the output of [`Operation::Stat`] and [`Operation::ReadDir`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// The name in its directory; the path for [`Operation::Stat`].
    pub name: Vec<u8>,
    /// The type.
    pub kind: FileKind,
    /// The permission bits, with set-id and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The length in bytes.
    pub size: u64,
    /// When the content was modified: nanoseconds since 1970.
    pub modified: i64,
    /// The target of a symlink.
    pub target: Option<Vec<u8>>,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationEnd {
    /// It did what it should.
    Done,
    /// The command exited with this status.
    Exited(i32),
    /// A signal ended the command.
    Signaled(i32),
    /// It failed with this `errno` of Linux; a command was not started then.
    Failed(i32),
    /// The host cancelled it.
    Cancelled,
}

/// A payload is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageError {
    /// No message has this kind.
    Kind(u8),
    /// The payload ends too early.
    TooShort,
    /// Bytes follow the message.
    TooLong,
    /// A field of this name has no such value.
    Value(&'static str, u64),
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "unknown message kind {kind}"),
            Self::TooShort => f.write_str("the message ends too early"),
            Self::TooLong => f.write_str("bytes follow the message"),
            Self::Value(field, value) => write!(f, "invalid {field} {value}"),
        }
    }
}

impl core::error::Error for MessageError {}

impl HostMessage<'_> {
    /// Appends the message as a frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Begin(id, request) => put(1, *id, request, out),
            Self::Input(id, bytes) => put_frame(2, *id, bytes, out),
            Self::InputEnd(id) => put_frame(3, *id, &[], out),
            Self::Window(id, stream, bytes) => put(4, *id, &(*stream, *bytes), out),
            Self::Signal(id, number) => put(5, *id, number, out),
            Self::Resize(id, size) => put(6, *id, size, out),
            Self::Cancel(id) => put_frame(7, *id, &[], out),
        }
    }
}

impl<'a> HostMessage<'a> {
    /// The message in a frame.
    ///
    /// # Errors
    ///
    /// When the frame is no message of the host.
    pub fn read(frame: Frame<'a>) -> Result<Self, MessageError> {
        let id = frame.id;
        let mut fields = FieldReader(frame.payload);
        let message = match frame.kind {
            1 => Self::Begin(id, fields.take()?),
            2 => Self::Input(id, fields.take_rest()),
            3 => Self::InputEnd(id),
            4 => Self::Window(id, fields.take()?, fields.take()?),
            5 => Self::Signal(id, fields.take()?),
            6 => Self::Resize(id, fields.take()?),
            7 => Self::Cancel(id),
            kind => return Err(MessageError::Kind(kind)),
        };
        fields.finish().map(|()| message)
    }
}

impl GuestMessage<'_> {
    /// Appends the message as a frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version, nonce } => {
                let mut fields = FieldWriter::default();
                fields.put(version);
                fields.0.extend_from_slice(nonce);
                put_frame(129, 0, &fields.0, out);
            }
            Self::State(state) => put(130, 0, state, out),
            Self::Started(id, pid) => put(131, *id, pid, out),
            Self::Output(id, OutputStream::Stdout, bytes) => put_frame(132, *id, bytes, out),
            Self::Output(id, OutputStream::Stderr, bytes) => put_frame(133, *id, bytes, out),
            Self::Window(id, bytes) => put(134, *id, bytes, out),
            Self::Finished(id, end) => put(135, *id, end, out),
        }
    }
}

impl<'a> GuestMessage<'a> {
    /// The message in a frame.
    ///
    /// # Errors
    ///
    /// When the frame is no message of the agent.
    pub fn read(frame: Frame<'a>) -> Result<Self, MessageError> {
        let id = frame.id;
        let mut fields = FieldReader(frame.payload);
        let message = match frame.kind {
            129 => {
                let version = fields.take()?;
                let nonce = fields.take_bytes(NONCE_LEN)?;
                let nonce = nonce.try_into().map_err(|_| MessageError::TooShort)?;
                Self::Hello { version, nonce }
            }
            130 => Self::State(fields.take()?),
            131 => Self::Started(id, fields.take()?),
            132 => Self::Output(id, OutputStream::Stdout, fields.take_rest()),
            133 => Self::Output(id, OutputStream::Stderr, fields.take_rest()),
            134 => Self::Window(id, fields.take()?),
            135 => Self::Finished(id, fields.take()?),
            kind => return Err(MessageError::Kind(kind)),
        };
        fields.finish().map(|()| message)
    }
}

fn put(kind: u8, id: OperationId, value: &impl Field, out: &mut Vec<u8>) {
    let mut fields = FieldWriter::default();
    fields.put(value);
    put_frame(kind, id, &fields.0, out);
}

/// The codec of an enum without fields: each value with its number.
macro_rules! numbered {
    ($name:ident { $($value:ident = $number:literal),* $(,)? }) => {
        impl Field for $name {
            fn write(&self, to: &mut FieldWriter) {
                let number: u8 = match self { $(Self::$value => $number),* };
                to.put(&number);
            }

            fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
                match from.take::<u8>()? {
                    $($number => Ok(Self::$value),)*
                    other => Err(MessageError::Value(stringify!($name), other.into())),
                }
            }
        }
    };
}

numbered!(GuestState { Booting = 0, Ready = 1 });
numbered!(OutputStream { Stdout = 1, Stderr = 2 });
numbered!(WriteMode { Truncate = 0, Append = 1, CreateNew = 2 });
numbered!(PowerAction { Orderly = 0, Now = 1 });
numbered!(FileKind { File = 0, Directory = 1, Symlink = 2, Other = 3 });

/// The codec of a struct: its fields in order.
macro_rules! fields {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl Field for $name {
            fn write(&self, to: &mut FieldWriter) {
                $(to.put(&self.$field);)*
            }

            fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
                Ok(Self { $($field: from.take()?),* })
            }
        }
    };
}

fields!(TerminalSize { rows, columns });
fields!(FileEntry { name, kind, mode, uid, gid, size, modified, target });
fields!(MountSpec { kind, source, target, options, read_only });

impl Field for CommandSpec {
    fn write(&self, to: &mut FieldWriter) {
        to.put(&List(self.args.clone()));
        to.put(&List(self.env.clone()));
        to.put(&self.cwd);
        to.put(&self.user);
        to.put(&self.terminal);
        to.put(&self.has_input);
    }

    fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
        let List(args) = from.take()?;
        let List(env) = from.take()?;
        Ok(Self {
            args,
            env,
            cwd: from.take()?,
            user: from.take()?,
            terminal: from.take()?,
            has_input: from.take()?,
        })
    }
}

impl Field for Operation {
    fn write(&self, to: &mut FieldWriter) {
        match self {
            Self::Run(command) => to.put(&(1_u8, command.clone())),
            Self::ReadFile(path) => to.put(&(2_u8, path.clone())),
            Self::WriteFile { path, mode, write } => {
                to.put(&(3_u8, path.clone()));
                to.put(&(*mode, *write));
            }
            Self::Stat(path) => to.put(&(4_u8, path.clone())),
            Self::ReadDir(path) => to.put(&(5_u8, path.clone())),
            Self::MakeDir { path, mode } => to.put(&(6_u8, (path.clone(), *mode))),
            Self::Remove { path, recursive } => to.put(&(7_u8, (path.clone(), *recursive))),
            Self::Mount(mount) => to.put(&(8_u8, mount.clone())),
            Self::PowerOff(action) => to.put(&(9_u8, *action)),
            Self::SetClock(time) => to.put(&(10_u8, *time)),
        }
    }

    fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
        Ok(match from.take::<u8>()? {
            1 => Self::Run(from.take()?),
            2 => Self::ReadFile(from.take()?),
            3 => Self::WriteFile { path: from.take()?, mode: from.take()?, write: from.take()? },
            4 => Self::Stat(from.take()?),
            5 => Self::ReadDir(from.take()?),
            6 => Self::MakeDir { path: from.take()?, mode: from.take()? },
            7 => Self::Remove { path: from.take()?, recursive: from.take()? },
            8 => Self::Mount(from.take()?),
            9 => Self::PowerOff(from.take()?),
            10 => Self::SetClock(from.take()?),
            other => return Err(MessageError::Value("operation", other.into())),
        })
    }
}

impl Field for OperationEnd {
    fn write(&self, to: &mut FieldWriter) {
        to.put(&match self {
            Self::Done => (0_u8, 0),
            Self::Exited(status) => (1, *status),
            Self::Signaled(number) => (2, *number),
            Self::Failed(errno) => (3, *errno),
            Self::Cancelled => (4, 0),
        });
    }

    fn read(from: &mut FieldReader<'_>) -> Result<Self, MessageError> {
        Ok(match from.take::<(u8, i32)>()? {
            (0, 0) => Self::Done,
            (1, status) => Self::Exited(status),
            (2, number) => Self::Signaled(number),
            (3, errno) => Self::Failed(errno),
            (4, 0) => Self::Cancelled,
            (other, _) => return Err(MessageError::Value("end", other.into())),
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::agent::protocol::{FrameDecoder, FrameEvent, put_sync};

    fn frame(bytes: &[u8], check: impl FnOnce(Frame<'_>)) {
        let mut all = Vec::new();
        put_sync(1, &mut all);
        all.extend_from_slice(bytes);
        let mut decoder = FrameDecoder::new();
        decoder.handle_bytes(&all);
        decoder.poll().unwrap();
        let Ok(Some(FrameEvent::Frame(frame))) = decoder.poll() else { panic!("no frame") };
        check(frame);
    }

    #[test]
    fn host_messages_survive_a_round_trip() {
        let size = TerminalSize { rows: 24, columns: 80 };
        let path = || b"/tmp/\xff".to_vec();
        let command = CommandSpec {
            args: vec![b"sh".to_vec(), b"-c".to_vec(), Vec::new()],
            env: vec![(b"A".to_vec(), b"b=c".to_vec())],
            cwd: Some(b"/".to_vec()),
            user: None,
            terminal: Some(size),
            has_input: true,
        };
        let mount = MountSpec {
            kind: b"virtiofs".to_vec(),
            source: b"capsa0".to_vec(),
            target: path(),
            options: Vec::new(),
            read_only: true,
        };
        let requests = [
            Operation::Run(command),
            Operation::ReadFile(path()),
            Operation::WriteFile { path: path(), mode: 0o600, write: WriteMode::CreateNew },
            Operation::Stat(path()),
            Operation::ReadDir(path()),
            Operation::MakeDir { path: path(), mode: 0o755 },
            Operation::Remove { path: path(), recursive: true },
            Operation::Mount(mount),
            Operation::PowerOff(PowerAction::Orderly),
            Operation::SetClock(u64::MAX),
        ];
        let begin = requests.map(|request| HostMessage::Begin(5, request));
        let others = [
            HostMessage::Input(1, b"\0abc"),
            HostMessage::InputEnd(2),
            HostMessage::Window(3, OutputStream::Stderr, 7),
            HostMessage::Signal(4, -9),
            HostMessage::Resize(5, size),
            HostMessage::Cancel(u32::MAX),
        ];
        for message in begin.into_iter().chain(others) {
            let mut bytes = Vec::new();
            message.write(&mut bytes);
            frame(&bytes, |frame| assert_eq!(HostMessage::read(frame), Ok(message)));
        }
    }

    #[test]
    fn guest_messages_survive_a_round_trip() {
        let ends = [
            OperationEnd::Done,
            OperationEnd::Exited(7),
            OperationEnd::Signaled(9),
            OperationEnd::Failed(2),
            OperationEnd::Cancelled,
        ];
        let others = [
            GuestMessage::Hello { version: 1, nonce: [7; NONCE_LEN] },
            GuestMessage::State(GuestState::Ready),
            GuestMessage::Started(1, 2),
            GuestMessage::Output(1, OutputStream::Stdout, b"out"),
            GuestMessage::Output(1, OutputStream::Stderr, b""),
            GuestMessage::Window(1, 9),
        ];
        let ends = ends.map(|end| GuestMessage::Finished(4, end));
        for message in ends.into_iter().chain(others) {
            let mut bytes = Vec::new();
            message.write(&mut bytes);
            frame(&bytes, |frame| assert_eq!(GuestMessage::read(frame), Ok(message)));
        }
    }

    #[test]
    fn invalid_payload_is_refused() {
        let read = |kind, payload: &[u8]| HostMessage::read(Frame { kind, id: 1, payload }).err();
        assert_eq!(read(0, b""), Some(MessageError::Kind(0)));
        assert_eq!(read(3, b"x"), Some(MessageError::TooLong));
        assert_eq!(read(5, b"abc"), Some(MessageError::TooShort));
        assert_eq!(read(1, b"\x63"), Some(MessageError::Value("operation", 0x63)));
        // A list that announces more elements than the payload can have.
        assert_eq!(read(1, b"\x01\xff\xff\xff\xff"), Some(MessageError::TooShort));
    }
}
