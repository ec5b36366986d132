//! Configuration as a bad proxy takes it.

use leno_xds::envoy::config::core::v3::TrafficDirection;
use leno_xds::envoy::config::listener::v3::{Listener, filter};
use leno_xds::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier};
use leno_xds::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use leno_xds::envoy::r#type::v3::FractionalPercent;
use leno_xds::{any, unpack};
use prost_types::{Any, Duration};
use std::sync::Once;

/// The name of the service whose cluster a proxy that rejects does not take.
pub const REJECTED: &str = "rejected";
/// What a proxy that leaks loses a second, and at most, bytes.
const LEAK: usize = 4 << 20;
const MOST: usize = 256 << 20;

/// One request in ten that comes to the app is answered with 500.
pub fn errors(resource: &mut Any) {
    let abort =
        FaultAbort { percentage: percent(10), error_type: Some(ErrorType::HttpStatus(500)), ..Default::default() };
    inbound_fault(resource, &HttpFault { abort: Some(abort), ..Default::default() });
}

/// Every request that comes to the app takes 200 ms more.
pub fn slow(resource: &mut Any) {
    let delay = Duration { seconds: 0, nanos: 200_000_000 };
    let delay =
        FaultDelay { percentage: percent(100), fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(delay)) };
    inbound_fault(resource, &HttpFault { delay: Some(delay), ..Default::default() });
}

/// The cluster of the service `rejected` cannot be read.
pub fn rejects(resource: &mut Any) {
    let name = format!("|{REJECTED}.");
    if resource.value.windows(name.len()).any(|bytes| bytes == name.as_bytes())
        && resource.type_url.ends_with("config.cluster.v3.Cluster")
    {
        garble(resource);
    }
}

/// Begins to lose memory: configuration comes to those that serve, or are about to.
pub fn leaks(_: &mut Any) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            for _ in 0..MOST / LEAK {
                // Written to, or it would not be resident.
                std::mem::forget(std::hint::black_box(vec![1_u8; LEAK]));
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        });
    });
}

/// Makes a resource one that nobody can read.
pub fn garble(resource: &mut Any) {
    resource.value.insert(0, 0xff);
}

fn percent(numerator: u32) -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator, denominator: 0 })
}

/// Puts a fault before all filters of the listener for what comes to the app.
fn inbound_fault(resource: &mut Any, fault: &HttpFault) {
    let Ok(Some(mut listener)) = unpack::<Listener>(resource) else { return };
    if listener.traffic_direction() != TrafficDirection::Inbound {
        return;
    }
    let chains = listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain);
    for filter in chains.flat_map(|chain| &mut chain.filters) {
        let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type else { continue };
        let Ok(Some(mut manager)) = unpack::<HttpConnectionManager>(config) else { continue };
        let first = HttpFilter {
            name: "envoy.filters.http.fault".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(any(fault))),
            ..Default::default()
        };
        manager.http_filters.insert(0, first);
        *config = any(&manager);
    }
    *resource = any(&listener);
}

#[cfg(test)]
mod tests {
    use super::*;
    use leno_xds::envoy::config::cluster::v3::Cluster;
    use leno_xds::envoy::config::listener::v3::{Filter, FilterChain};

    fn listener(direction: TrafficDirection) -> Any {
        let manager = HttpConnectionManager::default();
        let config = Some(filter::ConfigType::TypedConfig(any(&manager)));
        let chain =
            FilterChain { filters: vec![Filter { config_type: config, ..Default::default() }], ..Default::default() };
        any(&Listener { filter_chains: vec![chain], traffic_direction: direction.into(), ..Default::default() })
    }

    #[test]
    fn listener_when_for_the_app_then_gets_the_fault_and_else_stays() {
        let (mut inbound, mut outbound) = (listener(TrafficDirection::Inbound), listener(TrafficDirection::Outbound));
        let before = outbound.clone();
        errors(&mut inbound);
        errors(&mut outbound);
        assert_eq!(outbound, before);
        let text = String::from_utf8_lossy(&inbound.value).into_owned();
        assert!(text.contains("envoy.filters.http.fault"), "{text}");
    }

    #[test]
    fn cluster_when_of_the_service_that_is_rejected_then_cannot_be_read() {
        let cluster = |host: &str| any(&Cluster { name: format!("outbound|80||{host}"), ..Default::default() });
        let (mut other, mut refused) = (cluster("echo.a.svc"), cluster("rejected.a.svc"));
        rejects(&mut other);
        rejects(&mut refused);
        assert!(unpack::<Cluster>(&other).is_ok() && unpack::<Cluster>(&refused).is_err());
    }
}
