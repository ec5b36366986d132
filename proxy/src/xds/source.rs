//! Where resources come from: the one aggregated stream, a stream of their own, or a file.

// Deprecated fields are named like all others.
#![allow(deprecated)]

use super::convert::common::{grpc_metadata, maybe_duration, stream_backoff};
use super::convert::{Converted, Refused, Within as _, refuse, refuse_set};
use super::management::Server;
use super::state::Kind;
use leno_xds::envoy::config::core::v3 as xds;
use leno_xds::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, ConfigSource, GrpcService, PathConfigSource,
    api_config_source::ApiType,
    config_source::ConfigSourceSpecifier,
    grpc_service::{EnvoyGrpc, TargetSpecifier},
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Different sources that a process may ever use; beyond it new ones are refused. Each may become a stream.
pub const MAX_SOURCES: usize = 256;
/// How long a listener or cluster waits for what it asks for, when nothing else is said.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// Slowest growth of tokens, as in Envoy: one a year.
const LEAST_RATE: f64 = 1.0 / (365.0 * 86_400.0);

/// The two forms of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Only what has changed is sent.
    Delta,
    /// Everything is sent, every time.
    StateOfTheWorld,
}

/// How often requests may be sent on a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// So many at once.
    pub most: u32,
    /// And then so many in a second.
    pub per_second: f64,
}

/// A server of resources.
#[derive(Debug, Clone)]
pub struct Grpc {
    /// What is spoken with it.
    pub protocol: Protocol,
    /// Where it is.
    pub server: Arc<Server>,
    /// Name of the server for HTTP, when it is not the cluster's.
    pub authority: Option<String>,
    /// Headers of every stream.
    pub metadata: Vec<(String, String)>,
    /// Whether every request says who we are, and not only the first of a stream.
    pub node_always: bool,
    /// Shortest and longest wait between attempts.
    pub backoff: (Duration, Duration),
    /// How often requests may be sent; none is without limit.
    pub rate: Option<Rate>,
}

/// Where resources come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The aggregated stream.
    Ads,
    /// A stream a kind.
    Grpc(Arc<Grpc>),
    /// A file, looked at again and again.
    Path(PathBuf),
}

/// A source by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(usize);

impl SourceId {
    /// The aggregated stream.
    pub const ADS: Self = Self(0);
}

/// Every source that resources have named, and who is to be asked for what.
#[derive(Debug)]
pub struct Sources {
    ads: bool,
    servers: BTreeMap<String, Arc<Server>>,
    known: Vec<(ConfigSource, Source)>,
    /// With how long its first form is waited for; `None` is without limit.
    asked: BTreeMap<(Kind, String), (SourceId, Option<Duration>)>,
}

impl Default for Sources {
    /// The aggregated stream and nothing else.
    fn default() -> Self {
        Self::new(true, BTreeMap::new())
    }
}

impl Sources {
    /// Whether there is an aggregated stream, and the clusters by which other servers can be reached.
    pub fn new(ads: bool, servers: BTreeMap<String, Arc<Server>>) -> Self {
        Self { ads, servers, known: vec![(ConfigSource::default(), Source::Ads)], asked: BTreeMap::new() }
    }

    /// Notes that a resource is to be asked for there.
    ///
    /// # Errors
    /// When the source is not supported, or the resource is asked for elsewhere already.
    pub fn ask(&mut self, kind: Kind, name: &str, value: Option<ConfigSource>) -> Converted<()> {
        let Some(value) = value else { return Err(Refused::new("", "is missing")) };
        let limit = fetch_timeout(&value)?;
        let id = self.id(value)?;
        let key = (kind, name.to_owned());
        match self.asked.get(&key) {
            Some((known, _)) if *known != id => {
                let noun = kind.noun();
                Err(Refused::new("", format!("{noun} `{name}` comes from another source already; use one for both")))
            }
            Some(_) => Ok(()),
            None => {
                self.asked.insert(key, (id, limit));
                Ok(())
            }
        }
    }

    /// Every server that a source may name.
    pub fn servers(&self) -> Vec<Arc<Server>> {
        self.servers.values().cloned().collect()
    }

    /// The index of a source.
    ///
    /// # Errors
    /// When it is not supported.
    pub fn id(&mut self, value: ConfigSource) -> Converted<SourceId> {
        if let Some(index) = self.known.iter().position(|(known, _)| *known == value) {
            return Ok(SourceId(index));
        }
        let source = self.source(value.clone())?;
        if matches!(source, Source::Ads) {
            return Ok(SourceId::ADS);
        }
        if self.known.len() >= MAX_SOURCES {
            return Err(Refused::new(
                "",
                format!("this proxy has used {MAX_SOURCES} sources of resources; restart it"),
            ));
        }
        self.known.push((value, source));
        Ok(SourceId(self.known.len() - 1))
    }

    /// From where a resource comes; the aggregated stream when nothing else was said.
    pub fn of(&self, kind: Kind, name: &str) -> SourceId {
        self.asked.get(&(kind, name.to_owned())).map_or(SourceId::ADS, |(id, _)| *id)
    }

    /// How long what uses a resource waits for its first form; `None` is without limit.
    pub fn limit(&self, kind: Kind, name: &str) -> Option<Duration> {
        self.asked.get(&(kind, name.to_owned())).map_or(Some(FETCH_TIMEOUT), |(_, limit)| *limit)
    }

    /// Forgets a resource that nothing asks for any more.
    pub fn forget(&mut self, kind: Kind, name: &str) {
        self.asked.remove(&(kind, name.to_owned()));
    }

    /// How many resources are to be asked for.
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Forgets those that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(Kind, &str) -> bool) {
        self.asked.retain(|(kind, name), _| keep(*kind, name));
    }

    /// Every source but the aggregated stream, and the kinds that are asked for there.
    pub fn others(&self) -> Vec<(SourceId, Kind, Source)> {
        let mut found: Vec<_> = self.asked.iter().map(|((kind, _), (id, _))| (*id, *kind)).collect();
        found.sort_unstable();
        found.dedup();
        let source = |(id, kind): (SourceId, Kind)| Some((id, kind, self.get(id)?.clone()));
        found.into_iter().filter(|(id, _)| *id != SourceId::ADS).filter_map(source).collect()
    }

    /// The source of that index.
    pub fn get(&self, id: SourceId) -> Option<&Source> {
        self.known.get(id.0).map(|(_, source)| source)
    }

    fn source(&self, value: ConfigSource) -> Converted<Source> {
        let ConfigSource { authorities, initial_fetch_timeout: _, resource_api_version, config_source_specifier } =
            value;
        refuse!(authorities);
        version(resource_api_version).within("resource_api_version")?;
        match config_source_specifier {
            Some(ConfigSourceSpecifier::Ads(_)) if !self.ads => {
                Err(Refused::new("ads", "there is none: the bootstrap has no dynamic_resources.ads_config"))
            }
            Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(Source::Ads),
            Some(ConfigSourceSpecifier::ApiConfigSource(value)) => {
                let grpc = self.grpc(value, false).within("api_config_source")?;
                Ok(Source::Grpc(Arc::new(grpc)))
            }
            Some(ConfigSourceSpecifier::Path(path)) => Ok(Source::Path(path.into())),
            Some(ConfigSourceSpecifier::PathConfigSource(value)) => {
                // The file is looked at by its path, whatever links lead to it and in whatever folder they are moved.
                let PathConfigSource { path, watched_directory: _, poll_interval } = value;
                refuse!(poll_interval);
                Ok(Source::Path(path.into()))
            }
            None => Err(Refused::new("config_source_specifier", "is missing")),
        }
    }

    /// A server of resources; `aggregated` for the stream on which all kinds come.
    ///
    /// # Errors
    /// When a part is not supported, or the server's cluster is not in the bootstrap.
    pub fn grpc(&self, value: ApiConfigSource, aggregated: bool) -> Converted<Grpc> {
        let ApiConfigSource {
            api_type,
            transport_api_version,
            cluster_names,
            grpc_services,
            // For servers that are asked by REST.
            refresh_delay: _,
            request_timeout: _,
            rate_limit_settings,
            set_node_on_first_message_only,
            config_validators,
        } = value;
        refuse!(cluster_names, config_validators);
        let rate = rate_limit_settings.map(rate).transpose().within("rate_limit_settings")?;
        version(transport_api_version).within("transport_api_version")?;
        let protocol = match ApiType::try_from(api_type) {
            Ok(ApiType::Grpc) => Protocol::StateOfTheWorld,
            Ok(ApiType::DeltaGrpc) => Protocol::Delta,
            Ok(ApiType::AggregatedGrpc) if aggregated => Protocol::StateOfTheWorld,
            Ok(ApiType::AggregatedDeltaGrpc) if aggregated => Protocol::Delta,
            Ok(ApiType::Rest) => return Err(Refused::new("api_type", "REST is not supported; use GRPC or DELTA_GRPC")),
            _ => return Err(Refused::new("api_type", "is not supported; use GRPC or DELTA_GRPC")),
        };
        let mut services = grpc_services.into_iter();
        let Some(service) = services.next() else { return Err(Refused::new("grpc_services", "is empty")) };
        if services.next().is_some() {
            return Err(Refused::new("grpc_services[1]", "is not supported by this proxy; name one"));
        }
        let grpc = self.service(service, protocol, !set_node_on_first_message_only).within("grpc_services[0]")?;
        Ok(Grpc { rate, ..grpc })
    }

    fn service(&self, value: GrpcService, protocol: Protocol, node_always: bool) -> Converted<Grpc> {
        // A stream has no end in time.
        let GrpcService { timeout: _, initial_metadata, retry_policy: outer_retry_policy, target_specifier } = value;
        let EnvoyGrpc { cluster_name, authority, retry_policy, max_receive_message_length, skip_envoy_headers: _ } =
            match target_specifier {
                Some(TargetSpecifier::EnvoyGrpc(value)) => value,
                Some(TargetSpecifier::GoogleGrpc(_)) => {
                    return Err(Refused::new("google_grpc", "is not supported by this proxy; use envoy_grpc"));
                }
                None => return Err(Refused::new("target_specifier", "is missing")),
            };
        refuse_set(&max_receive_message_length, "envoy_grpc.max_receive_message_length")?;
        let missing = || {
            Refused::new("envoy_grpc.cluster_name", format!("`{cluster_name}` is not a cluster of static_resources"))
        };
        let server = self.servers.get(&cluster_name).ok_or_else(missing)?.clone();
        server.check().within("envoy_grpc.cluster_name")?;
        let metadata = grpc_metadata(initial_metadata).within("initial_metadata")?;
        Ok(Grpc {
            protocol,
            server,
            authority: (!authority.is_empty()).then_some(authority),
            metadata: metadata.into_iter().map(|(name, value)| (name.into(), value)).collect(),
            node_always,
            backoff: stream_backoff(retry_policy.or(outer_retry_policy), "retry_policy")?,
            rate: None,
        })
    }
}

fn rate(value: xds::RateLimitSettings) -> Converted<Rate> {
    let xds::RateLimitSettings { max_tokens, fill_rate } = value;
    let per_second = fill_rate.unwrap_or(10.0);
    if per_second.is_nan() || per_second <= 0.0 {
        return Err(Refused::new("fill_rate", "must be more than 0"));
    }
    Ok(Rate { most: max_tokens.unwrap_or(100).max(1), per_second: per_second.max(LEAST_RATE) })
}

fn version(value: i32) -> Converted<()> {
    match ApiVersion::try_from(value) {
        Ok(ApiVersion::V3 | ApiVersion::Auto) => Ok(()),
        _ => Err(Refused::new("", "is not supported; use V3")),
    }
}

/// How long to wait for the first resources of a source before going on without them; `None` is without limit.
///
/// # Errors
/// When it is no duration.
pub fn fetch_timeout(value: &ConfigSource) -> Converted<Option<Duration>> {
    let timeout = maybe_duration(value.initial_fetch_timeout, "initial_fetch_timeout")?;
    let timeout = timeout.unwrap_or(FETCH_TIMEOUT);
    Ok((!timeout.is_zero()).then_some(timeout))
}
