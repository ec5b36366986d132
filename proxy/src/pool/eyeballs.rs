//! Which of an endpoint's addresses is connected: the first that answers (Happy Eyeballs, RFC 8305).

use super::{ConnectError, connect};
use crate::config::Cluster;
use std::{future::poll_fn, io, net::SocketAddr, pin::Pin, task::Poll, time::Duration};
use tokio::net::TcpStream;

/// How long an address may take before the next one is tried beside it. RFC 8305, section 5, asks for 100 ms to 2 s; Envoy waits as
/// long.
const DELAY: Duration = Duration::from_millis(300);

/// A connection to an address that is under way.
type Attempt<'a> = (SocketAddr, Pin<Box<dyn Future<Output = io::Result<TcpStream>> + 'a>>);

/// Tries the addresses in their order, the next one when one has failed or takes too long. Has no limit of its own.
///
/// # Errors
/// The last failure, when all of them have failed, and when there is none.
pub(super) async fn first(addresses: &[SocketAddr], cluster: &Cluster) -> Result<TcpStream, ConnectError> {
    let mut rest = addresses.iter();
    let mut attempts: Vec<Attempt<'_>> = Vec::new();
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    let mut failure = ConnectError::Tcp(unknown, io::ErrorKind::AddrNotAvailable.into());
    loop {
        if let Some(address) = rest.next() {
            match connect::tcp(*address, cluster) {
                Ok(socket) => attempts.push((*address, Box::pin(socket.connect(*address)))),
                Err(error) => failure = error,
            }
        }
        if attempts.is_empty() {
            match rest.len() {
                0 => return Err(failure),
                _ => continue,
            }
        }
        let answered = poll_fn(|cx| {
            for (index, (_, attempt)) in attempts.iter_mut().enumerate() {
                if let Poll::Ready(result) = attempt.as_mut().poll(cx) {
                    return Poll::Ready((index, result));
                }
            }
            Poll::Pending
        });
        let answered = match rest.len() {
            0 => Some(answered.await),
            _ => tokio::time::timeout(DELAY, answered).await.ok(),
        };
        match answered {
            Some((_, Ok(stream))) => return Ok(stream),
            Some((index, Err(error))) => {
                let (address, _) = attempts.swap_remove(index);
                failure = ConnectError::Tcp(address, error);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClusterId, ClusterKind};
    use std::time::Instant;
    use tokio::net::TcpListener;

    fn cluster() -> Cluster {
        Cluster::new(ClusterId(0), "c", ClusterKind::Static)
    }

    /// A socket that has an address and does not listen there.
    fn refusing() -> (socket2::Socket, SocketAddr) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    #[tokio::test]
    async fn addresses_when_some_refuse_then_the_next_is_connected_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let ((_one, one), (_last, last)) = (refusing(), refusing());
        let began = Instant::now();
        let stream = first(&[one, last, good], &cluster()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(began.elapsed() < 2 * DELAY);
        let failed = first(&[one, last], &cluster()).await;
        assert!(matches!(failed, Err(ConnectError::Tcp(address, _)) if address == last), "{failed:?}");
        assert!(first(&[], &cluster()).await.is_err());
    }

    #[tokio::test]
    async fn addresses_when_one_is_silent_then_the_next_is_tried_beside_it() {
        // With a full queue a listener answers nobody.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        full.listen(0).unwrap();
        let silent = full.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&silent, DELAY / 3) {
            waiting.push(stream);
            assert!(waiting.len() < 100, "the queue is never full");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let began = Instant::now();
        let stream = first(&[silent, good], &cluster()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(began.elapsed() >= DELAY);
    }
}
