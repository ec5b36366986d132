//! The state of one connection: its streams, windows and what waits to be written. Both sides of HTTP/2 are this.
//!
//! It does no input or output: whoever drives the connection hands it the bytes that came ([`Mux::receive`]) and writes what
//! it has to say ([`Mux::poll_write`]). Streams reach it through handles on the same thread ([`super::Down`], [`super::Up`]); what
//! they write in one turn leaves in one system call. Bounds: streams by the limit that the peer was told, the bytes of each by
//! its window, the bytes that wait to be written by [`ROOM`] and the answers that a peer may ask for by the guard.

mod ending;
mod faults;
mod io;
mod messages;
mod outbox;
mod receive;
mod send;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::task::Waker;

use ending::{Death, Leaving};
use outbox::Outbox;
pub(super) use stream::Key;
use stream::{End, Ids, Reset, Stream};

use super::frame::{self, Code};
use super::guard::{Allowance, Flood, Guard};
use super::hpack::{Decoder, Encoder};
use crate::http::head::RequestHead;
use crate::http::parse::HeadError;
use crate::telemetry::Wire;

/// Bytes of bodies that wait to be written to the connection: what one turn of reading brings, so that it leaves in one piece.
/// Heads and answers to questions come on top.
const ROOM: usize = 192 * 1024;
/// Memory of a stream or of the connection that is kept for the next one.
const KEEP: usize = 4 * 1024;
/// Streams that are kept as memory when they are over.
const SPARE: usize = 32;
/// Streams that we ended before the peer did, of which it may not have heard yet.
const REMEMBERED: usize = 256;
/// The window that everything begins with (RFC 9113, section 6.9.2).
const FIRST_WINDOW: u32 = 65_535;

/// What we allow the peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Streams that it may open at once.
    pub(super) streams: u32,
    /// Bytes of a stream that it may send ahead.
    pub(super) stream_window: u32,
    /// What that grows to while all that comes is used at once.
    pub(super) most_stream_window: u32,
    /// Bytes of all streams that it may send ahead.
    pub(super) connection_window: u32,
    /// What that grows to likewise.
    pub(super) most_connection_window: u32,
    /// Bytes of a head, counted as RFC 9113, section 6.5.2 does.
    pub(super) head_bytes: usize,
    /// Headers of a head.
    pub(super) headers: usize,
    /// Whether a client may ask for tunnels of other protocols (extended CONNECT, RFC 8441).
    pub(super) connect: bool,
    /// Whether a malformed request (RFC 9113, section 8.1.1) ends the connection, and not its stream alone.
    pub(super) malformed_ends: bool,
}

impl Limits {
    /// Bytes of all streams that the peer may send ahead in the beginning: a smaller window it cannot be told of.
    fn first_window(&self) -> u32 {
        self.connection_window.max(FIRST_WINDOW)
    }
}

/// Which side we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// Why a connection cannot go on: told to the peer with GOAWAY.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) code: Code,
    pub(super) what: &'static str,
}

/// A header block of which more is to come.
struct Block {
    id: u32,
    end: bool,
    dependent: bool,
    bytes: Vec<u8>,
}

/// Frames that tell of trouble, since they were last asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Streams that the peer reset.
    pub resets_received: u64,
    /// Streams that we reset.
    pub resets_sent: u64,
    /// Messages that broke the rules.
    pub malformed: u64,
    /// Heads beyond the limits.
    pub oversized: u64,
    /// How often the peer was told that the connection ends.
    pub farewells: u64,
}

/// A request that came: its stream, its head or why it is refused, and whether its body is over.
pub(super) struct Incoming {
    pub(super) key: Key,
    pub(super) head: Result<RequestHead, HeadError>,
}

/// A ping of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ping {
    None,
    Sent,
    Answered,
}

/// The state of one connection.
pub(super) struct Mux {
    role: Role,
    limits: Limits,
    guard: Guard,
    // What comes.
    preface: usize,
    greeted: bool,
    partial: Vec<u8>,
    block: Option<Block>,
    /// Bytes of the frames that brought the header block so far.
    block_wire: u64,
    /// Bytes of names and values of the last header block.
    block_plain: u64,
    decoder: Decoder,
    /// See [`Mux::effort`].
    effort: u64,
    recv_window: i64,
    /// What the peer may send ahead on all streams, as it is now.
    window: u32,
    used: u32,
    incoming: VecDeque<Incoming>,
    /// Streams that were opened and reset before they were taken up, in this turn: they are no longer open to the client.
    early_resets: usize,
    /// What the peer has done too often.
    flood: Option<Flood>,
    /// The driver of the connection has not seen it yet.
    overdrawn: bool,
    /// Streams that we ended because the peer broke the rules.
    faults: usize,
    // What goes.
    encoder: Encoder,
    out: Outbox,
    /// The last frame in `out`, while it can still be told to be the stream's last: the stream and where its flags stand.
    tail: Option<(u32, usize)>,
    send_window: i64,
    /// Streams that have bytes and a window.
    sendable: VecDeque<Key>,
    unflushed: bool,
    /// Bytes that the socket has taken.
    written: u64,
    /// Nothing is read until what waits is written.
    deaf: bool,
    /// The last read brought very much.
    read_much: bool,
    // Streams.
    streams: Vec<Stream>,
    free: Vec<u32>,
    ids: HashMap<u32, u32, BuildHasherDefault<Ids>>,
    /// The highest that the peer opened.
    last: u32,
    /// The next that we open.
    next: u32,
    reset_by_us: VecDeque<u32>,
    // What the peer allows.
    first_send_window: i64,
    max_frame: usize,
    max_streams: usize,
    // The end.
    leaving: Leaving,
    peer_leaves: bool,
    death: Option<Death>,
    ping: Ping,
    driver: Option<Waker>,
    /// The driver will look anyway.
    woken: bool,
    trouble: Trouble,
}

/// What a ping of ours carries: the keepalive's, and that which tells that the client has heard of the end.
const PING_ALIVE: [u8; 8] = *b"leno\0\0\0\x01";
const PING_LEAVE: [u8; 8] = *b"leno\0\0\0\x02";
/// Streams that are opened before the peer has said how many it takes.
const FIRST_STREAMS: usize = 100;

impl Mux {
    /// Begins a connection: our settings (and a client's preface) wait to be written.
    pub(super) fn new(role: Role, limits: Limits, allowance: Allowance) -> Self {
        let mut mux = Self {
            role,
            limits,
            guard: Guard::new(allowance),
            preface: if role == Role::Server { super::PREFACE.len() } else { 0 },
            greeted: false,
            partial: Vec::new(),
            block: None,
            block_wire: 0,
            block_plain: 0,
            decoder: Decoder::new(),
            effort: 0,
            recv_window: limits.first_window().into(),
            window: limits.first_window(),
            used: 0,
            incoming: VecDeque::new(),
            early_resets: 0,
            flood: None,
            overdrawn: false,
            faults: 0,
            encoder: Encoder::new(),
            out: Outbox::default(),
            tail: None,
            send_window: FIRST_WINDOW.into(),
            sendable: VecDeque::new(),
            unflushed: false,
            written: 0,
            deaf: false,
            read_much: false,
            streams: Vec::new(),
            free: Vec::new(),
            ids: HashMap::default(),
            last: 0,
            next: 1,
            reset_by_us: VecDeque::new(),
            first_send_window: FIRST_WINDOW.into(),
            max_frame: super::MAX_FRAME as usize,
            max_streams: FIRST_STREAMS,
            leaving: Leaving::No,
            peer_leaves: false,
            death: None,
            ping: Ping::None,
            driver: None,
            woken: false,
            trouble: Trouble::default(),
        };
        mux.greet();
        mux
    }

    fn greet(&mut self) {
        let own = match self.role {
            Role::Server => (frame::MAX_CONCURRENT_STREAMS, self.limits.streams),
            Role::Client => {
                self.out.bytes.extend_from_slice(super::PREFACE);
                (frame::ENABLE_PUSH, 0)
            }
        };
        let head_bytes = u32::try_from(self.limits.head_bytes).unwrap_or(u32::MAX);
        let mut payload = Vec::with_capacity(24);
        let settings = [
            Some(own),
            Some((frame::INITIAL_WINDOW_SIZE, self.limits.stream_window)),
            Some((frame::MAX_HEADER_LIST_SIZE, head_bytes)),
            self.limits.connect.then_some((frame::ENABLE_CONNECT_PROTOCOL, 1)),
        ];
        for (name, value) in settings.into_iter().flatten() {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        frame::small(&mut self.out.bytes, frame::SETTINGS, 0, 0, &payload);
        let more = self.limits.connection_window.saturating_sub(FIRST_WINDOW);
        if more > 0 {
            frame::small(&mut self.out.bytes, frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
    }

    /// Bytes that the socket has taken so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// How much work the heads were that have come so far: their bytes, and so many for each header and each head.
    pub(super) fn effort(&self) -> u64 {
        self.effort
    }

    /// The next request that came, also if it was reset in the meantime.
    pub(super) fn next_request(&mut self) -> Option<Incoming> {
        while let Some(incoming) = self.incoming.pop_front() {
            if self.get(incoming.key).is_some() {
                return Some(incoming);
            }
        }
        self.early_resets = 0;
        None
    }

    /// Whether a client may open another stream, as far as the server says.
    pub(super) fn takes_streams(&self) -> bool {
        !self.is_over() && self.ids.len() < self.max_streams
    }

    /// Whether no more streams can be opened: the server leaves, the connection is gone, or the numbers are used up.
    pub(super) fn is_over(&self) -> bool {
        self.peer_leaves || self.death.is_some() || self.next > 0x7fff_ffff
    }

    /// Whether the client's preface has come.
    pub(super) fn is_greeted(&self) -> bool {
        self.preface == 0
    }

    /// Asks for a sign of life.
    pub(super) fn send_ping(&mut self) {
        self.tail = None;
        self.ping = Ping::Sent;
        frame::small(&mut self.out.bytes, frame::PING, 0, 0, &PING_ALIVE);
    }

    /// Whether it came.
    pub(super) fn take_pong(&mut self) -> bool {
        let answered = self.ping == Ping::Answered;
        if answered {
            self.ping = Ping::None;
        }
        answered
    }

    /// Frames that told of trouble since this was last asked.
    pub(super) fn take_trouble(&mut self) -> Option<Trouble> {
        let trouble = std::mem::take(&mut self.trouble);
        (trouble != Trouble::default()).then_some(trouble)
    }

    /// Bytes of a stream's frames so far.
    pub(super) fn wire(&self, key: Key) -> Wire {
        self.get(key).map_or_else(Wire::default, |stream| stream.wire)
    }

    fn get(&self, key: Key) -> Option<&Stream> {
        self.streams.get(key.slot as usize).filter(|stream| stream.id == key.id)
    }

    fn get_mut(&mut self, key: Key) -> Option<&mut Stream> {
        self.streams.get_mut(key.slot as usize).filter(|stream| stream.id == key.id)
    }

    fn find(&self, id: u32) -> Option<Key> {
        self.ids.get(&id).map(|&slot| Key { slot, id })
    }

    fn open(&mut self, id: u32) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.streams.push(Stream::default());
            (self.streams.len() - 1) as u32
        });
        self.guard.opens();
        let stream = &mut self.streams[slot as usize];
        stream.id = id;
        // The peer may not have heard of a smaller window yet.
        stream.recv_window = self.limits.stream_window.max(FIRST_WINDOW).into();
        stream.window = self.limits.stream_window;
        stream.send_window = self.first_send_window;
        self.ids.insert(id, slot);
        Key { slot, id }
    }

    /// Forgets a stream; its memory serves the next one.
    fn forget(&mut self, key: Key) {
        let Some(stream) = self.get_mut(key) else { return };
        let mut data = std::mem::take(&mut stream.data);
        let mut waiting = std::mem::take(&mut stream.waiting);
        // What nobody will use any more counts as used.
        let unused = data.len() as u32;
        *stream = Stream::default();
        if key.slot < SPARE as u32 {
            for memory in [&mut data, &mut waiting] {
                memory.clear(KEEP);
            }
            stream.data = data;
            stream.waiting = waiting;
        }
        self.free.push(key.slot);
        self.ids.remove(&key.id);
        self.give_back(None, unused);
        if self.ids.is_empty() && self.streams.len() > SPARE {
            self.streams.truncate(SPARE);
            self.free.retain(|&slot| slot < SPARE as u32);
        }
    }

    /// What the peer has done too often, if that ended the connection.
    pub(super) fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// Whether the peer itself reset the stream.
    pub(super) fn was_reset(&self, key: Key) -> bool {
        self.get(key).is_some_and(|stream| matches!(stream.reset, Some(Reset::Peer(_))))
    }

    /// Whether we ended the stream because the peer broke the rules in it.
    pub(super) fn broke_rules(&self, key: Key) -> bool {
        self.get(key).is_some_and(|stream| matches!(stream.reset, Some(Reset::Own(_))))
    }
}
