//! Endpoints that are Unix sockets. Everything that knows endpoints by their addresses knows these by addresses of a block that nobody
//! has (RFC 6666), and shows their paths instead. Only what is configured is ever connected by its path.

use std::{
    fmt,
    net::{Ipv6Addr, SocketAddr},
    os::linux::net::SocketAddrExt as _,
    os::unix::net::SocketAddr as UnixAddr,
    sync::{Arc, PoisonError, RwLock},
};

/// Paths that this process can know.
const MAX: usize = 4096;
/// The block of addresses.
const BLOCK: [u16; 4] = [0x100, 0, 0, 0];

static PATHS: RwLock<Vec<Arc<str>>> = RwLock::new(Vec::new());

/// Why an endpoint cannot have a path.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
    /// It is no path of a socket.
    #[error("`{0}` is no path of a socket: {1}")]
    Path(String, #[source] std::io::Error),
    /// Too many have been seen.
    #[error("this proxy has seen {MAX} paths; restart it")]
    TooMany,
}

/// The path, and the address by which it is known for as long as the process lives. `@` begins an abstract name.
///
/// # Errors
/// When it is no path, or too many are known.
pub fn known(path: &str) -> Result<(Arc<str>, SocketAddr), PipeError> {
    let valid = match path.strip_prefix('@') {
        Some(name) => UnixAddr::from_abstract_name(name),
        None if path.is_empty() => Err(std::io::ErrorKind::InvalidInput.into()),
        None => UnixAddr::from_pathname(path),
    };
    valid.map_err(|error| PipeError::Path(path.to_owned(), error))?;
    let mut paths = PATHS.write().unwrap_or_else(PoisonError::into_inner);
    let index = match paths.iter().position(|known| &**known == path) {
        Some(index) => index,
        None if paths.len() >= MAX => return Err(PipeError::TooMany),
        None => {
            paths.push(path.into());
            paths.len() - 1
        }
    };
    let [a, b, c, d] = BLOCK;
    let address = Ipv6Addr::new(a, b, c, d, 0, 0, 0, index as u16);
    Ok((paths[index].clone(), SocketAddr::from((address, 0))))
}

/// The path that is known by this address.
pub fn path(address: SocketAddr) -> Option<Arc<str>> {
    let SocketAddr::V6(v6) = address else { return None };
    match v6.ip().segments() {
        [a, b, c, d, 0, 0, 0, index] if [a, b, c, d] == BLOCK && v6.port() == 0 => {
            PATHS.read().unwrap_or_else(PoisonError::into_inner).get(usize::from(index)).cloned()
        }
        _ => None,
    }
}

/// An endpoint's address as it is shown.
#[derive(Debug, Clone, Copy)]
pub struct Shown(pub SocketAddr);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match path(self.0) {
            Some(path) => f.write_str(&path),
            None => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipe_when_it_is_known_then_it_has_one_address_and_is_shown_by_its_path() {
        let (_, first) = known("/tmp/one").unwrap();
        let (_, other) = known("@one").unwrap();
        assert_ne!(first, other);
        assert_eq!(known("/tmp/one").unwrap().1, first);
        assert_eq!((Shown(first).to_string(), Shown(other).to_string()), ("/tmp/one".to_owned(), "@one".to_owned()));
        let plain: SocketAddr = "[100::1]:80".parse().unwrap();
        assert_eq!(Shown(plain).to_string(), "[100::1]:80");
    }

    #[test]
    fn pipe_when_no_socket_can_have_the_path_then_it_is_refused() {
        for path in ["", "/a\0b", "/x".repeat(60).as_str()] {
            assert!(matches!(known(path), Err(PipeError::Path(..))), "{path:?}");
        }
    }
}
