//! The headers that the proxy itself looks at: each is recognised once, when it comes, and found by its number from then on.

/// Between sidecars: the answer is the proxy's own, and no byte of the request reached the app, so a repeat is harmless
/// whatever the method. Only a peer of the mesh is told, and its proxy keeps it from its app.
pub const NOT_SENT: &str = "x-leno-not-sent";

/// The first and the last eight bytes of a name, in lower case. They are all there is of a name of up to 16 bytes, where they
/// meet or overlap; a shorter one than eight has its bytes in the first, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    first: u64,
    last: u64,
}

impl Ends {
    const fn of(name: &[u8]) -> Self {
        match (name.first_chunk(), name.last_chunk()) {
            (Some(first), Some(last)) => {
                Self { first: lower_case(u64::from_le_bytes(*first)), last: lower_case(u64::from_le_bytes(*last)) }
            }
            _ => {
                let (mut first, mut at) = (0, name.len());
                while at > 0 {
                    at -= 1;
                    first = first << 8 | name[at] as u64;
                }
                Self { first: lower_case(first), last: 0 }
            }
        }
    }
}

/// Eight bytes at once: those from `A` to `Z` become small.
const fn lower_case(bytes: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    let low = bytes & (ONES * 0x7f);
    let from_a = low + ONES * (0x80 - b'A' as u64);
    let beyond_z = low + ONES * (0x7f - b'Z' as u64);
    let capital = (from_a ^ beyond_z) & !bytes & (ONES * 0x80);
    bytes | capital >> 2
}

/// How the names begin that are [`Known::Envoy`].
const ENVOY: u64 = Ends::of(b"x-envoy-").first;

/// A name that is recognised.
struct Name {
    ends: Ends,
    text: &'static str,
    known: Known,
}

impl Name {
    const fn new(text: &'static str, known: Known) -> Self {
        Self { ends: Ends::of(text.as_bytes()), text, known }
    }

    /// Whether it is that one; its ends and its length are the same.
    fn is(&self, name: &[u8]) -> bool {
        name.len() <= 16 || name.eq_ignore_ascii_case(self.text.as_bytes())
    }
}

/// Headers that the proxy itself looks at, recognised once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is the header of its name")]
pub enum Known {
    Other,
    Host,
    Connection,
    KeepAlive,
    ProxyConnection,
    TransferEncoding,
    ContentLength,
    Te,
    Trailer,
    Upgrade,
    Expect,
    Http2Settings,
    RequestId,
    ForwardedProto,
    ForwardedFor,
    Peer,
    ContentType,
    Server,
    GrpcStatus,
    NotSent,
    ForwardedPort,
    ForwardedClientCert,
    Referer,
    Date,
    UserAgent,
    Via,
    Origin,
    Accept,
    AcceptEncoding,
    AccessControlRequestMethod,
    AccessControlRequestHeaders,
    AccessControlAllowOrigin,
    AccessControlAllowMethods,
    AccessControlAllowHeaders,
    AccessControlAllowCredentials,
    AccessControlExposeHeaders,
    AccessControlMaxAge,
    Age,
    Authorization,
    CacheControl,
    ClientTraceId,
    ContentEncoding,
    Etag,
    Expires,
    ForwardedHost,
    GrpcAcceptEncoding,
    GrpcMessage,
    GrpcTimeout,
    IfMatch,
    IfNoneMatch,
    LastModified,
    Location,
    Pragma,
    ProxyStatus,
    Vary,
    /// Any name that begins with `x-envoy-`.
    Envoy,
}

impl Known {
    /// Recognises a name in any case.
    pub fn of(name: &[u8]) -> Self {
        let names: &[Name] = match name.len() {
            2 => const { &[Name::new("te", Self::Te)] },
            3 => const { &[Name::new("via", Self::Via), Name::new("age", Self::Age)] },
            4 => {
                const {
                    &[
                        Name::new("host", Self::Host),
                        Name::new("date", Self::Date),
                        Name::new("vary", Self::Vary),
                        Name::new("etag", Self::Etag),
                    ]
                }
            }
            6 => {
                const {
                    &[
                        Name::new("accept", Self::Accept),
                        Name::new("origin", Self::Origin),
                        Name::new("expect", Self::Expect),
                        Name::new("server", Self::Server),
                        Name::new("pragma", Self::Pragma),
                    ]
                }
            }
            7 => {
                const {
                    &[
                        Name::new("upgrade", Self::Upgrade),
                        Name::new("trailer", Self::Trailer),
                        Name::new("referer", Self::Referer),
                        Name::new("expires", Self::Expires),
                    ]
                }
            }
            8 => const { &[Name::new("location", Self::Location), Name::new("if-match", Self::IfMatch)] },
            10 => {
                const {
                    &[
                        Name::new("connection", Self::Connection),
                        Name::new("keep-alive", Self::KeepAlive),
                        Name::new("user-agent", Self::UserAgent),
                    ]
                }
            }
            11 => const { &[Name::new("x-leno-peer", Self::Peer), Name::new("grpc-status", Self::GrpcStatus)] },
            12 => {
                const {
                    &[
                        Name::new("content-type", Self::ContentType),
                        Name::new("x-request-id", Self::RequestId),
                        Name::new("grpc-timeout", Self::GrpcTimeout),
                        Name::new("grpc-message", Self::GrpcMessage),
                        Name::new("proxy-status", Self::ProxyStatus),
                    ]
                }
            }
            13 => {
                const {
                    &[
                        Name::new("authorization", Self::Authorization),
                        Name::new("cache-control", Self::CacheControl),
                        Name::new("if-none-match", Self::IfNoneMatch),
                        Name::new("last-modified", Self::LastModified),
                    ]
                }
            }
            14 => {
                const {
                    &[
                        Name::new("content-length", Self::ContentLength),
                        Name::new("http2-settings", Self::Http2Settings),
                    ]
                }
            }
            15 => {
                const {
                    &[
                        Name::new("accept-encoding", Self::AcceptEncoding),
                        Name::new("x-forwarded-for", Self::ForwardedFor),
                        Name::new(NOT_SENT, Self::NotSent),
                    ]
                }
            }
            16 => {
                const {
                    &[
                        Name::new("content-encoding", Self::ContentEncoding),
                        Name::new("proxy-connection", Self::ProxyConnection),
                        Name::new("x-forwarded-port", Self::ForwardedPort),
                        Name::new("x-forwarded-host", Self::ForwardedHost),
                    ]
                }
            }
            17 => {
                const {
                    &[
                        Name::new("transfer-encoding", Self::TransferEncoding),
                        Name::new("x-forwarded-proto", Self::ForwardedProto),
                        Name::new("x-client-trace-id", Self::ClientTraceId),
                    ]
                }
            }
            20 => const { &[Name::new("grpc-accept-encoding", Self::GrpcAcceptEncoding)] },
            22 => const { &[Name::new("access-control-max-age", Self::AccessControlMaxAge)] },
            23 => const { &[Name::new("x-forwarded-client-cert", Self::ForwardedClientCert)] },
            27 => const { &[Name::new("access-control-allow-origin", Self::AccessControlAllowOrigin)] },
            28 => {
                const {
                    &[
                        Name::new("access-control-allow-headers", Self::AccessControlAllowHeaders),
                        Name::new("access-control-allow-methods", Self::AccessControlAllowMethods),
                    ]
                }
            }
            29 => {
                const {
                    &[
                        Name::new("access-control-request-method", Self::AccessControlRequestMethod),
                        Name::new("access-control-expose-headers", Self::AccessControlExposeHeaders),
                    ]
                }
            }
            30 => const { &[Name::new("access-control-request-headers", Self::AccessControlRequestHeaders)] },
            32 => const { &[Name::new("access-control-allow-credentials", Self::AccessControlAllowCredentials)] },
            _ => &[],
        };
        let ends = Ends::of(name);
        match names.iter().find(|known| known.ends == ends && known.is(name)) {
            Some(known) => known.known,
            None if name.len() > 8 && ends.first == ENVOY => Self::Envoy,
            None => Self::Other,
        }
    }

    pub(super) const fn bit(self) -> u64 {
        1 << self as u8
    }

    /// Whether it concerns one connection only and is never passed on.
    pub fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::TransferEncoding
                | Self::Upgrade
                | Self::Http2Settings
        )
    }

    /// Headers of requests and answers of which there is one: further lines are parts of its value.
    const SINGLE: u64 = Self::ContentType.bit()
        | Self::ContentEncoding.bit()
        | Self::CacheControl.bit()
        | Self::ProxyStatus.bit()
        | Self::RequestId.bit()
        | Self::Via.bit()
        | Self::Envoy.bit();

    /// The same of requests alone.
    pub(super) const SINGLE_IN_REQUESTS: u64 = Self::SINGLE
        | Self::Accept.bit()
        | Self::AcceptEncoding.bit()
        | Self::AccessControlRequestHeaders.bit()
        | Self::AccessControlRequestMethod.bit()
        | Self::Authorization.bit()
        | Self::ClientTraceId.bit()
        | Self::Expect.bit()
        | Self::ForwardedClientCert.bit()
        | Self::ForwardedFor.bit()
        | Self::ForwardedHost.bit()
        | Self::ForwardedPort.bit()
        | Self::ForwardedProto.bit()
        | Self::GrpcAcceptEncoding.bit()
        | Self::GrpcTimeout.bit()
        | Self::IfMatch.bit()
        | Self::IfNoneMatch.bit()
        | Self::Origin.bit()
        | Self::Pragma.bit()
        | Self::Referer.bit()
        | Self::Te.bit()
        | Self::UserAgent.bit();

    /// The same of answers alone.
    pub(super) const SINGLE_IN_ANSWERS: u64 = Self::SINGLE
        | Self::AccessControlAllowCredentials.bit()
        | Self::AccessControlAllowHeaders.bit()
        | Self::AccessControlAllowMethods.bit()
        | Self::AccessControlAllowOrigin.bit()
        | Self::AccessControlExposeHeaders.bit()
        | Self::AccessControlMaxAge.bit()
        | Self::Age.bit()
        | Self::Date.bit()
        | Self::Etag.bit()
        | Self::Expires.bit()
        | Self::GrpcMessage.bit()
        | Self::GrpcStatus.bit()
        | Self::LastModified.bit()
        | Self::Location.bit()
        | Self::Vary.bit();

    pub(super) const HOP_BY_HOP: u64 = Self::Connection.bit()
        | Self::KeepAlive.bit()
        | Self::ProxyConnection.bit()
        | Self::TransferEncoding.bit()
        | Self::Upgrade.bit()
        | Self::Http2Settings.bit();
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [(&str, Known); 12] = [
        ("te", Known::Te),
        ("via", Known::Via),
        ("etag", Known::Etag),
        ("expect", Known::Expect),
        ("upgrade", Known::Upgrade),
        ("location", Known::Location),
        ("keep-alive", Known::KeepAlive),
        ("x-forwarded-for", Known::ForwardedFor),
        ("content-encoding", Known::ContentEncoding),
        ("transfer-encoding", Known::TransferEncoding),
        ("access-control-allow-methods", Known::AccessControlAllowMethods),
        ("access-control-allow-credentials", Known::AccessControlAllowCredentials),
    ];

    #[test]
    fn name_when_recognised_then_in_any_case() {
        for (name, known) in NAMES {
            let capital = name.to_ascii_uppercase();
            let mixed: String = name
                .chars()
                .zip(capital.chars())
                .enumerate()
                .map(|(at, (a, b))| if at % 2 == 0 { b } else { a })
                .collect();
            for form in [name, &capital, &mixed] {
                assert_eq!(Known::of(form.as_bytes()), known, "{form}");
            }
        }
    }

    #[test]
    fn name_when_one_byte_is_another_then_is_not_recognised() {
        for (name, known) in NAMES {
            for at in 0..name.len() {
                for other in (0..=u8::MAX).filter(|byte| !byte.eq_ignore_ascii_case(&name.as_bytes()[at])) {
                    let mut changed = name.as_bytes().to_vec();
                    changed[at] = other;
                    assert_ne!(Known::of(&changed), known, "{}", changed.escape_ascii());
                }
            }
            assert_ne!(Known::of(&name.as_bytes()[1..]), known);
            assert_ne!(Known::of(format!("{name}-").as_bytes()), known);
        }
    }

    #[test]
    fn name_when_it_begins_as_envoys_do_then_is_one_of_them() {
        for name in ["x-envoy-a", "X-Envoy-Retry-On", "x-envoy-attempt-count"] {
            assert_eq!(Known::of(name.as_bytes()), Known::Envoy, "{name}");
        }
        for name in ["", "x", "x-envoy-", "x-envoys-a", "y-envoy-ab"] {
            assert_eq!(Known::of(name.as_bytes()), Known::Other, "{name}");
        }
    }
}
