//! Envoy's bootstrap: what a proxy without a pod of ours is told at its start.
//!
//! The file is `envoy.config.bootstrap.v3.Bootstrap` as YAML or JSON. Fields of Envoy's own machinery (watchdogs,
//! memory) make no difference to traffic and are passed over; a field that would and is not supported is
//! refused with its path, before anything listens.

// Deprecated fields are named like all others.
#![allow(deprecated)]

mod dynamic;
mod folder;
mod overload;
mod references;
mod runtime;
mod stats;

pub use dynamic::Dynamic;
pub use references::check_listener;
pub use runtime::{Layers, NotTaken, WRITTEN_VALUES};

use super::convert::cluster::Sockets;
use super::convert::cluster::dns::{Resolvers, resolvers};
use super::convert::common::{self, optional, unknown_type};
use super::convert::{Converted, Refused, Within as _, refuse, refuse_set};
use super::management::Server;
use super::state::Kind;
use crate::overload::Overload;
use crate::telemetry::display::Display;
use leno_xds::envoy::config::accesslog::v3::{AccessLog, access_log};
use leno_xds::envoy::config::bootstrap::v3 as xds;
use leno_xds::envoy::config::bootstrap::v3::{bootstrap::StaticResources, cluster_manager::OutlierDetection};
use leno_xds::envoy::config::cluster::v3::Cluster;
use leno_xds::envoy::config::core::v3::{
    Address, BuildVersion, Node, Pipe, TypedExtensionConfig, address, node::UserAgentVersionType,
};
use leno_xds::envoy::extensions::access_loggers::{file::v3::FileAccessLog, stream::v3::StdoutAccessLog};
use leno_xds::envoy::service::discovery::v3::Resource;
use leno_xds::envoy::r#type::v3::SemanticVersion;
use prost_types::value::Kind as ValueKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest bootstrap that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Why a bootstrap is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// It is no bootstrap.
    #[error("{}: {source}", path.display())]
    Message {
        /// Which.
        path: PathBuf,
        /// What does not fit.
        source: leno_xds::json::JsonError,
    },
    /// A field.
    #[error("{}: {refused}", path.display())]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Which field, and why.
        refused: Refused,
    },
}

/// Where an admin server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// On a port.
    Socket(SocketAddr),
    /// On a Unix socket; `@` begins an abstract name. The mode of its file, where one is wanted.
    Pipe(String, Option<u32>),
}

impl std::fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Pipe(path, _) => path.fmt(f),
        }
    }
}

/// What a bootstrap says.
#[derive(Debug, Default)]
pub struct Bootstrap {
    /// What is shown of the file: all but the resources, which are shown as they are in force.
    pub shown: prost_types::Any,
    /// Who this proxy is, for management servers.
    pub node: Node,
    /// Resources in the file itself, in the order in which they are taken: secrets, clusters, listeners.
    pub resources: Vec<(Kind, Vec<Resource>)>,
    /// Where other resources come from.
    pub dynamic: Dynamic,
    /// Where the admin server listens, if there is one.
    pub admin: Option<AdminAddress>,
    /// Where requests to it are logged.
    pub admin_logs: Vec<String>,
    /// Values by which runtime fractions may be changed.
    pub runtime: Layers,
    /// Who is asked for the names of endpoints where their cluster does not say.
    pub resolvers: Resolvers,
    /// How sockets to endpoints are made where their cluster does not say.
    pub sockets: Sockets,
    /// The cluster whose endpoints are this proxy and those like it; it stands in the file.
    pub local_cluster: Option<String>,
    /// Where is written which endpoints outlier detection takes out.
    pub outlier_log: Option<String>,
    /// Which statistics are shown, and how.
    pub display: Arc<Display>,
    /// What is done when memory runs short; none leaves it to this proxy.
    pub overload: Option<Overload>,
}

impl Bootstrap {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is no bootstrap, or has a field that is not supported.
    pub fn read(path: &Path) -> Result<Self, BootstrapError> {
        use std::io::Read as _;
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
            .map_err(|source| BootstrapError::File { path: path.to_owned(), source })?;
        let message = leno_xds::json::from_text(&text)
            .map_err(|source| BootstrapError::Message { path: path.to_owned(), source })?;
        bootstrap(message).map_err(|refused| BootstrapError::Refused { path: path.to_owned(), refused })
    }
}

fn bootstrap(value: xds::Bootstrap) -> Converted<Bootstrap> {
    let shown = leno_xds::any(&xds::Bootstrap { static_resources: None, ..value.clone() });
    let xds::Bootstrap {
        node,
        // They go into names of the newer scheme (`xdstp:`), which is refused.
        node_context_params: _,
        static_resources,
        dynamic_resources,
        cluster_manager,
        hds_config,
        flags_path,
        stats_sinks,
        deferred_stat_options: _,
        stats_config,
        stats_flush_interval,
        watchdog: _,
        watchdogs: _,
        tracing,
        layered_runtime,
        admin,
        overload_manager,
        enable_dispatcher_stats: _,
        header_prefix,
        stats_server_version_override: _,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        certificate_provider_instances,
        inline_headers: _,
        perf_tracing_file_path: _,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        listener_manager,
        // Lines about the process itself have this proxy's own form: see `--log-format`.
        application_log_config: _,
        grpc_async_client_manager_config: _,
        memory_allocator_manager: _,
        enable_worker_cpu_affinity: _,
        stats_flush,
        stats_eviction,
    } = value;
    stats::flushes(stats_flush_interval, stats_flush, stats_eviction)?;
    refuse!(
        hds_config,
        flags_path,
        stats_sinks,
        tracing,
        header_prefix,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        certificate_provider_instances,
        xds_delegate_extension,
        xds_config_tracker_extension,
        listener_manager
    );
    for (index, extension) in bootstrap_extensions.into_iter().enumerate() {
        // What it makes possible is refused where a listener or an endpoint asks for it.
        let within = format!("bootstrap_extensions[{index}]");
        one_of(extension, &["envoy.extensions.bootstrap.internal_listener.v3.InternalListener"]).within(within)?;
    }
    if let Some(engine) = default_regex_engine {
        one_of(engine, &["envoy.extensions.regex_engines.v3.GoogleRE2"]).within("default_regex_engine")?;
    }
    let static_resources = static_resources.unwrap_or_default();
    let manager = |value| manager(value, &static_resources.clusters);
    let manager = cluster_manager.map(manager).transpose().within("cluster_manager")?;
    let Manager { sockets, local_cluster, outlier_log } = manager.unwrap_or_default();
    // Where clusters come from elsewhere as well, who knows what will be there.
    if dynamic_resources.as_ref().is_none_or(|dynamic| dynamic.cds_config.is_none()) {
        references::check_clusters(&static_resources)?;
    }
    references::check_addresses(&static_resources)?;
    let clusters = static_resources.clusters.iter();
    let servers = clusters.map(|cluster| (cluster.name.clone(), Arc::new(Server::new(cluster)))).collect();
    let mut dynamic = Dynamic::new(dynamic_resources.unwrap_or_default(), servers).within("dynamic_resources")?;
    let (admin, admin_logs) = admin.map(self::admin).transpose().within("admin")?.unwrap_or_default();
    let node = introduce(node.unwrap_or_default());
    let runtime = Layers::new(layered_runtime, &node.cluster).within("layered_runtime")?;
    for (name, config) in runtime.sources() {
        dynamic.ask_layer(name, config).within(format_args!("layered_runtime: rtds_layer `{name}`: rtds_config"))?;
    }
    Ok(Bootstrap {
        shown,
        node,
        dynamic,
        resources: resources(static_resources),
        admin,
        admin_logs,
        sockets,
        local_cluster,
        outlier_log,
        resolvers: resolvers(Vec::new(), use_tcp_for_dns_lookups, dns_resolution_config, typed_dns_resolver_config)?,
        overload: overload_manager.map(overload::overload).transpose().within("overload_manager")?,
        display: stats_config.map(stats::stats_config).transpose().within("stats_config")?.unwrap_or_default().into(),
        runtime,
    })
}

/// An extension that changes nothing here, if it is one of these.
fn one_of(value: TypedExtensionConfig, types: &[&str]) -> Converted<()> {
    let TypedExtensionConfig { name: _, typed_config } = value;
    let Some(any) = typed_config else { return Err(Refused::new("typed_config", "is missing")) };
    let any = leno_xds::json::typed_struct(&any).ok().flatten().unwrap_or(any);
    match types.iter().any(|known| any.type_url.ends_with(known)) {
        true => Ok(()),
        false => Err(unknown_type(&any).within("typed_config")),
    }
}

/// The release of Envoy whose configuration is understood.
const ENVOY: (u32, u32, u32) = (1, 40, 0);

/// How this proxy introduces itself to servers, where its bootstrap does not say.
fn introduce(mut node: Node) -> Node {
    if node.user_agent_name.is_empty() {
        "leno".clone_into(&mut node.user_agent_name);
    }
    // Servers that ask for the version mean that of the API: what a release of Envoy may be sent.
    let own = prost_types::Value { kind: Some(ValueKind::StringValue(leno_runtime::version().to_string())) };
    node.user_agent_version_type.get_or_insert_with(|| {
        let (major_number, minor_number, patch) = ENVOY;
        UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
            version: Some(SemanticVersion { major_number, minor_number, patch }),
            metadata: Some(prost_types::Struct { fields: [("leno.version".to_owned(), own)].into() }),
        })
    });
    node
}

fn resources(value: StaticResources) -> Vec<(Kind, Vec<Resource>)> {
    let StaticResources { listeners, clusters, secrets } = value;
    vec![
        (Kind::Secret, secrets.iter().map(|value| resource(&value.name, value)).collect()),
        (Kind::Cluster, clusters.iter().map(|value| resource(&value.name, value)).collect()),
        (
            Kind::Listener,
            listeners.iter().enumerate().map(|(index, value)| resource(&listener_name(index, value), value)).collect(),
        ),
    ]
}

/// A static listener needs no name of its own.
fn listener_name(index: usize, value: &leno_xds::envoy::config::listener::v3::Listener) -> String {
    if value.name.is_empty() { format!("static_resources.listeners[{index}]") } else { value.name.clone() }
}

fn resource<M: prost::Message + prost::Name>(name: &str, value: &M) -> Resource {
    Resource { name: name.to_owned(), resource: Some(leno_xds::any(value)), ..Default::default() }
}

/// What is said for all clusters.
#[derive(Default)]
struct Manager {
    sockets: Sockets,
    local_cluster: Option<String>,
    outlier_log: Option<String>,
}

fn manager(value: xds::ClusterManager, clusters: &[Cluster]) -> Converted<Manager> {
    let xds::ClusterManager {
        local_cluster_name,
        outlier_detection,
        upstream_bind_config,
        load_stats_config,
        enable_deferred_cluster_creation: _,
    } = value;
    refuse!(load_stats_config);
    let OutlierDetection { event_log_path, event_service } = outlier_detection.unwrap_or_default();
    refuse_set(&event_service, "outlier_detection.event_service")?;
    let log = Some(event_log_path).filter(|path| !path.is_empty());
    let local = Some(local_cluster_name).filter(|name| !name.is_empty());
    if let Some(name) = local.as_ref().filter(|name| !clusters.iter().any(|cluster| cluster.name == **name)) {
        return Err(Refused::new("local_cluster_name", format!("`{name}` is none of the static clusters")));
    }
    let sockets = upstream_bind_config.map(Sockets::new).transpose().within("upstream_bind_config")?;
    Ok(Manager { sockets: sockets.unwrap_or_default(), local_cluster: local, outlier_log: log })
}

/// The path of a log of the admin server, in Envoy's usual format.
fn admin_log(value: AccessLog) -> Converted<String> {
    let AccessLog { name: _, filter, config_type } = value;
    refuse!(filter);
    let Some(access_log::ConfigType::TypedConfig(any)) = config_type else {
        return Err(Refused::new("typed_config", "is missing"));
    };
    if optional::<StdoutAccessLog>(&any).within("typed_config")?.is_some() {
        return Ok("/dev/stdout".to_owned());
    }
    match optional::<FileAccessLog>(&any).within("typed_config")? {
        Some(FileAccessLog { path, access_log_format }) if path == "/dev/null" || access_log_format.is_none() => {
            Ok(path)
        }
        Some(_) => Err(Refused::new("typed_config.log_format", "of the admin server is always the usual one")),
        None => Err(unknown_type(&any).within("typed_config")),
    }
}

fn admin(value: xds::Admin) -> Converted<(Option<AdminAddress>, Vec<String>)> {
    let xds::Admin {
        access_log,
        access_log_path,
        profile_path: _,
        address: place,
        socket_options,
        ignore_global_conn_limit: _,
        allow_paths,
    } = value;
    refuse!(socket_options, allow_paths);
    let mut logs: Vec<String> = Some(access_log_path).filter(|path| !path.is_empty()).into_iter().collect();
    for (index, log) in access_log.into_iter().enumerate() {
        logs.push(admin_log(log).within(format_args!("access_log[{index}]"))?);
    }
    logs.retain(|path| path != "/dev/null");
    match place {
        None => Ok((None, logs)),
        Some(Address { address: Some(address::Address::Pipe(Pipe { path, mode })) }) => {
            if path.is_empty() {
                return Err(Refused::new("address.pipe.path", "is missing"));
            }
            Ok((Some(AdminAddress::Pipe(path, (mode > 0).then_some(mode))), logs))
        }
        some => Ok((Some(AdminAddress::Socket(common::address(some).within("address")?)), logs)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Bootstrap, BootstrapError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bootstrap.yaml");
        std::fs::write(&path, text).unwrap();
        Bootstrap::read(&path)
    }

    #[test]
    fn bootstrap_when_written_as_yaml_or_json_is_the_same() {
        let yaml = "node: {id: a, cluster: b}\nadmin:\n  access_log: [{name: x, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/null}}]\n  address:\n    socket_address: {address: 127.0.0.1, port_value: 9901}\n";
        let json = r#"{"node": {"id": "a", "cluster": "b"},
            "admin": {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": 9901}}}}"#;
        for text in [yaml, json] {
            let bootstrap = read(text).unwrap();
            assert_eq!(bootstrap.node.id, "a");
            assert_eq!(bootstrap.admin, Some(AdminAddress::Socket(([127, 0, 0, 1], 9901).into())));
        }
    }

    #[test]
    fn admin_when_it_names_logs_then_they_are_known_but_for_those_that_go_nowhere() {
        let logs = |text: &str| read(text).unwrap().admin_logs;
        assert_eq!(logs("admin: {access_log_path: /tmp/a}"), ["/tmp/a"]);
        assert!(logs("admin: {access_log_path: /dev/null}").is_empty());
        let text = r#"admin: {access_log: [{typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /tmp/b}}, {typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}}]}"#;
        assert_eq!(logs(text), ["/tmp/b", "/dev/stdout"]);
    }

    #[test]
    fn bootstrap_when_a_field_is_not_supported_or_not_known_names_it() {
        let cases = [
            ("header_prefix: x-foo", "field `header_prefix`"),
            (
                "stats_config: {stats_tags: [{tag_name: a, fixed_value: b}, {tag_name: x}]}",
                "field `stats_config.stats_tags[1].regex`",
            ),
            ("stats_config: {stats_tags: [{tag_name: a, regex: '('}]}", "field `stats_config.stats_tags[0].regex`"),
            (
                "stats_config: {histogram_bucket_settings: [{match: {prefix: a}, buckets: [1, 7.5]}]}",
                "field `stats_config.histogram_bucket_settings[0].buckets`: 7.5 is no bound",
            ),
            (
                "cluster_manager: {local_cluster_name: here}",
                "field `cluster_manager.local_cluster_name`: `here` is none of the static clusters",
            ),
            (
                "cluster_manager: {upstream_bind_config: {socket_options: [{level: 1, name: 2}]}}",
                "cluster_manager.upstream_bind_config.socket_options[0].value",
            ),
            (
                r#"admin: {access_log: [{typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /tmp/log, format: x}}]}"#,
                "field `admin.access_log[0].typed_config.log_format`",
            ),
            ("static_resuorces: {}", "static_resuorces"),
            ("a: [", "neither YAML nor JSON"),
        ];
        for (text, wanted) in cases {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("bootstrap.yaml"), "{text}: {error}");
        }
    }

    #[test]
    fn cluster_manager_when_it_names_the_local_cluster_and_a_log_then_both_are_known() {
        let text = "cluster_manager: {local_cluster_name: here, outlier_detection: {event_log_path: /tmp/a}}\n\
                    static_resources: {clusters: [{name: here}]}\n";
        let bootstrap = read(text).unwrap();
        assert_eq!(bootstrap.local_cluster.as_deref(), Some("here"));
        assert_eq!(bootstrap.outlier_log.as_deref(), Some("/tmp/a"));
        let none = read("cluster_manager: {}").unwrap();
        assert_eq!((none.local_cluster, none.outlier_log), (None, None));
    }

    #[test]
    fn route_when_its_cluster_is_none_of_the_static_ones_names_it() {
        let with = |fields: &str, more: &str| {
            format!(
                "{{static_resources: {{clusters: [{{name: a}}], listeners: [{{filter_chains: [{{filters: [{{name: hcm, typed_config: {{'@type': \
                 type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: x, \
                 route_config: {{{fields} virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: a}}}}, \
                 {{match: {{prefix: /}}, route: {{weighted_clusters: {{clusters: [{{name: b, weight: 1}}]}}}}}}]}}]}}}}}}]}}]}}]}}{more}}}"
            )
        };
        let said = read(&with("", "")).unwrap_err().to_string();
        let field = "listeners[0].filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[1].route.\
                     weighted_clusters.clusters[0].name";
        assert!(said.contains(field) && said.contains("`b` is no cluster; add it"), "{said}");
        read(&with("validate_clusters: false,", "")).unwrap();
        read(&with("", ", dynamic_resources: {cds_config: {path_config_source: {path: /nowhere}}}")).unwrap();
    }

    #[test]
    fn statistics_when_the_file_says_which_and_how_then_they_are_shown_so() {
        let shows = |text: &str, name: &str| read(text).unwrap().display.shows(name);
        assert!(shows("{}", "cluster.a.upstream_rq_total"));
        let some = "stats_config: {stats_matcher: {inclusion_list: {patterns: [{prefix: cluster.a.}]}}}";
        assert!(shows(some, "cluster.a.upstream_rq_total") && !shows(some, "server.live"));
        assert!(!shows("stats_config: {stats_matcher: {reject_all: true}}", "server.live"));
        let tags = |text: &str| {
            let display = read(text).unwrap().display.clone();
            (display.tags.is_some(), display.fixed.len())
        };
        assert_eq!(tags("stats_config: {stats_tags: [{tag_name: zone, fixed_value: a}]}"), (false, 1));
        assert_eq!(
            tags("stats_config: {stats_tags: [{tag_name: envoy.cluster_name}], use_all_default_tags: false}"),
            (true, 0)
        );
    }

    #[test]
    fn overload_manager_when_a_part_is_not_supported_names_it() {
        const MONITORS: &str = r#"resource_monitors: [{name: used, typed_config: {"@type":
            type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 1000000}}]"#;
        const TRIGGERS: &str = "triggers: [{name: heap, threshold: {value: 0.5}}]";
        for (part, name, wanted) in [
            ("loadshed_points", "x", "field `overload_manager.loadshed_points`"),
            ("actions", "envoy.overload_actions.reduce_timeouts", "field `overload_manager.actions[0].name`"),
            ("actions", "envoy.overload_actions.shrink_heap", "field `overload_manager.actions[0].triggers[0].name`"),
        ] {
            let text = format!("overload_manager: {{{MONITORS}, {part}: [{{name: {name}, {TRIGGERS}}}]}}");
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("bootstrap.yaml"), "{text}: {error}");
        }
    }
}
