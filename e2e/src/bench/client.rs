//! Load where no established tool fits: client certificates, a fixed rate whose latency counts from when a request was due,
//! bulk TCP, gRPC streams, many idle connections.

use crate::differential::{case::ClientTls, tls::Pki};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rustls_pki_types::ServerName;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Latencies in microseconds, and how much was done in which time.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Microseconds, sorted by [`Samples::sum`].
    pub latencies: Vec<u32>,
    /// Requests (or messages, or MiB).
    pub done: u64,
    /// Requests that failed.
    pub failed: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Samples {
    /// Of several threads that ran at the same time.
    pub fn sum(parts: impl IntoIterator<Item = Samples>) -> Samples {
        let mut all = Samples::default();
        for part in parts {
            all.latencies.extend(part.latencies);
            all.done += part.done;
            all.failed += part.failed;
            all.seconds = all.seconds.max(part.seconds);
        }
        all.latencies.sort_unstable();
        all
    }

    /// The latency below which so large a part (0 to 1) of the requests stayed, in microseconds.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let last = self.latencies.len().checked_sub(1)?;
        self.latencies.get((last as f64 * part).round() as usize).map(|&us| f64::from(us))
    }

    /// How many a second.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.seconds.max(1e-9)
    }
}

/// HTTP/1.1 load.
#[derive(Clone)]
pub struct Load {
    /// The proxy.
    pub to: SocketAddr,
    /// The path.
    pub path: &'static str,
    /// Connections, a thread each.
    pub connections: usize,
    /// TLS, and whether a client certificate is shown.
    pub tls: Option<(Arc<Pki>, bool)>,
    /// Requests a second altogether; none for as many as there can be.
    pub rate: Option<f64>,
    /// For how long.
    pub time: Duration,
}

/// A blocking connection.
trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

impl Load {
    fn connect(&self) -> Result<Box<dyn Wire>> {
        let stream = TcpStream::connect_timeout(&self.to, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let Some((pki, own)) = &self.tls else { return Ok(Box::new(stream)) };
        let certificate = own.then(|| "client".to_owned());
        let tls = ClientTls { sni: "localhost".to_owned(), alpn: vec!["http/1.1".to_owned()], certificate };
        let session = rustls::ClientConnection::new(pki.client(&tls)?, ServerName::try_from("localhost")?)?;
        Ok(Box::new(rustls::StreamOwned::new(session, stream)))
    }

    /// Sends it.
    ///
    /// # Errors
    /// Where no connection can be made, or none of the requests succeeds.
    pub fn run(&self) -> Result<Samples> {
        let start = Instant::now() + Duration::from_millis(20);
        let threads: Vec<_> = (0..self.connections)
            .map(|number| {
                let load = self.clone();
                thread::Builder::new().stack_size(256 * 1024).spawn(move || load.connection(number, start))
            })
            .collect::<Result<_, _>>()?;
        let parts: Result<Vec<Samples>> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread of the client ended"))?)
            .collect();
        let all = Samples::sum(parts?);
        ensure!(all.done > 0, "no request succeeded");
        Ok(all)
    }

    fn connection(&self, number: usize, start: Instant) -> Result<Samples> {
        let mut wire = self.connect()?;
        let request = format!("GET {} HTTP/1.1\r\nhost: bench.example\r\nuser-agent: bench\r\n\r\n", self.path);
        let mut samples = Samples::default();
        let gap = self.rate.map(|rate| Duration::from_secs_f64(self.connections as f64 / rate));
        // Connections take turns, so that the whole is even.
        let mut due = start + gap.unwrap_or_default().mul_f64(number as f64 / self.connections as f64);
        let mut buffer = vec![0; 128 * 1024];
        let end = start + self.time;
        while Instant::now() < end && (gap.is_none() || due < end) {
            let free = Instant::now();
            if let Some(wait) = due.checked_duration_since(free).filter(|_| gap.is_some()) {
                thread::sleep(wait);
            }
            // A request that waited for the one before it has waited since it was due; the clock's own delay is not counted.
            let from = if gap.is_some() && free > due { due } else { Instant::now() };
            match exchange(&mut *wire, request.as_bytes(), &mut buffer) {
                Ok(()) => {
                    samples.done += 1;
                    samples.latencies.push(u32::try_from(from.elapsed().as_micros()).unwrap_or(u32::MAX));
                }
                Err(_) => {
                    samples.failed += 1;
                    wire = self.connect()?;
                }
            }
            if let Some(gap) = gap {
                due += gap;
            }
        }
        samples.seconds = start.elapsed().as_secs_f64();
        Ok(samples)
    }

    /// Opens so many connections, sends one request on each, and holds them.
    ///
    /// # Errors
    /// Where one fails.
    pub fn idle(&self, count: usize) -> Result<Vec<Box<dyn Read + Send>>> {
        let request = format!("GET {} HTTP/1.1\r\nhost: bench.example\r\n\r\n", self.path);
        let mut buffer = vec![0; 128 * 1024];
        let mut held: Vec<Box<dyn Read + Send>> = Vec::with_capacity(count);
        for number in 0..count {
            let mut wire = self.connect().with_context(|| format!("connection {number}"))?;
            exchange(&mut *wire, request.as_bytes(), &mut buffer).with_context(|| format!("connection {number}"))?;
            held.push(Box::new(wire));
        }
        Ok(held)
    }

    /// One answer: the status and the body.
    ///
    /// # Errors
    /// Where there is none.
    pub fn once(&self) -> Result<(u16, Vec<u8>)> {
        let mut wire = self.connect()?;
        write!(wire, "GET {} HTTP/1.1\r\nhost: bench.example\r\nconnection: close\r\n\r\n", self.path)?;
        wire.flush()?;
        let mut answer = Vec::new();
        // A peer that closes without TLS's farewell has still answered.
        wire.read_to_end(&mut answer).ok();
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("the answer has no head")?;
        let status = std::str::from_utf8(&answer[..end])?.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, answer.split_off(end + 4)))
    }
}

fn exchange(wire: &mut dyn Wire, request: &[u8], buffer: &mut [u8]) -> Result<()> {
    wire.write_all(request)?;
    wire.flush()?;
    let mut filled = 0;
    let (mut end, mut whole) = (0, usize::MAX);
    while filled < whole {
        let count = wire.read(&mut buffer[filled..])?;
        ensure!(count > 0, "the connection ended");
        filled += count;
        if end == 0
            && let Some(at) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n")
        {
            end = at + 4;
            let head = std::str::from_utf8(&buffer[..at])?;
            ensure!(head.starts_with("HTTP/1.1 200"), "status");
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            whole = end + length.context("no length")?;
            ensure!(whole <= buffer.len(), "too long");
        }
    }
    Ok(())
}

/// Reads from a source as fast as it can; counts MiB.
///
/// # Errors
/// Where there is no connection.
pub fn bulk(to: SocketAddr, connections: usize, time: Duration) -> Result<Samples> {
    let threads: Vec<_> = (0..connections)
        .map(|_| {
            thread::spawn(move || -> Result<Samples> {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut buffer = vec![0; 256 * 1024];
                let (start, mut bytes) = (Instant::now(), 0u64);
                while start.elapsed() < time {
                    bytes += stream.read(&mut buffer)? as u64;
                }
                Ok(Samples { done: bytes >> 20, seconds: start.elapsed().as_secs_f64(), ..Samples::default() })
            })
        })
        .collect();
    let parts: Result<Vec<Samples>> = threads
        .into_iter()
        .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread of the client ended"))?)
        .collect();
    Ok(Samples::sum(parts?))
}

/// gRPC streams on which one message at a time goes to and fro; counts messages.
///
/// # Errors
/// Where a stream cannot be opened.
pub fn streams(to: SocketAddr, connections: usize, each: usize, time: Duration) -> Result<Samples> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let stream = tokio::net::TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = h2::client::handshake(stream).await?;
            tokio::spawn(connection);
            for _ in 0..each {
                tasks.spawn(stream_messages(sender.clone(), time));
            }
        }
        let mut parts = Vec::new();
        while let Some(part) = tasks.join_next().await {
            parts.push(part??);
        }
        Ok(Samples::sum(parts))
    })
}

/// One answer over HTTP/2: the status and the body.
///
/// # Errors
/// Where there is none.
pub fn once2(to: SocketAddr, path: &str) -> Result<(u16, Vec<u8>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let exchange = async {
            let (sender, connection) = h2::client::handshake(tokio::net::TcpStream::connect(to).await?).await?;
            tokio::spawn(connection);
            let request = http::Request::get(format!("http://bench.example{path}")).body(())?;
            let (response, _) = sender.ready().await?.send_request(request, true)?;
            let (head, mut body) = response.await?.into_parts();
            let mut content = Vec::new();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                content.extend_from_slice(&data);
            }
            Ok((head.status.as_u16(), content))
        };
        tokio::time::timeout(PATIENCE, exchange).await?
    })
}

async fn stream_messages(sender: h2::client::SendRequest<Bytes>, time: Duration) -> Result<Samples> {
    let mut sender = sender.ready().await?;
    let request = http::Request::builder()
        .method("POST")
        .uri("http://bench.example/bench.Echo/Stream")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (response, mut send) = sender.send_request(request.body(())?, false)?;
    // The five bytes of gRPC's framing, and a message of 100.
    let message = Bytes::from([&[0, 0, 0, 0, 100][..], &[7; 100]].concat());
    send.send_data(message.clone(), false)?;
    let mut body = tokio::time::timeout(PATIENCE, response).await??.into_body();
    let mut samples = Samples::default();
    let (start, mut sent, mut got) = (Instant::now(), Instant::now(), 0);
    while start.elapsed() < time {
        let data = tokio::time::timeout(PATIENCE, body.data()).await?.context("the stream ended")??;
        body.flow_control().release_capacity(data.len())?;
        got += data.len();
        if got >= message.len() {
            got -= message.len();
            samples.done += 1;
            samples.latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
            sent = Instant::now();
            send.send_data(message.clone(), false)?;
        }
    }
    samples.seconds = start.elapsed().as_secs_f64();
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_when_there_are_samples_then_by_rank() {
        let samples = Samples::sum([Samples { latencies: (1..=101).rev().collect(), ..Samples::default() }]);
        assert_eq!(samples.quantile(0.5), Some(51.0));
        assert_eq!(samples.quantile(0.99), Some(100.0));
        assert_eq!(Samples::default().quantile(0.5), None);
    }
}
