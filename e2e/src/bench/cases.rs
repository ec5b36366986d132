//! What is measured.

use super::shapes::Shape;

/// A case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name in the table.
    pub name: &'static str,
    /// What the proxy is.
    pub shape: Shape,
    /// What the client does.
    pub load: Load,
    /// The proxy's threads.
    pub workers: usize,
    /// It is one of the five of the quick run.
    pub quick: bool,
    /// Latency is measured at a fixed rate as well, system calls counted.
    pub rated: bool,
}

/// What the client does.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// HTTP/1.1 requests for a path on so many connections.
    Http1(&'static str, usize),
    /// A new connection, and TLS handshake, for every request.
    Handshakes(usize),
    /// HTTP/2 requests for a path on so many connections with so many streams each.
    Http2(&'static str, usize, usize),
    /// gRPC calls of one message.
    Unary(usize, usize),
    /// gRPC streams that stay, messages to and fro.
    Streams(usize, usize),
    /// Bytes on so many connections; a MiB counts as a request.
    Bulk(usize),
    /// Nothing but having started.
    Nothing,
    /// So many connections that say nothing after their first request.
    Idle(usize),
}

impl Load {
    /// The connections that it uses.
    pub fn connections(self) -> usize {
        match self {
            Load::Http1(_, count) | Load::Handshakes(count) | Load::Bulk(count) | Load::Idle(count) => count,
            Load::Http2(_, count, _) | Load::Unary(count, _) | Load::Streams(count, _) => count,
            Load::Nothing => 0,
        }
    }

    /// What is counted as a request.
    pub fn unit(self) -> &'static str {
        match self {
            Load::Bulk(_) => "MiB",
            Load::Streams(..) => "message",
            Load::Handshakes(_) => "connection",
            _ => "request",
        }
    }
}

const fn case(name: &'static str, shape: Shape, load: Load) -> Case {
    Case { name, shape, load, workers: 1, quick: false, rated: false }
}

const fn quick(case: Case) -> Case {
    Case { quick: true, ..case }
}

const fn rated(case: Case) -> Case {
    Case { rated: true, ..case }
}

const fn two(case: Case) -> Case {
    Case { workers: 2, ..case }
}

/// All cases, in the order of the table.
pub const CASES: [Case; 28] = [
    case("http1-0-c1", Shape::Http1, Load::Http1("/0", 1)),
    case("http1-0-c32", Shape::Http1, Load::Http1("/0", 32)),
    case("http1-0-c512", Shape::Http1, Load::Http1("/0", 512)),
    case("http1-1k-c1", Shape::Http1, Load::Http1("/1k", 1)),
    quick(rated(case("http1-1k-c32", Shape::Http1, Load::Http1("/1k", 32)))),
    case("http1-1k-c512", Shape::Http1, Load::Http1("/1k", 512)),
    case("http1-64k-c1", Shape::Http1, Load::Http1("/64k", 1)),
    case("http1-64k-c32", Shape::Http1, Load::Http1("/64k", 32)),
    case("http1-64k-c512", Shape::Http1, Load::Http1("/64k", 512)),
    quick(rated(case("http2-1k", Shape::Http2, Load::Http2("/1k", 4, 8)))),
    case("http2-64k", Shape::Http2, Load::Http2("/64k", 4, 8)),
    quick(rated(case("grpc-unary", Shape::Http2, Load::Unary(4, 8)))),
    case("grpc-stream", Shape::Http2, Load::Streams(4, 8)),
    quick(case("tcp-bulk", Shape::Tcp, Load::Bulk(4))),
    rated(case("tls-1k-c32", Shape::Tls, Load::Http1("/1k", 32))),
    case("tls-64k-c32", Shape::Tls, Load::Http1("/64k", 32)),
    quick(rated(case("mtls-1k-c32", Shape::Mtls, Load::Http1("/1k", 32)))),
    case("tls-handshakes", Shape::Tls, Load::Handshakes(16)),
    rated(case("two-sidecars-1k-c32", Shape::Outbound, Load::Http1("/1k", 32))),
    case("routes-5000-clusters-1000", Shape::Routes(5000, 1000), Load::Http1("/1k", 32)),
    case("routes-5000-clusters-1000-memory", Shape::Routes(5000, 1000), Load::Nothing),
    case("idle", Shape::Http1, Load::Nothing),
    case("idle-connections-10000", Shape::Http1, Load::Idle(10_000)),
    case("idle-connections-10000-tls", Shape::Tls, Load::Idle(10_000)),
    two(case("two-workers-http1-1k-c32", Shape::Http1, Load::Http1("/1k", 32))),
    two(case("two-workers-http2-4-connections", Shape::Http2, Load::Http2("/1k", 4, 8))),
    two(case("two-workers-tls-1k-c32", Shape::Tls, Load::Http1("/1k", 32))),
    two(case("two-workers-grpc-2-connections", Shape::Http2, Load::Unary(2, 16))),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_when_listed_then_five_are_quick_and_no_name_is_used_twice() {
        assert_eq!(CASES.iter().filter(|case| case.quick).count(), 5);
        let names: std::collections::BTreeSet<_> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
    }
}
