//! Reads the first bytes of a connection: is it TLS, which server is meant, which protocols are offered?
//!
//! Only looks; the handshake itself reads the same bytes again. Never allocates more than the hello's names.

/// Most bytes of a ClientHello that are looked at; a longer one counts as TLS without names.
pub const MAX_HELLO_BYTES: usize = 16 * 1024;
/// Most protocol names that are kept.
pub const MAX_PROTOCOLS: usize = 16;

/// What a ClientHello says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name, if there is one that is ASCII.
    pub server_name: Option<Box<str>>,
    /// The offered application protocols.
    pub alpn: Vec<Box<[u8]>>,
}

impl ClientHello {
    /// True when a mesh peer speaks: one of the mesh's own protocol names is offered.
    pub fn is_mesh(&self) -> bool {
        self.alpn.iter().any(|name| super::Alpn::parse(name).is_some())
    }
}

/// The verdict on the first bytes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspect {
    /// It does not begin like TLS.
    NotTls,
    /// It may become a ClientHello.
    NeedMore,
    /// It is TLS.
    Hello(ClientHello),
}

/// Looks at what has been received so far (peeked).
pub fn inspect(bytes: &[u8]) -> Inspect {
    // Record: type handshake (22), version 3.x, length; inside: ClientHello (1), length of three bytes.
    for (at, byte) in bytes.iter().take(6).enumerate() {
        let fits = match at {
            0 => *byte == 22,
            1 => *byte == 3,
            2 => *byte <= 4,
            5 => *byte == 1,
            _ => true,
        };
        if !fits {
            return Inspect::NotTls;
        }
    }
    // The hello may be spread over several records: gather their contents.
    let mut hello: Vec<u8> = Vec::new();
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_first_chunk::<5>() {
        if head[0] != 22 || head[1] != 3 {
            return if hello.is_empty() { Inspect::NotTls } else { Inspect::Hello(ClientHello::default()) };
        }
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 || length > MAX_HELLO_BYTES {
            return Inspect::NotTls;
        }
        let part = &after[..length.min(after.len())];
        hello.extend_from_slice(part);
        rest = &after[part.len()..];
        let wanted = wanted_length(&hello);
        if wanted.is_some_and(|wanted| wanted > MAX_HELLO_BYTES) {
            return Inspect::Hello(ClientHello::default());
        }
        if wanted.is_some_and(|wanted| hello.len() >= wanted) || part.len() < length {
            break;
        }
    }
    match wanted_length(&hello) {
        Some(wanted) if hello.len() >= wanted => Inspect::Hello(parse(&hello[4..wanted]).unwrap_or_default()),
        _ if bytes.len() >= MAX_HELLO_BYTES => Inspect::Hello(ClientHello::default()),
        _ => Inspect::NeedMore,
    }
}

fn wanted_length(hello: &[u8]) -> Option<usize> {
    let length = hello.get(1..4)?;
    Some(4 + ((usize::from(length[0]) << 16) | (usize::from(length[1]) << 8) | usize::from(length[2])))
}

/// Takes a vector with a length of `width` bytes off the front.
fn vector<'a>(input: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
    let length = input.get(..width)?.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
    let content = input.get(width..width + length)?;
    *input = &input[width + length..];
    Some(content)
}

/// The body of a ClientHello (RFC 8446, section 4.1.2); `None` when it is malformed, which the handshake will say.
fn parse(body: &[u8]) -> Option<ClientHello> {
    let mut rest = body.get(34..)?;
    vector(&mut rest, 1)?;
    vector(&mut rest, 2)?;
    vector(&mut rest, 1)?;
    let mut hello = ClientHello::default();
    if rest.is_empty() {
        return Some(hello);
    }
    let mut extensions = vector(&mut rest, 2)?;
    while !extensions.is_empty() {
        let kind = u16::from_be_bytes([*extensions.first()?, *extensions.get(1)?]);
        extensions = extensions.get(2..)?;
        let mut content = vector(&mut extensions, 2)?;
        match kind {
            0 => {
                let mut names = vector(&mut content, 2)?;
                if names.first() == Some(&0) {
                    names = &names[1..];
                    let name = vector(&mut names, 2)?;
                    hello.server_name = std::str::from_utf8(name)
                        .ok()
                        .filter(|name| !name.is_empty() && name.len() <= 255 && name.is_ascii())
                        .map(|name| name.to_ascii_lowercase().into());
                }
            }
            16 => {
                let mut names = vector(&mut content, 2)?;
                while !names.is_empty() && hello.alpn.len() < MAX_PROTOCOLS {
                    hello.alpn.push(vector(&mut names, 1)?.into());
                }
            }
            _ => {}
        }
    }
    Some(hello)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn hello(name: &'static str, protocols: &[&str]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn hello_when_whole_then_name_and_protocols_are_read() {
        let bytes = hello("Shop.example.com", &["leno-h2", "h2"]);
        let Inspect::Hello(hello) = inspect(&bytes) else { panic!("not recognised") };
        assert_eq!(hello.server_name.as_deref(), Some("shop.example.com"));
        assert_eq!(hello.alpn, vec![Box::from(&b"leno-h2"[..]), Box::from(&b"h2"[..])]);
        assert!(hello.is_mesh());
    }

    #[test]
    fn hello_when_cut_anywhere_then_more_is_wanted() {
        let bytes = hello("shop.example.com", &["h2"]);
        for end in 0..bytes.len() {
            assert_eq!(inspect(&bytes[..end]), Inspect::NeedMore, "{end}");
        }
    }

    #[test]
    fn hello_when_split_over_records_then_it_is_read_all_the_same() {
        let bytes = hello("shop.example.com", &["h2"]);
        let mut split = Vec::new();
        for part in bytes[5..].chunks(50) {
            split.extend_from_slice(&[22, 3, 1, 0, part.len() as u8]);
            split.extend_from_slice(part);
        }
        assert_eq!(inspect(&split), inspect(&bytes));
    }

    #[test]
    fn first_bytes_when_they_are_http_then_it_is_not_tls() {
        assert_eq!(inspect(b"GET / HTTP/1.1\r\n"), Inspect::NotTls);
        assert_eq!(inspect(b"PRI * HTTP/2.0\r\n"), Inspect::NotTls);
        assert_eq!(inspect(b""), Inspect::NeedMore);
    }

    proptest! {
        #[test]
        fn inspect_when_given_any_bytes_then_it_ends(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), tls in any::<bool>()) {
            if tls && bytes.len() > 6 {
                bytes[..6].copy_from_slice(&[22, 3, 1, 0, 200, 1]);
            }
            let _ = inspect(&bytes);
        }

        #[test]
        fn inspect_when_a_hello_is_damaged_then_it_ends(at in 0usize..500, byte in any::<u8>()) {
            let mut bytes = hello("shop.example.com", &["h2", "leno"]);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = inspect(&bytes);
        }
    }
}
