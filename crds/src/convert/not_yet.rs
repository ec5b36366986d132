//! The one list of what a spec may say and this release does not act upon. A field on it is reported in the status of
//! every object that uses it; taking a field into force is taking it off the list.

/// A part of an API whose effect may not be there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Gateways as the place where a VirtualService applies.
    Gateways,
    /// HTTP routes taken from another VirtualService.
    Delegate,
    /// Copies of requests.
    Mirror,
    /// Injected faults.
    Fault,
    /// Answers to browsers' questions about other origins.
    Cors,
    /// Retries that stay within a locality.
    RetryLocality,
    /// A statistics prefix for a route.
    StatPrefix,
    /// Routes by server name.
    TlsRoutes,
    /// TCP routes by destination address.
    TcpDestinationSubnets,
    /// TCP routes by the client's address.
    TcpSourceSubnet,
    /// Load balancing that hashes.
    ConsistentHash,
    /// Sending on to the address that the client asked for.
    PassthroughBalancing,
    /// Load balancing by region and zone.
    LocalityBalancing,
    /// Slow start of endpoints.
    Warmup,
    /// Probes of the kernel on idle connections.
    TcpKeepalive,
    /// The longest life of a connection.
    MaxConnectionDuration,
    /// Idle time of TCP connections.
    TcpIdleTimeout,
    /// Limits on connections and requests.
    ConnectionLimits,
    /// Idle time of HTTP connections.
    HttpIdleTimeout,
    /// Turning HTTP/1.1 into HTTP/2.
    HttpUpgrade,
    /// Speaking the client's version of HTTP.
    ClientProtocol,
    /// Probes of HTTP/2 connections.
    Http2Keepalive,
    /// Taking out endpoints that keep failing.
    OutlierDetection,
    /// TLS other than the mesh's own.
    TlsOrigination,
    /// Tunnels.
    Tunnel,
    /// The PROXY protocol.
    ProxyProtocol,
    /// A limit on retries in relation to requests.
    RetryBudget,
}

/// What is not in force yet, and what becomes of traffic meanwhile.
const NOT_YET_IN_FORCE: &[(Feature, &str)] = &[
    (Feature::Gateways, "gateways are not served yet; the rules apply to sidecars only (the reserved gateway mesh)"),
    (Feature::Delegate, "routes are not taken from other VirtualServices yet; this rule is left out"),
    (Feature::Mirror, "Leno's proxy does not copy requests yet; they reach their destination only"),
    (Feature::Fault, "Leno's proxy does not inject faults yet; requests are forwarded"),
    (Feature::Cors, "Leno's proxy does not answer for CORS yet; the service does"),
    (Feature::RetryLocality, "retries do not look at localities yet"),
    (Feature::StatPrefix, "there are no statistics by route yet"),
    (Feature::TlsRoutes, "TLS connections are not routed by server name yet; they go to the service they are for"),
    (Feature::TcpDestinationSubnets, "TCP rules by destination address are not served yet; this rule is left out"),
    (Feature::TcpSourceSubnet, "TCP rules by the client's address are not served yet; this rule is left out"),
    (Feature::ConsistentHash, "Leno's proxy does not hash yet; it balances by least request"),
    (Feature::PassthroughBalancing, "Leno's proxy balances by least request instead"),
    (Feature::LocalityBalancing, "endpoints are not preferred by locality yet"),
    (Feature::Warmup, "new endpoints get their full share at once"),
    (Feature::TcpKeepalive, "the system's keep-alive applies"),
    (Feature::MaxConnectionDuration, "connections last as long as both sides want"),
    (Feature::TcpIdleTimeout, "the default of one hour applies"),
    (Feature::ConnectionLimits, "Leno's proxy does not apply this limit yet"),
    (Feature::HttpIdleTimeout, "the proxy's own idle time applies"),
    (Feature::HttpUpgrade, "requests are sent on as the port says"),
    (Feature::ClientProtocol, "requests are sent on as the port says"),
    (Feature::Http2Keepalive, "HTTP/2 connections are not probed yet"),
    (Feature::OutlierDetection, "Leno's proxy does not take failing endpoints out yet"),
    (
        Feature::TlsOrigination,
        "only DISABLE and ISTIO_MUTUAL are served yet; connections are made as without this field",
    ),
    (Feature::Tunnel, "connections are not tunnelled yet; they are made directly"),
    (Feature::ProxyProtocol, "the PROXY protocol is not spoken yet"),
    (Feature::RetryBudget, "the mesh's own budget applies (20 % of the requests under way, at least 3)"),
];

/// What to tell about a feature that is not in force yet; `None` when it is.
pub fn not_yet(feature: Feature) -> Option<&'static str> {
    NOT_YET_IN_FORCE.iter().find(|(listed, _)| *listed == feature).map(|(_, message)| *message)
}
