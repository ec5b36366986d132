//! What resources written in a bootstrap want of each other: a cluster that a route names and that is not there, and an address that
//! two listeners have, are slips of the pen, found before anything listens.

use super::super::convert::common::optional;
use super::super::convert::{Converted, Refused, Within as _};
use leno_xds::envoy::config::bootstrap::v3::bootstrap::StaticResources;
use leno_xds::envoy::config::core::v3::{address::Address, socket_address::PortSpecifier};
use leno_xds::envoy::config::listener::v3::{FilterChain, Listener, filter::ConfigType};
use leno_xds::envoy::config::route::v3::{
    RouteAction, RouteConfiguration, VirtualHost, route, route_action::ClusterSpecifier,
    route_action::RequestMirrorPolicy, weighted_cluster::ClusterWeight,
};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use std::collections::HashSet;

/// Looks at addresses, of which each is one listener's.
///
/// # Errors
/// At the first listener whose address another one has.
pub(super) fn check_addresses(resources: &StaticResources) -> Converted<()> {
    let mut taken = HashSet::new();
    for (index, listener) in resources.listeners.iter().enumerate() {
        let Some(Address::SocketAddress(socket)) = listener.address.as_ref().and_then(|held| held.address.as_ref())
        else {
            continue;
        };
        let free = matches!(socket.port_specifier, None | Some(PortSpecifier::PortValue(0)));
        if !free && !taken.insert((&socket.address, &socket.port_specifier, socket.protocol)) {
            let field = format!("static_resources.listeners[{index}].address");
            return Err(Refused::new(field, format!("another listener has {} with this port", socket.address)));
        }
    }
    Ok(())
}

/// Looks at the routes that static listeners hold themselves, where `validate_clusters` is not off. Routes that come by name, and
/// those that choose by a header, are answered 503 while their cluster is not there.
///
/// # Errors
/// At the first route to a cluster that is none of the static ones.
pub(super) fn check_clusters(resources: &StaticResources) -> Converted<()> {
    let names: HashSet<&str> = resources.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    let is_there = |name: &str| names.contains(name);
    let clusters = Clusters(&is_there);
    for (index, listener) in resources.listeners.iter().enumerate() {
        clusters.listener(listener).within(format_args!("static_resources.listeners[{index}]"))?;
    }
    Ok(())
}

/// Looks at the routes that a listener holds itself as [`check_clusters`] does, among the clusters of which `is_there` says so.
///
/// # Errors
/// At the first route to a cluster that is none of them.
pub fn check_listener(listener: &Listener, is_there: &dyn Fn(&str) -> bool) -> Converted<()> {
    Clusters(is_there).listener(listener)
}

struct Clusters<'c>(&'c dyn Fn(&str) -> bool);

impl Clusters<'_> {
    fn listener(&self, listener: &Listener) -> Converted<()> {
        for (index, chain) in listener.filter_chains.iter().enumerate() {
            self.chain(chain).within(format_args!("filter_chains[{index}]"))?;
        }
        let default = listener.default_filter_chain.as_ref().map_or(Ok(()), |chain| self.chain(chain));
        default.within("default_filter_chain")
    }

    fn chain(&self, chain: &FilterChain) -> Converted<()> {
        for (index, filter) in chain.filters.iter().enumerate() {
            let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
            // What does not decode is refused where it is converted.
            let Ok(Some(manager)) = optional::<HttpConnectionManager>(any) else { continue };
            if let Some(RouteSpecifier::RouteConfig(table)) = manager.route_specifier
                && table.validate_clusters != Some(false)
            {
                self.table(&table).within(format_args!("filters[{index}].typed_config.route_config"))?;
            }
        }
        Ok(())
    }

    fn table(&self, table: &RouteConfiguration) -> Converted<()> {
        self.mirrors(&table.request_mirror_policies)?;
        table.virtual_hosts.iter().enumerate().try_for_each(|(index, host)| {
            let checked = self.host(host);
            checked.within(format_args!("virtual_hosts[{index}]"))
        })
    }

    fn host(&self, host: &VirtualHost) -> Converted<()> {
        self.mirrors(&host.request_mirror_policies)?;
        for (index, route) in host.routes.iter().enumerate() {
            if let Some(route::Action::Route(action)) = &route.action {
                self.action(action).within(format_args!("routes[{index}].route"))?;
            }
        }
        Ok(())
    }

    fn action(&self, action: &RouteAction) -> Converted<()> {
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => self.known(name, "cluster")?,
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                for (index, ClusterWeight { name, .. }) in weighted.clusters.iter().enumerate() {
                    self.known(name, &format!("weighted_clusters.clusters[{index}].name"))?;
                }
            }
            _ => {}
        }
        self.mirrors(&action.request_mirror_policies)
    }

    fn mirrors(&self, mirrors: &[RequestMirrorPolicy]) -> Converted<()> {
        mirrors.iter().enumerate().try_for_each(|(index, RequestMirrorPolicy { cluster, .. })| {
            self.known(cluster, &format!("request_mirror_policies[{index}].cluster"))
        })
    }

    /// An empty name stands for one that is chosen otherwise.
    fn known(&self, name: &str, field: &str) -> Converted<()> {
        if name.is_empty() || (self.0)(name) {
            return Ok(());
        }
        let reason = format!("`{name}` is no cluster; add it, or set validate_clusters to false");
        Err(Refused::new(field, reason))
    }
}
