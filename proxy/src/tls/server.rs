//! The accepting side of mutual TLS.

use std::time::{Duration, SystemTime};

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;

use super::{Alpn, CredentialStore, Established, IdentityError, Pace, PeerIdentity, TlsError};

/// Bytes that TLS buffers for one direction of a connection before it makes the writer wait.
pub(super) const BUFFER_LIMIT: usize = 32 * 1024;

/// Performs a handshake as server with the newest credentials. The client must show a certificate of the mesh.
///
/// # Errors
/// When there are no credentials yet, the handshake takes longer than `timeout`, it fails, or the client's certificate
/// names no identity of our trust domain.
pub async fn accept<IO>(
    io: IO,
    credentials: &CredentialStore,
    timeout: Duration,
    pace: &Pace,
) -> Result<Established<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let credentials = credentials.get().ok_or(TlsError::NoCertificate)?;
    let config = credentials.server_config();
    // Boxed: the state of a handshake would otherwise lie in the connection's future for its whole life.
    let handshake = Box::pin(async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let limited = |connection: &mut rustls::ServerConnection| connection.set_buffer_limit(Some(BUFFER_LIMIT));
        pace.run(start.into_stream_with(config, limited)).await
    });
    let stream = tokio::time::timeout(timeout, handshake)
        .await
        .map_err(|_| TlsError::Timeout(timeout))?
        .map_err(TlsError::Handshake)?;
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates().and_then(<[_]>::first).ok_or(IdentityError::Missing)?;
    let peer = PeerIdentity::of_valid_certificate(leaf, SystemTime::now())?;
    if peer.trust_domain() != credentials.identity().trust_domain() {
        let expected = credentials.identity().trust_domain().to_owned();
        return Err(IdentityError::TrustDomain { expected, found: peer.to_string() }.into());
    }
    let alpn = connection.alpn_protocol().and_then(Alpn::parse);
    let server_name = connection.server_name().map(Into::into);
    Ok(Established { stream: Box::new(stream.into()), peer, alpn, server_name })
}
