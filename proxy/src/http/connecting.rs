//! The connection of an attempt: one that is open, or a new one, by the version of HTTP that the cluster and its endpoint speak.

use super::{
    ConnInfo,
    body::{Piece, Upstream},
    head::RequestHead,
    pipeline::Cluster,
    upstream::Up,
};
use crate::{
    config::{ClientTls, Priority, UpstreamProtocol},
    http::h1,
    http2,
    pool::{Admission, Aim, ConnectError, Connected, Host, Lease, Ticket, Via, connect_for},
    tls::Alpn,
    worker::Worker,
};
use std::{future::poll_fn, rc::Rc, task::Poll};

/// Bytes of an answer that are read only to keep its connection, at most.
const MAX_DISCARDED: usize = 16 * 1024;

/// Whether a request goes out by HTTP/2; `http2` tells whether it came so.
pub(crate) fn speaks_http2(http2: bool, cluster: &Cluster, host: &Host) -> bool {
    match cluster.config().protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Follow => http2,
        UpstreamProtocol::Agreed => host.agrees_on_http2(),
    }
}

/// The server name that the request decides about, where the cluster wants that: its host without the port, or what another
/// header says. An address is told to nobody, and must be in the endpoint's certificate all the same.
pub(crate) fn server_name(request: &RequestHead, cluster: &Cluster, host: &Host) -> Option<Rc<str>> {
    let (header, tls) = (cluster.config().server_name.as_deref()?, host.endpoint().tls.as_deref()?);
    let value = match header {
        ":authority" | "host" => request.authority(),
        name => request.headers.get(name).filter(|value| !value.is_empty()).unwrap_or(request.authority()),
    };
    let name = String::from_utf8_lossy(crate::route::without_port(value));
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let strict = match tls {
        ClientTls::Own(context) => context.settings().match_server_name,
        _ => false,
    };
    (strict || !name.is_empty() && name.parse::<std::net::IpAddr>().is_err()).then(|| name.into())
}

/// What a connection for requests of this client is for.
pub(crate) fn aim(conn: &ConnInfo, cluster: &Cluster, host: &Host, name: Option<Rc<str>>) -> Aim {
    let aim = Aim::new(name);
    if matches!(host.endpoint().tls.as_deref(), Some(ClientTls::Proxied(_))) {
        let via = Via { source: conn.remote, destination: conn.local, tlvs: conn.tlvs() };
        return aim.of_connection(conn.id).telling(&via);
    }
    match cluster.config().pool_per_client {
        true => aim.of_connection(conn.id),
        false => aim,
    }
}

/// A pooled or a new connection, and the request's place among those under way; one of HTTP/1 is new where the aim says so. Where the cluster or the endpoint has as many
/// connections as it may, one is waited for without end: who calls has a limit. Nothing is lost when the future is dropped.
pub(crate) async fn connection(
    worker: &Worker,
    cluster: &Cluster,
    host: &Rc<Host>,
    http2: bool,
    priority: Priority,
    aim: Aim,
) -> Result<(Up, Ticket), ConnectError> {
    // What is refused takes nothing of a connection.
    if host.has_room(aim.key()) && cluster.is_full(priority) && cluster.begin_request(priority).is_err() {
        return Err(ConnectError::Overflow(host.address()));
    }
    let up = any(worker, cluster, host, http2, priority, aim).await?;
    match (cluster.begin_request(priority), up) {
        (Ok(counted), up) => Ok((up, counted)),
        (Err(_), up) => {
            put_back(up, host, cluster);
            Err(ConnectError::Overflow(host.address()))
        }
    }
}

/// Keeps the connection of a request that is over, or was never sent, for another one, if it can serve one.
pub(crate) fn put_back(up: Up, host: &Host, cluster: &Cluster) {
    if let Up::Http1(lease) = up {
        if lease.connection.is_told_to_close() {
            cluster.stats().cx_close_notify.add(1);
        }
        host.give_back(lease, cluster.config().max_requests_per_connection);
        cluster.connection_is_idle();
    }
}

/// Keeps the connection of an answer that nobody reads, where all of it is here and small: a new connection costs more than that.
pub(crate) async fn discard(mut up: Up, host: &Host, cluster: &Cluster) {
    let whole = poll_fn(|cx| {
        let mut left = MAX_DISCARDED;
        Poll::Ready(loop {
            match up.poll_body(cx) {
                Poll::Ready(Ok(Piece::Data(data))) => {
                    let count = data.len();
                    if count > left {
                        break false;
                    }
                    left -= count;
                    up.consume(count);
                }
                Poll::Ready(Ok(Piece::End | Piece::Trailers(_))) => break true,
                Poll::Ready(Err(_)) | Poll::Pending => break false,
            }
        })
    })
    .await;
    if whole {
        put_back(up, host, cluster);
    }
}

async fn any(
    worker: &Worker,
    cluster: &Cluster,
    host: &Rc<Host>,
    http2: bool,
    priority: Priority,
    aim: Aim,
) -> Result<Up, ConnectError> {
    if http2 {
        let (pool, most) = (host.http2(aim.key()), cluster.config().max_requests_per_connection);
        let taken = pool.take(most);
        if most > 0 {
            cluster.stats().cx_max_requests.add(pool.take_worn_out());
        }
        if let Some(stream) = taken {
            return Ok(Up::Http2(stream));
        }
    } else {
        // Where none of the pool is wanted one of it gives its place.
        let pooled = idle(cluster, host, &aim).await;
        if let Some(lease) = pooled.filter(|_| !aim.is_unpooled()) {
            return Ok(Up::Http1(lease));
        }
    }
    // Boxed: connecting is rare, and its state would make every request's future large.
    if !http2 {
        match Box::pin(open(worker, cluster, host, priority, aim.clone())).await {
            // It has changed its mind since it was asked last.
            Err(_) if is_agreed(cluster) && host.agrees_on_http2() => {}
            opened => return opened.map(Up::Http1),
        }
    }
    Box::pin(open_http2(worker, cluster, host, priority, aim)).await
}

/// An idle connection of HTTP/1 for this aim.
async fn idle(cluster: &Cluster, host: &Host, aim: &Aim) -> Option<Lease> {
    poll_fn(|cx| Poll::Ready(host.take_idle(cx, aim.key(), cluster.config().idle_timeout))).await
}

fn is_agreed(cluster: &Cluster) -> bool {
    cluster.config().protocol == UpstreamProtocol::Agreed
}

async fn open(
    worker: &Worker,
    cluster: &Cluster,
    host: &Rc<Host>,
    priority: Priority,
    aim: Aim,
) -> Result<Lease, ConnectError> {
    let waiting = cluster.begin_wait(priority).map_err(|_| ConnectError::Overflow(host.address()))?;
    let opened = open_waiting(worker, cluster, host, priority, aim).await;
    waiting.settle();
    opened
}

async fn open_waiting(
    worker: &Worker,
    cluster: &Cluster,
    host: &Rc<Host>,
    priority: Priority,
    aim: Aim,
) -> Result<Lease, ConnectError> {
    let config = cluster.config();
    loop {
        match cluster.begin_connection(host, priority, aim.key()).await {
            Admission::Connect(ticket) => {
                let connected = connect_for(config, host, &aim, Alpn::Http1, &worker.tls).await;
                let Connected { stream, birth } = connected.inspect_err(|error| ticket.failed(error))?;
                ticket.connected();
                if is_agreed(cluster) && stream.is_for_http2() {
                    host.note_agreed(true);
                    return Err(ConnectError::Tcp(host.address(), std::io::ErrorKind::Unsupported.into()));
                }
                let until = cluster.serves_until(&worker.rng);
                let connection = h1::up::Connection::new(stream, config.http1).born(birth);
                return Ok(host.lease(connection, ticket, until, aim.key().map(Into::into)));
            }
            Admission::UseIdle => {
                if let Some(lease) = idle(cluster, host, &aim).await {
                    return Ok(lease);
                }
            }
        }
    }
}

/// What came instead of a connection of HTTP/2.
enum Instead {
    Failed(ConnectError),
    /// The endpoint agreed on HTTP/1.
    Http1(Box<Lease>),
    /// A stream of another connection, which had no room before.
    Stream(http2::Up),
}

impl From<ConnectError> for Instead {
    fn from(error: ConnectError) -> Self {
        Self::Failed(error)
    }
}

/// A stream on an HTTP/2 connection that is made now, or by another request just now; a connection of HTTP/1, where the endpoint
/// may choose and agrees on that.
async fn open_http2(
    worker: &Worker,
    cluster: &Cluster,
    host: &Rc<Host>,
    priority: Priority,
    aim: Aim,
) -> Result<Up, ConnectError> {
    let config = cluster.config();
    let (address, most) = (host.address(), config.max_requests_per_connection);
    let pool = host.http2(aim.key());
    let waiting = cluster.begin_wait(priority).map_err(|_| ConnectError::Overflow(address))?;
    let dial = async || {
        let ticket = loop {
            match cluster.begin_connection(host, priority, aim.key()).await {
                Admission::Connect(ticket) => break ticket,
                Admission::UseIdle => {
                    if let Some(stream) = pool.take(most) {
                        return Err(Instead::Stream(stream));
                    }
                    // A connection of HTTP/1 is of no use here, but its place is.
                    host.drop_idle();
                }
            }
        };
        let connected = connect_for(config, host, &aim, Alpn::H2, &worker.tls).await;
        let Connected { stream, birth } = connected.inspect_err(|error| ticket.failed(error))?;
        ticket.connected();
        if is_agreed(cluster) {
            host.note_agreed(stream.is_for_http2());
            if !stream.is_for_http2() {
                let until = cluster.serves_until(&worker.rng);
                let connection = h1::up::Connection::new(stream, config.http1).born(birth);
                return Err(Instead::Http1(Box::new(host.lease(connection, ticket, until, aim.key().map(Into::into)))));
            }
        }
        let (of_mesh, local, info) = (birth.of_mesh, stream.local_address(), stream.tls_info());
        let heads =
            (config.http1.max_head_bytes.unwrap_or(http2::MAX_RESPONSE_HEAD as usize), config.http1.max_headers);
        let (connection, drive) =
            http2::connect_with(stream, of_mesh, local, config.http2, heads, config.http2_keepalive)
                .await
                .map_err(|error| ConnectError::Tcp(address, error))?;
        connection.know(info, birth);
        connection.serve_until(cluster.serves_until(&worker.rng).map(Into::into));
        tokio::task::spawn_local(async move {
            ticket.ends(drive.await);
        });
        Ok(connection)
    };
    let opened = pool.acquire(most, dial).await;
    waiting.settle();
    match opened {
        Ok(stream) => Ok(Up::Http2(stream)),
        Err(Instead::Http1(lease)) => Ok(Up::Http1(*lease)),
        Err(Instead::Stream(stream)) => Ok(Up::Http2(stream)),
        Err(Instead::Failed(error)) => Err(error),
    }
}
