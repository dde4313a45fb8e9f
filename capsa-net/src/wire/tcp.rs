//! TCP headers (RFC 9293), with the options MSS and window scale (RFC 7323).
//!
//! Other options are skipped. The stack does not offer selective acknowledgement and time stamps, so no
//! correct peer sends them after the handshake.

use super::checksum::{ChecksumPolicy, Sum};
use super::ip::{IpHeader, TCP};
use super::{ParseError, bytes_at, u16_at, u32_at};
use alloc::vec::Vec;
use core::ops::Range;

/// The length of a header without options.
pub const HEADER_LEN: usize = 20;

/// Where the checksum is in a header.
pub const CHECKSUM_AT: usize = 16;

/// The largest shift of a window (RFC 7323, 2.3).
const WINDOW_SCALE_MAX: u8 = 14;

/// The flags of a segment. Others are ignored: urgent data is ordinary data, and ECN is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// Opens the connection.
    pub syn: bool,
    /// The acknowledgement number is valid.
    pub ack: bool,
    /// No more data follows.
    pub fin: bool,
    /// Aborts the connection.
    pub rst: bool,
    /// The receiver hands the data to its program at once.
    pub psh: bool,
}

impl Flags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const PSH: u8 = 0x08;
    const ACK: u8 = 0x10;

    const fn parse(bits: u8) -> Self {
        Self {
            syn: bits & Self::SYN != 0,
            ack: bits & Self::ACK != 0,
            fin: bits & Self::FIN != 0,
            rst: bits & Self::RST != 0,
            psh: bits & Self::PSH != 0,
        }
    }

    fn bits(self) -> u8 {
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        bit(self.syn, Self::SYN)
            | bit(self.ack, Self::ACK)
            | bit(self.fin, Self::FIN)
            | bit(self.rst, Self::RST)
            | bit(self.psh, Self::PSH)
    }
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpHeader {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// The number of the first byte.
    pub sequence: u32,
    /// The number of the next byte that is expected, if the flag is set.
    pub acknowledgement: u32,
    /// The flags.
    pub flags: Flags,
    /// The receive window, not scaled.
    pub window: u16,
    /// The largest payload that the sender accepts. In a SYN only.
    pub mss: Option<u16>,
    /// The shift of all further windows of the sender, at most 14. In a SYN only.
    pub window_scale: Option<u8>,
}

impl TcpHeader {
    /// Parses the payload of a packet with the header `ip`. Returns the header, and where the data is in
    /// `bytes`.
    ///
    /// # Errors
    ///
    /// See [`ParseError`]. Malformed options end the parsing of options, and are no error (RFC 9293, MUST-6).
    pub fn parse(ip: &IpHeader, bytes: &[u8]) -> Result<(Self, Range<usize>), ParseError> {
        Self::parse_with(ip, bytes, ChecksumPolicy::Verify)
    }

    /// Like [`parse`](Self::parse), with a policy for the checksum.
    ///
    /// # Errors
    ///
    /// As for [`parse`](Self::parse).
    pub fn parse_with(
        ip: &IpHeader,
        bytes: &[u8],
        policy: ChecksumPolicy,
    ) -> Result<(Self, Range<usize>), ParseError> {
        let [offset, flags] = bytes_at(bytes, 12)?;
        let data = usize::from(offset >> 4) * 4;
        if data < HEADER_LEN {
            return Err(ParseError::Malformed);
        }
        let options = bytes.get(HEADER_LEN..data).ok_or(ParseError::Truncated)?;
        let mut sum = Sum::of_pseudo_header(ip.source, ip.destination, TCP, bytes.len());
        if policy == ChecksumPolicy::Verify && !sum.add(bytes).is_valid() {
            return Err(ParseError::Checksum);
        }
        let mut header = Self {
            source: u16_at(bytes, 0)?,
            destination: u16_at(bytes, 2)?,
            sequence: u32_at(bytes, 4)?,
            acknowledgement: u32_at(bytes, 8)?,
            flags: Flags::parse(flags),
            window: u16_at(bytes, 14)?,
            mss: None,
            window_scale: None,
        };
        header.parse_options(options);
        Ok((header, data..bytes.len()))
    }

    fn parse_options(&mut self, mut options: &[u8]) {
        loop {
            options = match *options {
                [] | [0, ..] => return,
                [1, ref rest @ ..] => rest,
                [kind, len, ..] => {
                    let Some((option, rest)) = options.split_at_checked(usize::from(len)) else {
                        return;
                    };
                    match (kind, option) {
                        // A length of 0 or 1 is shorter than the option itself.
                        (_, [] | [_]) => return,
                        (2, [_, _, a, b]) => self.mss = Some(u16::from_be_bytes([*a, *b])),
                        (3, [_, _, shift]) => {
                            self.window_scale = Some((*shift).min(WINDOW_SCALE_MAX));
                        }
                        _ => {}
                    }
                    rest
                }
                [_] => return,
            };
        }
    }

    /// The length of the header with its options.
    pub fn header_len(&self) -> usize {
        HEADER_LEN
            + 4 * (usize::from(self.mss.is_some()) + usize::from(self.window_scale.is_some()))
    }

    /// Appends the header of a segment, with its IP header, to `frame`. `data` is the payload in parts,
    /// which follow the header and are not copied.
    pub fn write<'a>(
        &self,
        ip: &IpHeader,
        data: impl Iterator<Item = &'a [u8]> + Clone,
        frame: &mut Vec<u8>,
    ) {
        let len = data.clone().map(<[u8]>::len).sum();
        let start = self.write_partial(ip, len, frame);
        let mut sum = Sum::default();
        sum.add(&frame[start..]);
        for part in data {
            sum.add(part);
        }
        frame[start + CHECKSUM_AT..start + CHECKSUM_AT + 2]
            .copy_from_slice(&sum.checksum().to_be_bytes());
    }

    /// Like [`write`](Self::write), with the sum of the pseudo header in place of the checksum: the
    /// receiver's card adds the rest. `data` is the length of the payload. Returns where the TCP header
    /// starts in `frame`.
    pub fn write_partial(&self, ip: &IpHeader, data: usize, frame: &mut Vec<u8>) -> usize {
        let len = self.header_len() + data;
        let ip = IpHeader { protocol: TCP, ..*ip };
        ip.write(len, frame);
        let start = frame.len();
        for word in [
            u32::from(self.source) << 16 | u32::from(self.destination),
            self.sequence,
            if self.flags.ack { self.acknowledgement } else { 0 },
            (self.header_len() as u32 / 4) << 28
                | u32::from(self.flags.bits()) << 16
                | u32::from(self.window),
            0,
        ] {
            frame.extend_from_slice(&word.to_be_bytes());
        }
        if let Some(mss) = self.mss {
            let [a, b] = mss.to_be_bytes();
            frame.extend_from_slice(&[2, 4, a, b]);
        }
        if let Some(shift) = self.window_scale {
            frame.extend_from_slice(&[1, 3, 3, shift]);
        }
        let sum = Sum::of_pseudo_header(ip.source, ip.destination, TCP, len);
        frame[start + CHECKSUM_AT..start + CHECKSUM_AT + 2]
            .copy_from_slice(&sum.folded().to_be_bytes());
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::IpPacket;
    use core::net::IpAddr;
    use proptest::prelude::*;

    const IP: IpHeader = IpHeader {
        source: IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 2, 15)),
        destination: IpAddr::V4(core::net::Ipv4Addr::new(93, 184, 216, 34)),
        protocol: TCP,
        hop_limit: 64,
    };

    fn segment(header: &TcpHeader, data: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        header.write(&IP, data.iter().copied(), &mut bytes);
        let mut payload = bytes.split_off(
            IpPacket::parse_v4(&{
                let mut whole = bytes.clone();
                whole.resize(usize::from(u16_at(&bytes, 2).unwrap()), 0);
                whole
            })
            .unwrap()
            .payload
            .start,
        );
        payload.extend(data.concat());
        payload
    }

    #[test]
    fn header_round_trip() {
        let header = TcpHeader {
            source: 40000,
            destination: 443,
            sequence: 0xffff_fff0,
            acknowledgement: 5,
            flags: Flags { syn: true, ack: true, ..Flags::default() },
            window: 0xffff,
            mss: Some(1460),
            window_scale: Some(8),
        };
        let bytes = segment(&header, &[b"odd", b"", b"parts of data"]);
        let (parsed, data) = TcpHeader::parse(&IP, &bytes).unwrap();
        assert_eq!((parsed, &bytes[data]), (header, &b"oddparts of data"[..]));
    }

    #[test]
    fn parse_changed_byte_is_checksum_error() {
        let mut bytes = segment(&TcpHeader::default(), &[b"data"]);
        bytes[22] ^= 4;
        assert_eq!(TcpHeader::parse(&IP, &bytes), Err(ParseError::Checksum));
    }

    #[test]
    fn parse_options_malformed_are_skipped() {
        let cases: [(&[u8], Option<u16>, Option<u8>); 6] = [
            (&[2, 4, 5, 180, 1, 3, 3, 99], Some(1460), Some(14)),
            (&[2, 0, 5, 180], None, None),
            (&[8, 40, 5, 180], None, None),
            (&[1, 1, 1, 2], None, None),
            (&[0, 2, 4, 5], None, None),
            (&[5, 2, 2, 4, 5, 180], Some(1460), None),
        ];
        for (options, mss, window_scale) in cases {
            let mut header = TcpHeader::default();
            header.parse_options(options);
            assert_eq!((header.mss, header.window_scale), (mss, window_scale), "{options:?}");
        }
    }

    proptest! {
        #[test]
        fn parse_options_any_bytes_ends(bytes in proptest::collection::vec(0u8..8, 0..40)) {
            TcpHeader::default().parse_options(&bytes);
        }
    }
}
