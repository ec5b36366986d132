//! Application protocols of service ports.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2, in plain text with prior knowledge.
    Http2,
    /// gRPC, which is HTTP/2.
    Grpc,
    /// gRPC, of clients that may speak gRPC-Web: their calls are made calls of gRPC.
    GrpcWeb,
    /// Anything else over TCP.
    Tcp,
    /// TLS of the application's own, which is passed on unopened.
    Tls,
    /// Not known: found out from the first bytes of each connection.
    #[default]
    Auto,
}

/// Ports whose usual protocols let the server speak first, which detection would stall.
const SERVER_FIRST: [u16; 5] = [25, 53, 853, 3306, 27017];

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Http2 => "HTTP/2",
            Self::Grpc => "gRPC",
            Self::GrpcWeb => "gRPC-Web",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Auto => "detected",
        })
    }
}

impl Protocol {
    /// The protocol of a service port: by `appProtocol`, then by the prefix of the port's name (`http-web` is HTTP), else
    /// by detection.
    pub fn of_port(app_protocol: Option<&str>, name: &str, number: u16) -> Self {
        if let Some(protocol) = app_protocol.and_then(Self::parse) {
            return protocol;
        }
        let prefix = name.split('-').next().unwrap_or_default();
        // The one protocol whose name has a dash.
        if name == "grpc-web" || name.starts_with("grpc-web-") {
            return Self::GrpcWeb;
        }
        match Self::parse(prefix) {
            Some(protocol) => protocol,
            None if SERVER_FIRST.contains(&number) => Self::Tcp,
            None => Self::Auto,
        }
    }

    /// A protocol by its name, in any case; `None` when the name says nothing.
    fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "http" | "kubernetes.io/ws" => Self::Http,
            "http2" | "h2c" | "kubernetes.io/h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "tls" | "https" | "kubernetes.io/wss" => Self::Tls,
            "tcp" | "mongo" | "mysql" | "redis" => Self::Tcp,
            _ => return None,
        })
    }

    /// Whether HTTP of any version is known to be spoken.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether it is known that no HTTP is spoken in the open.
    pub fn is_opaque(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls)
    }

    /// Whether HTTP/2 is known to be spoken.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_when_declared_then_app_protocol_wins_over_the_name() {
        assert_eq!(Protocol::of_port(Some("grpc"), "http-web", 80), Protocol::Grpc);
        assert_eq!(Protocol::of_port(None, "http-web", 80), Protocol::Http);
        assert_eq!(Protocol::of_port(None, "http", 80), Protocol::Http);
        assert_eq!(Protocol::of_port(None, "https", 443), Protocol::Tls);
        assert_eq!(Protocol::of_port(None, "grpc-web", 80), Protocol::GrpcWeb);
        assert_eq!(Protocol::of_port(Some("grpc-web"), "http", 80), Protocol::GrpcWeb);
        assert_eq!(Protocol::of_port(None, "grpc-website", 80), Protocol::Grpc);
        assert_eq!(Protocol::of_port(Some("kubernetes.io/h2c"), "", 80), Protocol::Http2);
        assert_eq!(Protocol::of_port(Some("kubernetes.io/ws"), "tcp", 80), Protocol::Http);
        assert_eq!(Protocol::of_port(Some("kubernetes.io/wss"), "http", 80), Protocol::Tls);
    }

    #[test]
    fn protocol_when_not_declared_then_detected_unless_the_server_speaks_first() {
        assert_eq!(Protocol::of_port(None, "web", 8080), Protocol::Auto);
        assert_eq!(Protocol::of_port(Some("example.com/own"), "web", 8080), Protocol::Auto);
        assert_eq!(Protocol::of_port(None, "", 3306), Protocol::Tcp);
    }
}
