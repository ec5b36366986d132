//! Tunnels through an HTTP proxy: the endpoint is asked by CONNECT or POST, and the connection's bytes go where that leads.

use super::{
    Ends,
    copy::{Moved, ends_in_order},
};
use crate::{
    config::{HeaderOp, HeaderText, Priority, TcpTunnel},
    http::{
        self, BodyLength, ConnInfo, Piece, RequestHead, ResponseHead, SideError, Upstream, body::HIGH_WATER,
        buffer::Buffer, upstream::Up,
    },
    listen::{LAST_WORDS, Stream},
    pool::{ClusterState, ConnectError, Host, Ticket},
    telemetry::{CloseType, LogEntry, ResponseFlags, TcpRecorder},
    tls::PeerIdentity,
    worker::Worker,
};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime},
};
use tokio::io::AsyncWrite;

/// How long the endpoint may think about a tunnel where the filter has no idle timeout.
const LONGEST: Duration = Duration::from_secs(3600);
/// Pooled connections that turn out to be closed when a tunnel is asked for on them; the next attempt counts.
const MAX_STALE: u32 = 3;

/// Asks an endpoint for a tunnel, which counts among its requests.
///
/// # Errors
/// When there is no connection, or the endpoint does not grant it.
pub(super) async fn open(
    worker: &Worker,
    cluster: &Rc<ClusterState>,
    host: &Rc<Host>,
    conn: &ConnInfo,
    tunnel: &TcpTunnel,
    patience: Duration,
) -> Result<(Up, Ticket), ConnectError> {
    let address = host.address();
    let head = head(conn, tunnel);
    let patience = if patience.is_zero() { LONGEST } else { patience };
    let failed = |error: io::Error| ConnectError::Tcp(address, error);
    for stale in 0.. {
        let http2 = http::speaks_http2(false, cluster, host);
        let connecting =
            http::connection(worker, cluster, host, http2, Priority::Default, http::aim(conn, cluster, host, None));
        // Connecting has a limit of its own: what lasts longer waits for a place among the connections.
        let limit = 2 * cluster.config().connect_timeout;
        let connected = tokio::time::timeout(limit, connecting).await;
        let (mut up, counted) = connected.unwrap_or(Err(ConnectError::Overflow(address)))?;
        up.send_head(&head);
        if head.is_connect() {
            up.send_end(None);
        }
        let mut response = ResponseHead::default();
        let answer = poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = up.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            up.poll_head(cx, &mut response)
        });
        match tokio::time::timeout(patience, answer).await {
            Err(_) => return Err(ConnectError::Timeout(address, patience)),
            Ok(Err(error))
                if up.reused() && !up.answered() && stale < MAX_STALE && !matches!(error, SideError::Refused) =>
            {
                continue;
            }
            Ok(Err(error)) => return Err(failed(io::Error::new(io::ErrorKind::ConnectionReset, error))),
            Ok(Ok(())) => {}
        }
        let granted = match head.is_connect() {
            true => response.body == BodyLength::Tunnel,
            false => (200..300).contains(&response.status),
        };
        if !granted {
            return Err(ConnectError::Tunnel(address, response.status));
        }
        if head.is_connect() {
            up.tunnel();
        }
        return Ok((up, counted));
    }
    Err(failed(io::ErrorKind::ConnectionReset.into()))
}

/// The request for a connection's tunnel.
fn head(conn: &ConnInfo, tunnel: &TcpTunnel) -> RequestHead {
    let mut entry = LogEntry::new(SystemTime::now(), Duration::ZERO, (), ());
    entry.downstream_local = Some(conn.local);
    entry.downstream_remote = Some(conn.remote);
    entry.downstream_peer = conn.peer.as_ref().map(PeerIdentity::uri);
    entry.server_name = conn.server_name.as_deref();
    let value = |text: &HeaderText| match text {
        HeaderText::Literal(text) => text.as_bytes().to_vec(),
        HeaderText::Format { format, .. } => {
            let mut value = Vec::new();
            format.write_header(&entry, &mut value);
            value
        }
    };
    let mut head = RequestHead::default();
    head.set_authority(&value(&tunnel.host));
    match &tunnel.post {
        None => head.set_method(b"CONNECT"),
        Some(path) => {
            head.set_method(b"POST");
            head.set_path(path.as_bytes());
            head.body = BodyLength::Unknown;
        }
    }
    for op in &tunnel.headers {
        match op {
            HeaderOp::Remove(_) => head.headers.change(op, b""),
            HeaderOp::Set(_, text)
            | HeaderOp::Append(_, text)
            | HeaderOp::AddIfAbsent(_, text)
            | HeaderOp::SetIfPresent(_, text) => {
                let value = value(text);
                let keep = matches!(text, HeaderText::Literal(_) | HeaderText::Format { keep_empty: true, .. });
                if keep || !value.is_empty() {
                    head.headers.change(op, &value);
                }
            }
        }
    }
    head
}

/// One side failed.
enum Broken {
    Client,
    Endpoint,
    /// The endpoint has cut the tunnel off.
    Reset,
}

impl From<SideError> for Broken {
    fn from(error: SideError) -> Self {
        match error {
            SideError::Reset(_) => Self::Reset,
            SideError::Broken(error) if error.kind() == io::ErrorKind::ConnectionReset => Self::Reset,
            _ => Self::Endpoint,
        }
    }
}

/// From the client into the tunnel.
struct There {
    buffer: Buffer,
    ended: bool,
    count: u64,
}

impl There {
    fn poll(&mut self, cx: &mut Context<'_>, down: &mut Stream, up: &mut Up) -> Poll<Result<(), Broken>> {
        let broken = Broken::from;
        while !self.ended {
            if up.queued() >= HIGH_WATER {
                ready!(up.poll_flush(cx)).map_err(broken)?;
            }
            if self.buffer.is_empty() {
                match self.buffer.poll_read(down, cx) {
                    Poll::Ready(Ok(0)) => {
                        up.send_end(None);
                        self.ended = true;
                        break;
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        up.send_end(None);
                        self.ended = true;
                        break;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Client)),
                    Poll::Pending => {
                        ready!(up.poll_flush(cx)).map_err(broken)?;
                        return Poll::Pending;
                    }
                }
            }
            let count = self.buffer.len();
            up.send_data(self.buffer.bytes().into());
            self.buffer.consume(count);
            self.count += count as u64;
        }
        up.poll_flush(cx).map_err(broken)
    }
}

/// Out of the tunnel to the client.
#[derive(Default)]
struct Back {
    ended: bool,
    shut: bool,
    count: u64,
}

impl Back {
    fn poll(&mut self, cx: &mut Context<'_>, down: &mut Stream, up: &mut Up) -> Poll<Result<(), Broken>> {
        while !self.ended {
            match up.poll_body(cx) {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    let count = ready!(Pin::new(&mut *down).poll_write(cx, &data)).map_err(|_| Broken::Client)?;
                    if count == 0 {
                        return Poll::Ready(Err(Broken::Client));
                    }
                    up.consume(count);
                    self.count += count as u64;
                }
                Poll::Ready(Ok(Piece::End | Piece::Trailers(_))) => self.ended = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    // What TLS still holds back goes out before we wait.
                    ready!(Pin::new(&mut *down).poll_flush(cx)).map_err(|_| Broken::Client)?;
                    return Poll::Pending;
                }
            }
        }
        if !self.shut {
            ready!(Pin::new(&mut *down).poll_shutdown(cx)).map_err(|_| Broken::Client)?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// As [`super::copy::both`], through a tunnel.
pub(super) async fn both(
    down: &mut Stream,
    up: &mut Up,
    first: Buffer,
    mut ends: Ends<'_>,
    recorder: &TcpRecorder,
) -> Moved {
    let mut there = There { buffer: first, ended: false, count: 0 };
    let mut back = Back::default();
    let (mut last, mut seen) = (Instant::now(), 0);
    let flags = poll_fn(|cx| {
        let ways = (there.poll(cx, down, up), back.poll(cx, down, up));
        let total = there.count + back.count;
        if total != seen {
            seen = total;
            last = Instant::now();
        }
        match ways {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(ResponseFlags::none()),
            (Poll::Ready(Err(Broken::Client)), _) | (_, Poll::Ready(Err(Broken::Client))) => {
                return Poll::Ready(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
            }
            (Poll::Ready(Err(Broken::Reset)), _) | (_, Poll::Ready(Err(Broken::Reset))) => {
                return Poll::Ready(ResponseFlags::UPSTREAM_REMOTE_RESET);
            }
            (Poll::Ready(Err(Broken::Endpoint)), _) | (_, Poll::Ready(Err(Broken::Endpoint))) => {
                return Poll::Ready(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION);
            }
            _ => {}
        }
        ends.poll(cx, last, (there.count, back.count))
    })
    .await;
    let (mut down_close, mut up_close) = (CloseType::Normal, CloseType::Normal);
    if flags.contains(ResponseFlags::UPSTREAM_REMOTE_RESET) {
        (up_close, down_close) = (CloseType::RemoteReset, CloseType::LocalReset);
        // What had come before is passed on.
        let until = Instant::now() + LAST_WORDS;
        let _ = tokio::time::timeout_at(until.into(), poll_fn(|cx| back.poll(cx, down, up))).await;
        down.reset_at_end(until).await;
    }
    recorder.received(there.count);
    recorder.sent(back.count);
    if ends_in_order(flags) {
        down.say_goodbye().await;
    }
    Moved { received: there.count, sent: back.count, flags, down: down_close, up: up_close, ..Moved::default() }
}
