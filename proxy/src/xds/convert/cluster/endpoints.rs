//! Endpoints: a load assignment as a cluster talks to it.

use super::super::common::{address, filter_metadata, port, text};
use super::super::{Context, Converted, Refused, Within as _, refuse, refuse_set};
use super::{SOCKET_MATCH, Template};
use crate::config::{
    Dns, DnsName, Endpoint, EndpointCheck, Eyeballs, Failed, Health, LABELS, Labels, Locality, Spread, pipe,
};
use crate::telemetry::WorkloadLabels;
use leno_xds::envoy::config::core::v3::{self as core, HealthStatus, SocketAddress, socket_address::PortSpecifier};
use leno_xds::envoy::config::endpoint::v3 as eds;
use leno_xds::envoy::config::endpoint::v3::{
    cluster_load_assignment::{Policy, policy::DropOverload},
    endpoint::HealthCheckConfig,
    lb_endpoint::HostIdentifier,
};
use leno_xds::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use prost_types::Struct;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Highest priority, by Envoy's own bound.
const MAX_PRIORITY: u32 = 128;
/// Addresses of one endpoint at most.
const MAX_ADDRESSES: usize = 64;

/// What a load assignment gives a cluster.
#[derive(Debug, Clone, Default)]
pub struct Assignment {
    /// The endpoints, in order.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Names whose addresses become endpoints.
    pub names: Vec<DnsName>,
    /// How load is spread over their priorities.
    pub spread: Spread,
}

impl Template {
    /// The endpoints in a load assignment, as this cluster talks to them.
    ///
    /// # Errors
    /// Names the field that is not supported.
    pub fn endpoints(&self, context: &mut Context, value: eds::ClusterLoadAssignment) -> Converted<Assignment> {
        let eds::ClusterLoadAssignment { cluster_name: _, endpoints, named_endpoints, policy } = value;
        refuse!(named_endpoints);
        let mut found =
            Assignment { spread: policy.map_or(Ok(Spread::default()), spread).within("policy")?, ..<_>::default() };
        for (index, locality) in endpoints.into_iter().enumerate() {
            let within = format!("endpoints[{index}]");
            let eds::LocalityLbEndpoints {
                locality,
                metadata: _,
                lb_endpoints,
                load_balancing_weight,
                priority,
                proximity: _,
                lb_config,
            } = locality;
            refuse_set(&lb_config, "lb_config").within(&within)?;
            if priority > MAX_PRIORITY {
                return Err(Refused::new("priority", format!("must be at most {MAX_PRIORITY}")).within(&within));
            }
            if priority > 0 && context.home.as_ref().is_some_and(|(id, _)| *id == self.cluster.id) {
                return Err(Refused::new("priority", "of the local cluster is always 0").within(&within));
            }
            weight(load_balancing_weight).within(&within)?;
            let core::Locality { region, zone, sub_zone } = locality.unwrap_or_default();
            let place = Arc::new(Locality {
                region: region.into(),
                zone: zone.into(),
                sub_zone: sub_zone.into(),
                weight: load_balancing_weight,
            });
            for (index, value) in lb_endpoints.into_iter().enumerate() {
                let within = format!("{within}.lb_endpoints[{index}]");
                let (name, endpoint) = self.endpoint(context, value, priority, &place).within(within)?;
                match name {
                    None => found.endpoints.push(endpoint),
                    Some(name) => found.names.push(DnsName { name, endpoint }),
                }
            }
        }
        Ok(found)
    }

    fn endpoint(
        &self,
        context: &mut Context,
        value: eds::LbEndpoint,
        priority: u32,
        locality: &Arc<Locality>,
    ) -> Converted<(Option<Arc<str>>, Arc<Endpoint>)> {
        let eds::LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier } = value;
        let endpoint = match host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
            Some(HostIdentifier::EndpointName(_)) => {
                return Err(Refused::new("endpoint_name", "is not supported by this proxy"));
            }
            None => return Err(Refused::new("endpoint", "is missing")),
        };
        let eds::Endpoint { address, health_check_config, hostname, additional_addresses, observability_name: _ } =
            endpoint;
        let health = match HealthStatus::try_from(health_status) {
            Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Health::Healthy,
            Ok(HealthStatus::Degraded) => Health::Degraded,
            Ok(HealthStatus::Draining) => Health::Draining,
            Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => Health::Unhealthy,
            Err(_) => return Err(Refused::new("health_status", "is not known to this proxy")),
        };
        let socket_labels = filter_metadata(metadata.as_ref(), SOCKET_MATCH);
        let identity = socket_labels.and_then(|labels| text(labels, "identity"));
        let workload = filter_metadata(metadata.as_ref(), "istio").and_then(|fields| text(fields, "workload"));
        let workload = match (workload, identity) {
            (None, None) => WorkloadLabels::unknown(),
            (workload, identity) => WorkloadLabels::from_endpoint(workload.unwrap_or_default(), identity),
        };
        let tls = self.tls_for(socket_labels.unwrap_or(&Struct::default()));
        let labels = filter_metadata(metadata.as_ref(), LABELS).map(Labels::of).unwrap_or_default();
        let pipe = self.pipe(&address).within("endpoint.address.pipe")?;
        let (name, address) = match &pipe {
            Some((_, known)) => (None, *known),
            None => self.place(address).within("endpoint.address")?,
        };
        let addresses = self.addresses(address, additional_addresses).within("endpoint")?;
        if !addresses.is_empty() && pipe.is_some() {
            let reason = "cannot stand beside a Unix socket; give one of both";
            return Err(Refused::new("endpoint.additional_addresses", reason));
        }
        let hostname = if hostname.is_empty() { name.clone() } else { Some(hostname.into()) };
        let endpoint = Endpoint {
            address,
            addresses,
            pipe: pipe.map(|(path, _)| path),
            weight: weight(load_balancing_weight)?.unwrap_or(1),
            health,
            failed: Failed { told: health == Health::Unhealthy, ..Failed::default() },
            excluded: false,
            priority,
            locality: locality.clone(),
            hostname,
            check: check(health_check_config).within("endpoint.health_check_config")?.map(Arc::new),
            labels: Arc::new(labels),
            tls,
            workload: context.workload(workload),
            metadata: crate::config::Metadata::of(metadata.as_ref()),
        };
        Ok((name, Arc::new(endpoint)))
    }

    /// All addresses of an endpoint that has several.
    fn addresses(
        &self,
        first: SocketAddr,
        others: Vec<eds::endpoint::AdditionalAddress>,
    ) -> Converted<Box<[SocketAddr]>> {
        if others.is_empty() {
            return Ok(Box::default());
        }
        if self.cluster.dns.is_some() {
            let reason = "are for clusters of type STATIC and EDS; here its name stands for all of them";
            return Err(Refused::new("additional_addresses", reason));
        }
        if others.len() >= MAX_ADDRESSES {
            let reason = format!("has more than {} entries", MAX_ADDRESSES - 1);
            return Err(Refused::new("additional_addresses", reason));
        }
        let mut all = vec![first];
        for (index, eds::endpoint::AdditionalAddress { address: other }) in others.into_iter().enumerate() {
            all.push(address(other).within(format_args!("additional_addresses[{index}].address"))?);
        }
        Ok(self.cluster.eyeballs.sort(all))
    }

    /// The path of a Unix socket, with the address by which it is known.
    fn pipe(&self, value: &Option<core::Address>) -> Converted<Option<(Arc<str>, SocketAddr)>> {
        let Some(core::Address { address: Some(core::address::Address::Pipe(pipe)) }) = value else { return Ok(None) };
        // A mode is for those who listen.
        let core::Pipe { path, mode: _ } = pipe;
        if self.cluster.dns.is_some() {
            return Err(Refused::new("", "is no name that can be looked up"));
        }
        pipe::known(path).map(Some).map_err(|error| Refused::new("path", error.to_string()))
    }

    /// Where it listens: an address, or a name with a port whose address is not known yet.
    fn place(&self, value: Option<core::Address>) -> Converted<(Option<Arc<str>>, SocketAddr)> {
        if let Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) }) = &value
            && self.cluster.dns.is_some()
        {
            let SocketAddress {
                protocol,
                address,
                resolver_name,
                ipv4_compat,
                network_namespace_filepath,
                port_specifier,
            } = socket.clone();
            refuse!(protocol, resolver_name, ipv4_compat, network_namespace_filepath);
            let Some(PortSpecifier::PortValue(number)) = port_specifier else {
                return Err(Refused::new("socket_address.port_value", "is missing"));
            };
            let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port(number).within("socket_address")?));
            if address.is_empty() {
                return Err(Refused::new("socket_address.address", "is missing"));
            }
            return Ok((Some(address.into()), unknown));
        }
        address(value).map(|address| (None, address))
    }
}

fn weight(value: Option<u32>) -> Converted<Option<u32>> {
    match value {
        Some(0) => Err(Refused::new("load_balancing_weight", "must be at least 1")),
        value => Ok(value),
    }
}

fn check(value: Option<HealthCheckConfig>) -> Converted<Option<EndpointCheck>> {
    let Some(HealthCheckConfig { port_value, hostname, address: other, disable_active_health_check }) = value else {
        return Ok(None);
    };
    let port = port(port_value)?;
    Ok(Some(EndpointCheck {
        port: (port > 0).then_some(port),
        address: other.map(|other| address(Some(other))).transpose().within("address")?,
        hostname: (!hostname.is_empty()).then(|| hostname.into()),
        disabled: disable_active_health_check,
    }))
}

fn spread(value: Policy) -> Converted<Spread> {
    let Policy { drop_overloads, overprovisioning_factor, endpoint_stale_after, weighted_priority_health } = value;
    refuse!(endpoint_stale_after);
    if drop_overloads.len() > 1 {
        return Err(Refused::new("drop_overloads[1]", "is a second category; Envoy takes one"));
    }
    let mut drop = 0.0;
    for DropOverload { category, drop_percentage } in drop_overloads {
        if category.is_empty() {
            return Err(Refused::new("drop_overloads[0].category", "must not be empty"));
        }
        let Some(FractionalPercent { numerator, denominator }) = drop_percentage else { continue };
        let of = match DenominatorType::try_from(denominator) {
            Ok(DenominatorType::Hundred) => 100.0,
            Ok(DenominatorType::TenThousand) => 10_000.0,
            Ok(DenominatorType::Million) => 1_000_000.0,
            Err(_) => return Err(Refused::new("drop_overloads[0].drop_percentage.denominator", "is not known")),
        };
        drop = f64::from(numerator) / of;
        if drop > 1.0 {
            return Err(Refused::new("drop_overloads[0].drop_percentage", "must be at most the whole"));
        }
    }
    let overprovisioning = overprovisioning_factor.unwrap_or(140);
    if overprovisioning == 0 {
        return Err(Refused::new("overprovisioning_factor", "must be more than 0"));
    }
    Ok(Spread { overprovisioning, weighted_health: weighted_priority_health, drop })
}

impl Dns {
    /// The endpoint of a name with this address.
    pub fn endpoint(name: &DnsName, ip: IpAddr) -> Arc<Endpoint> {
        let address = SocketAddr::new(ip, name.endpoint.address.port());
        Arc::new(Endpoint { address, ..(*name.endpoint).clone() })
    }

    /// The same with the addresses of an endpoint that it had under an earlier configuration.
    pub fn again(name: &DnsName, before: &Endpoint) -> Arc<Endpoint> {
        let port = name.endpoint.address.port();
        let renewed = |address: &SocketAddr| SocketAddr::new(address.ip(), port);
        let addresses = before.addresses.iter().map(renewed).collect();
        Arc::new(Endpoint { address: renewed(&before.address), addresses, ..(*name.endpoint).clone() })
    }

    /// The one endpoint of a name with all these addresses, which is known by the first; `None` where there are none.
    pub fn one_endpoint(name: &DnsName, ips: &[IpAddr], order: Eyeballs) -> Option<Arc<Endpoint>> {
        let port = name.endpoint.address.port();
        let all: Vec<SocketAddr> = ips.iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(*ip, port)).collect();
        let address = *all.first()?;
        Some(Arc::new(Endpoint { address, addresses: order.sort(all), ..(*name.endpoint).clone() }))
    }
}
