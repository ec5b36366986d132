//! Why a response is what it is: Envoy's response flags, as they stand in metrics and access logs.

use std::fmt;

/// A set of response flags. The empty set prints as `-`, others as short names joined by commas, in the order in which Envoy
/// comes to set them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal, $long:literal;)*) => {
        impl ResponseFlags {
            $($(#[$doc])* pub const $name: ResponseFlags = ResponseFlags(1 << $bit);)*
            const NAMES: &'static [(ResponseFlags, &'static str, &'static str)] =
                &[$((ResponseFlags(1 << $bit), $short, $long)),*];
        }
    };
}

flags! {
    /// A configured delay was added.
    DELAY_INJECTED = 12, "DI", "DelayInjected";
    /// The limit of a request's retries was reached.
    RETRY_LIMIT = 4, "URX", "UpstreamRetryLimitExceeded";
    /// A circuit breaker refused the request (too many connections, requests or waiting requests).
    UPSTREAM_OVERFLOW = 2, "UO", "UpstreamOverflow";
    /// No healthy upstream host in the cluster.
    NO_HEALTHY_UPSTREAM = 0, "UH", "NoHealthyUpstream";
    /// The upstream could not be connected.
    UPSTREAM_CONNECTION_FAILURE = 1, "UF", "UpstreamConnectionFailure";
    /// No route matched, or no filter chain for the connection.
    NO_ROUTE = 3, "NR", "NoRouteFound";
    /// The limit of a TCP connection's attempts was reached.
    CONNECT_ATTEMPTS = 30, "URX", "UpstreamRetryLimitExceeded";
    /// The route names a cluster that is not there.
    NO_CLUSTER = 5, "NC", "NoClusterFound";
    /// The connection or request ran longer than allowed.
    DURATION_TIMEOUT = 6, "DT", "DurationTimeout";
    /// The downstream ended before the response was complete.
    DOWNSTREAM_CONNECTION_TERMINATION = 7, "DC", "DownstreamConnectionTermination";
    /// Reset from this side.
    LOCAL_RESET = 8, "LR", "LocalReset";
    /// The upstream reset the stream.
    UPSTREAM_REMOTE_RESET = 9, "UR", "UpstreamRemoteReset";
    /// The upstream connection ended before the response was complete.
    UPSTREAM_CONNECTION_TERMINATION = 10, "UC", "UpstreamConnectionTermination";
    /// The route's timeout passed.
    UPSTREAM_TIMEOUT = 11, "UT", "UpstreamRequestTimeout";
    /// A configured fault was returned.
    FAULT_INJECTED = 13, "FI", "FaultInjected";
    /// A rate limit refused the request.
    RATE_LIMITED = 14, "RL", "RateLimited";
    /// An external authorizer refused the request.
    UNAUTHORIZED_EXTERNAL = 15, "UAEX", "UnauthorizedExternalService";
    /// The stream was idle for too long.
    STREAM_IDLE_TIMEOUT = 16, "SI", "StreamIdleTimeout";
    /// The downstream broke the protocol.
    DOWNSTREAM_PROTOCOL_ERROR = 17, "DPE", "DownstreamProtocolError";
    /// The upstream broke the protocol.
    UPSTREAM_PROTOCOL_ERROR = 18, "UPE", "UpstreamProtocolError";
    /// The upstream reached the maximum duration of a stream.
    UPSTREAM_MAX_STREAM_DURATION_REACHED = 19, "UMSDR", "UpstreamMaxStreamDurationReached";
    /// Refused because a limit of this proxy (memory, connections) was reached.
    OVERLOAD_MANAGER = 20, "OM", "OverloadManagerTerminated";
    /// The downstream reset the stream.
    DOWNSTREAM_REMOTE_RESET = 21, "DR", "DownstreamRemoteReset";
    /// The control plane wanted some requests refused.
    DROP_OVERLOAD = 22, "DO", "DropOverload";
    /// The workload itself said that it is not well.
    FAILED_LOCAL_HEALTH_CHECK = 23, "LH", "FailedLocalHealthCheck";
    /// The service that limits rates failed.
    RATE_LIMIT_SERVICE_ERROR = 24, "RLSE", "RateLimitServiceError";
    /// A header by which the proxy is told what to do says nothing that it may.
    INVALID_ENVOY_HEADERS = 25, "IH", "InvalidEnvoyRequestHeaders";
    /// The answer came from a cache.
    FROM_CACHE = 26, "RFCF", "ResponseFromCacheFilter";
    /// A filter's configuration did not come in time.
    NO_FILTER_CONFIG = 27, "NFCF", "NoFilterConfigFound";
    /// A name could not be resolved.
    DNS_FAILED = 28, "DF", "DnsResolutionFailed";
    /// The control plane wanted all requests refused.
    UNCONDITIONAL_DROP_OVERLOAD = 29, "UDO", "UnconditionalDropOverload";
}

impl ResponseFlags {
    /// The empty set.
    pub const fn none() -> Self {
        ResponseFlags(0)
    }

    /// True when no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True when every flag of `other` is set.
    pub const fn contains(self, other: ResponseFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those that are not in `other`.
    pub const fn without(self, other: ResponseFlags) -> Self {
        Self(self.0 & !other.0)
    }

    /// True when a flag of `other` is set.
    pub const fn intersects(self, other: ResponseFlags) -> bool {
        self.0 & other.0 != 0
    }

    /// Those with which a cluster answers although no endpoint did.
    pub const fn of_clusters() -> Self {
        Self(
            Self::NO_HEALTHY_UPSTREAM.0
                | Self::UPSTREAM_OVERFLOW.0
                | Self::UPSTREAM_CONNECTION_FAILURE.0
                | Self::DROP_OVERLOAD.0
                | Self::UNCONDITIONAL_DROP_OVERLOAD.0,
        )
    }

    /// The flag of a short name, e.g. `UH`.
    pub fn named(short: &str) -> Option<Self> {
        let all = Self::NAMES.iter().filter(|(_, name, _)| *name == short);
        all.map(|&(flag, ..)| flag).reduce(|all, flag| all | flag)
    }

    /// The set under the long names of its flags.
    pub const fn long(self) -> LongNames {
        LongNames(self)
    }

    /// Adds the flags of `other`.
    pub const fn insert(&mut self, other: ResponseFlags) {
        self.0 |= other.0;
    }
}

impl std::ops::BitOr for ResponseFlags {
    type Output = ResponseFlags;
    fn bitor(self, other: ResponseFlags) -> ResponseFlags {
        ResponseFlags(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, other: ResponseFlags) {
        self.insert(other);
    }
}

/// Prints a set by long names, `NoHealthyUpstream`.
#[derive(Clone, Copy, Debug)]
pub struct LongNames(ResponseFlags);

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(*self, f, |(_, short, _)| short)
    }
}

impl fmt::Display for LongNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self.0, f, |(_, _, long)| long)
    }
}

type Named = (ResponseFlags, &'static str, &'static str);

fn print(flags: ResponseFlags, f: &mut fmt::Formatter<'_>, name: fn(&Named) -> &'static str) -> fmt::Result {
    if flags.is_empty() {
        return f.write_str("-");
    }
    let mut first = true;
    for named in ResponseFlags::NAMES.iter().filter(|(flag, ..)| flags.contains(*flag)) {
        if !first {
            f.write_str(",")?;
        }
        f.write_str(name(named))?;
        first = false;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_when_several_are_set_then_print_in_a_fixed_order() {
        assert_eq!((ResponseFlags::RETRY_LIMIT | ResponseFlags::UPSTREAM_CONNECTION_FAILURE).to_string(), "URX,UF");
        assert_eq!(
            (ResponseFlags::CONNECT_ATTEMPTS | ResponseFlags::UPSTREAM_CONNECTION_FAILURE).to_string(),
            "UF,URX"
        );
        let named = ResponseFlags::named("URX").unwrap();
        assert!(named.contains(ResponseFlags::RETRY_LIMIT) && named.contains(ResponseFlags::CONNECT_ATTEMPTS));
        assert_eq!(ResponseFlags::none().to_string(), "-");
        assert_eq!(ResponseFlags::NO_ROUTE.long().to_string(), "NoRouteFound");
    }
}
