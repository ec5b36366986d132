//! Where a bootstrap says that resources come from.

use crate::xds::convert::{Converted, Within as _, refuse};
use crate::xds::management::Server;
use crate::xds::source::{Grpc, SourceId, Sources, fetch_timeout};
use crate::xds::state::Kind;
use leno_xds::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use leno_xds::envoy::config::core::v3::ConfigSource;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The servers and files that are asked for resources.
#[derive(Debug, Default)]
pub struct Dynamic {
    /// The aggregated stream, if there is one.
    pub ads: Option<Arc<Grpc>>,
    /// The kinds of which everything is wanted from the aggregated stream.
    pub all_of: Vec<Kind>,
    /// Every source that is known.
    pub sources: Sources,
    /// How long the first response of a kind is waited for before anything is in force; none is without limit.
    pub expected: Vec<(Kind, Option<Duration>)>,
}

impl Dynamic {
    /// Takes the message apart. `servers` are those that a static cluster names.
    ///
    /// # Errors
    /// When a source is not supported.
    pub fn new(value: DynamicResources, servers: BTreeMap<String, Arc<Server>>) -> Converted<Self> {
        let DynamicResources { lds_config, lds_resources_locator, cds_config, cds_resources_locator, ads_config } =
            value;
        refuse!(lds_resources_locator, cds_resources_locator);
        let mut sources = Sources::new(ads_config.is_some(), servers);
        let ads = ads_config.map(|value| sources.grpc(value, true).map(Arc::new)).transpose().within("ads_config")?;
        let (mut all_of, mut expected) = (Vec::new(), Vec::new());
        for (kind, config, field) in
            [(Kind::Cluster, cds_config, "cds_config"), (Kind::Listener, lds_config, "lds_config")]
        {
            let Some(config) = config else { continue };
            expected.push((kind, fetch_timeout(&config).within(field)?));
            match sources.id(config.clone()).within(field)? {
                SourceId::ADS => all_of.push(kind),
                _ => sources.ask(kind, ALL, Some(config)).within(field)?,
            }
        }
        Ok(Self { ads, all_of, sources, expected })
    }

    /// A layer of the runtime is to be asked for there.
    ///
    /// # Errors
    /// When the source is not supported.
    pub fn ask_layer(&mut self, name: &str, config: &ConfigSource) -> Converted<()> {
        self.expected.push((Kind::Runtime, fetch_timeout(config)?));
        self.sources.ask(Kind::Runtime, name, Some(config.clone()))
    }
}

/// The name by which everything of a kind is asked for.
const ALL: &str = "*";
