//! Frames (RFC 9113, sections 4 and 6).

use crate::http::body::Chunk;

/// Kinds.
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Where the kind stands in a frame's head.
pub(super) const KIND: usize = 3;

/// Flags.
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const HAS_PRIORITY: u8 = 0x20;

/// Settings.
pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;
/// RFC 8441, section 3.
pub(super) const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// Why a stream or a connection ends (section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(pub(super) u32);

impl Code {
    pub(super) const NO_ERROR: Self = Self(0);
    pub(super) const PROTOCOL_ERROR: Self = Self(1);
    pub(super) const INTERNAL_ERROR: Self = Self(2);
    pub(super) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(super) const STREAM_CLOSED: Self = Self(5);
    pub(super) const FRAME_SIZE_ERROR: Self = Self(6);
    pub(super) const REFUSED_STREAM: Self = Self(7);
    pub(super) const CANCEL: Self = Self(8);
    pub(super) const COMPRESSION_ERROR: Self = Self(9);
    pub(super) const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "error {}", self.0),
        }
    }
}

/// Bytes of a frame before its payload.
pub(super) const HEAD: usize = 9;

/// What stands before a payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    pub(super) fn read(bytes: &[u8; HEAD]) -> Self {
        let &[a, b, c, kind, flags, s, t, u, v] = bytes;
        let stream = u32::from_be_bytes([s, t, u, v]) & 0x7fff_ffff;
        Self { length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c), kind, flags, stream }
    }

    pub(super) fn bytes(length: usize, kind: u8, flags: u8, stream: u32) -> [u8; HEAD] {
        let [_, a, b, c] = (length as u32).to_be_bytes();
        let [s, t, u, v] = stream.to_be_bytes();
        [a, b, c, kind, flags, s, t, u, v]
    }
}

/// Writes a frame with a payload of a number or two.
pub(super) fn small(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&Head::bytes(payload.len(), kind, flags, stream));
    out.extend_from_slice(payload);
}

/// Takes the padding from a payload (section 6.1); `None` when there is more of it than payload.
pub(super) fn unpad(flags: u8, payload: &[u8]) -> Option<&[u8]> {
    if flags & PADDED == 0 {
        return Some(payload);
    }
    let (&length, rest) = payload.split_first()?;
    rest.len().checked_sub(length.into()).map(|end| &rest[..end])
}

/// The same of a payload that can be shared.
pub(super) fn data(flags: u8, payload: Chunk<'_>) -> Option<Chunk<'_>> {
    let bytes = unpad(flags, &payload)?.len();
    Some(if flags & PADDED == 0 { payload } else { payload.after(1).first(bytes) })
}

/// Reads four bytes of which the first bit says nothing.
pub(super) fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff)
}
