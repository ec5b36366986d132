//! The endpoint's side of a CONNECT that ends here: the endpoint gets the bytes of the tunnel, and no request.

use super::{
    body::{Chunk, Piece, SideError, Upstream},
    buffer::Buffer,
    call::Call,
    h1::down::{flush, queued},
    head::{BodyLength, RequestHead, ResponseHead},
    headers::Headers,
    pipeline::Cluster,
};
use crate::{
    config::Forward,
    listen::Stream,
    pool::{Birth, ConnectError, Connected, Host, Ticket},
    tcp,
    telemetry::Wire,
};
use std::{
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// Whether the route wants the request to end here and its bytes to go on.
pub(super) fn ends_here(request: &RequestHead, forward: &Forward) -> bool {
    let Some(connect) = &forward.connect else { return false };
    request.is_connect() || connect.allow_post && request.method() == b"POST"
}

/// A connection that carries the bytes of one tunnel. It is not used again.
#[derive(Debug)]
pub struct Raw {
    io: Stream,
    input: Buffer,
    output: Buffer,
    /// The client asked by CONNECT: the answer makes a tunnel. Otherwise the bytes are bodies.
    connect: bool,
    sent: bool,
    /// The client has said its last.
    ended: bool,
    shut: bool,
    /// How it came about.
    birth: Rc<Birth>,
    /// Its place among the cluster's connections.
    _ticket: Ticket,
}

/// Connects to an endpoint.
///
/// # Errors
/// As [`crate::pool::connect`], and when the cluster has no place for another connection.
pub(super) async fn connect(call: &Call<'_>, cluster: &Cluster, host: &Rc<Host>) -> Result<Raw, ConnectError> {
    let (Connected { stream: io, birth }, ticket) = tcp::connect_once(call.worker, cluster, host, call.conn).await?;
    Ok(Raw {
        io,
        input: Buffer::default(),
        output: Buffer::default(),
        connect: call.request.is_connect(),
        sent: false,
        ended: false,
        shut: false,
        birth,
        _ticket: ticket,
    })
}

impl Raw {
    /// This side's address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.io.local_address()
    }

    /// How it came about.
    pub fn birth(&self) -> Rc<Birth> {
        self.birth.clone()
    }

    /// An endpoint that speaks no HTTP answers nothing.
    pub fn answered(&self) -> bool {
        false
    }
}

impl Upstream for Raw {
    fn send_head(&mut self, _: &RequestHead) {}

    fn send_data(&mut self, data: Chunk<'_>) {
        self.output.push(&data);
    }

    fn send_end(&mut self, _: Option<&Headers>) {
        self.ended = true;
    }

    fn queued(&self) -> usize {
        queued(&self.io, &self.output)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        let before = self.output.len();
        let result = flush(&mut self.io, &mut self.output, cx);
        self.sent |= self.output.len() < before;
        ready!(result)?;
        // What ends before the tunnel begins is the request alone.
        if self.ended && !self.connect && !self.shut {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    /// The connection is the answer.
    fn poll_any_head(&mut self, _: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), SideError>> {
        head.clear();
        head.status = 200;
        head.body = if self.connect { BodyLength::Tunnel } else { BodyLength::Unknown };
        Poll::Ready(Ok(()))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, SideError>> {
        if self.input.is_empty() && ready!(self.input.poll_read(&mut self.io, cx))? == 0 {
            return Poll::Ready(Ok(Piece::End));
        }
        Poll::Ready(Ok(Piece::Data(self.input.bytes().into())))
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
    }

    fn tunnel(&mut self) {
        self.connect = false;
        self.ended = false;
    }

    fn sent_any(&self) -> bool {
        self.sent
    }

    fn reused(&self) -> bool {
        false
    }

    fn wire(&self) -> Wire {
        let sent = self.output.passed + self.output.len() as u64;
        Wire { received: self.input.passed, sent, ..Wire::default() }
    }
}
