//! Why a response is what it is: Envoy's response flags, as they stand in metrics and access logs.

use std::fmt;

/// A set of response flags. The empty set prints as `-`, others as short names joined by commas, in Envoy's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal;)*) => {
        impl ResponseFlags {
            $($(#[$doc])* pub const $name: ResponseFlags = ResponseFlags(1 << $bit);)*
            const NAMES: &'static [(ResponseFlags, &'static str)] = &[$((ResponseFlags(1 << $bit), $short)),*];
        }
    };
}

flags! {
    /// No healthy upstream host in the cluster.
    NO_HEALTHY_UPSTREAM = 0, "UH";
    /// The upstream could not be connected.
    UPSTREAM_CONNECTION_FAILURE = 1, "UF";
    /// A circuit breaker refused the request (too many connections, requests or waiting requests).
    UPSTREAM_OVERFLOW = 2, "UO";
    /// No route matched, or no filter chain for the connection.
    NO_ROUTE = 3, "NR";
    /// The retry limit, or for TCP the limit of connection attempts, was reached.
    RETRY_LIMIT = 4, "URX";
    /// The route names a cluster that is not there.
    NO_CLUSTER = 5, "NC";
    /// The connection or request ran longer than allowed.
    DURATION_TIMEOUT = 6, "DT";
    /// The downstream ended before the response was complete.
    DOWNSTREAM_CONNECTION_TERMINATION = 7, "DC";
    /// Reset from this side.
    LOCAL_RESET = 8, "LR";
    /// The upstream reset the stream.
    UPSTREAM_REMOTE_RESET = 9, "UR";
    /// The upstream connection ended before the response was complete.
    UPSTREAM_CONNECTION_TERMINATION = 10, "UC";
    /// The route's timeout passed.
    UPSTREAM_TIMEOUT = 11, "UT";
    /// A configured delay was added.
    DELAY_INJECTED = 12, "DI";
    /// A configured fault was returned.
    FAULT_INJECTED = 13, "FI";
    /// A rate limit refused the request.
    RATE_LIMITED = 14, "RL";
    /// An external authorizer refused the request.
    UNAUTHORIZED_EXTERNAL = 15, "UAEX";
    /// The stream was idle for too long.
    STREAM_IDLE_TIMEOUT = 16, "SI";
    /// The downstream broke the protocol.
    DOWNSTREAM_PROTOCOL_ERROR = 17, "DPE";
    /// The upstream broke the protocol.
    UPSTREAM_PROTOCOL_ERROR = 18, "UPE";
    /// The upstream reached the maximum duration of a stream.
    UPSTREAM_MAX_STREAM_DURATION_REACHED = 19, "UMSDR";
    /// Refused because a limit of this proxy (memory, connections) was reached.
    OVERLOAD_MANAGER = 20, "OM";
    /// The downstream reset the stream.
    DOWNSTREAM_REMOTE_RESET = 21, "DR";
    /// The control plane wanted some requests refused.
    DROP_OVERLOAD = 22, "DO";
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

    /// True when a flag of `other` is set.
    pub const fn intersects(self, other: ResponseFlags) -> bool {
        self.0 & other.0 != 0
    }

    /// The flag of a short name, e.g. `UH`.
    pub fn named(short: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, name)| *name == short).map(|&(flag, _)| flag)
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

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut first = true;
        for (flag, name) in Self::NAMES {
            if self.contains(*flag) {
                if !first {
                    f.write_str(",")?;
                }
                f.write_str(name)?;
                first = false;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_when_several_are_set_then_print_in_a_fixed_order() {
        assert_eq!((ResponseFlags::RETRY_LIMIT | ResponseFlags::UPSTREAM_CONNECTION_FAILURE).to_string(), "UF,URX");
        assert_eq!(ResponseFlags::none().to_string(), "-");
    }
}
