//! The back end of all proxies: as little work as possible, so that the proxy is what is measured.

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use std::{net::SocketAddr, sync::mpsc, thread};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The answers by path.
pub const PATHS: [(&str, usize); 3] = [("/0", 0), ("/1k", 1024), ("/64k", 64 * 1024)];

/// Where it listens.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// HTTP/1.1.
    pub http1: SocketAddr,
    /// HTTP/2 in clear text, gRPC too: every message is given back.
    pub http2: SocketAddr,
    /// Sends zeros without end.
    pub source: SocketAddr,
}

/// The body of an answer of so many bytes.
pub fn body(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| b'a' + (at % 26) as u8).collect()
}

/// Starts it on a thread of its own, tied to `core`; it ends with the process.
///
/// # Errors
/// Where it cannot listen.
pub fn start(core: usize) -> Result<Backend> {
    let (tell, told) = mpsc::channel();
    thread::Builder::new().name("back-end".to_owned()).spawn(move || -> Result<()> {
        super::usage::pin(core)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let [http1, http2, source] = [listen().await?, listen().await?, listen().await?];
            tell.send(Backend {
                http1: http1.local_addr()?,
                http2: http2.local_addr()?,
                source: source.local_addr()?,
            })?;
            tokio::join!(
                serve(http1, |stream| async {
                    answer1(stream).await.ok();
                }),
                serve(http2, |stream| async {
                    answer2(stream).await.ok();
                }),
                serve(source, |stream| async {
                    pour(stream).await.ok();
                }),
            );
            Ok(())
        })
    })?;
    told.recv().context("the back end does not start")
}

async fn listen() -> Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    Ok(socket.listen(4096)?)
}

async fn serve<F: Future<Output = ()> + 'static>(listener: TcpListener, work: impl Fn(TcpStream) -> F) {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).ok();
                tokio::task::spawn_local(work(stream));
            }
        })
        .await;
}

/// Requests without bodies, one after the other.
async fn answer1(mut stream: TcpStream) -> Result<()> {
    let answers: Vec<(Vec<u8>, Vec<u8>)> = PATHS
        .iter()
        .map(|(path, bytes)| {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {bytes}\r\n\r\n");
            (format!("GET {path} ").into_bytes(), [head.into_bytes(), body(*bytes)].concat())
        })
        .collect();
    let mut buffer = BytesMut::with_capacity(4096);
    while stream.read_buf(&mut buffer).await? > 0 {
        while let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = buffer.split_to(end + 4);
            match answers.iter().find(|(start, _)| head.starts_with(start)) {
                Some((_, answer)) => stream.write_all(answer).await?,
                None => stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?,
            }
        }
    }
    Ok(())
}

async fn answer2(stream: TcpStream) -> Result<()> {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(16 << 20).max_concurrent_streams(4096);
    let mut connection = builder.handshake(stream).await?;
    while let Some(next) = connection.accept().await {
        let (request, respond) = next?;
        tokio::task::spawn_local(async move { stream2(request, respond).await.ok() });
    }
    Ok(())
}

async fn stream2(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) -> Result<()> {
    let (parts, mut incoming) = request.into_parts();
    if parts.method == http::Method::GET {
        let path = parts.uri.path();
        let bytes = PATHS.iter().find(|(known, _)| *known == path).map_or(0, |(_, bytes)| *bytes);
        let answer = http::Response::builder().header("content-type", "text/plain").header("content-length", bytes);
        let mut send = respond.send_response(answer.body(())?, bytes == 0)?;
        if bytes > 0 {
            send.send_data(body(bytes).into(), true)?;
        }
        return Ok(());
    }
    // gRPC: every message goes back, then the status.
    let answer = http::Response::builder().header("content-type", "application/grpc");
    let mut send = respond.send_response(answer.body(())?, false)?;
    while let Some(data) = incoming.data().await {
        let data = data?;
        incoming.flow_control().release_capacity(data.len())?;
        send.send_data(data, false)?;
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    send.send_trailers(trailers)?;
    Ok(())
}

async fn pour(mut stream: TcpStream) -> Result<()> {
    let zeros = vec![0; 256 * 1024];
    loop {
        stream.write_all(&zeros).await?;
    }
}
