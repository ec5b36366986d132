//! Envoy's overload manager: which resources are watched, and what is done when they run short.

use crate::overload::{Action, Follow, INTERVAL, Monitor, Overload, Resource, Trigger};
use crate::xds::convert::common::{maybe_duration, optional, unknown_type};
use crate::xds::convert::{Converted, Refused, Within as _, refuse, refuse_set};
use leno_xds::envoy::config::overload::v3::{
    OverloadAction, OverloadManager, ResourceMonitor, ScaledTrigger, ThresholdTrigger, Trigger as TriggerMessage,
    resource_monitor, trigger,
};
use leno_xds::envoy::extensions::resource_monitors::{
    cgroup_memory::v3::CgroupMemoryConfig, downstream_connections::v3::DownstreamConnectionsConfig,
    fixed_heap::v3::FixedHeapConfig,
};
use std::time::Duration;

/// Monitors, actions, and triggers of an action at most.
const MOST: usize = 32;
/// Shortest interval; each look reads files of the kernel.
const SHORTEST: Duration = Duration::from_millis(10);

pub(super) fn overload(value: OverloadManager) -> Converted<Overload> {
    let OverloadManager {
        refresh_interval,
        resource_monitors,
        actions,
        loadshed_points,
        // From which size on streams count for an action that is refused here.
        buffer_factory_config: _,
    } = value;
    refuse!(loadshed_points);
    for (count, field) in [(resource_monitors.len(), "resource_monitors"), (actions.len(), "actions")] {
        if count > MOST {
            return Err(Refused::new(field, format!("are more than {MOST}")));
        }
    }
    let mut monitors: Vec<Monitor> = Vec::new();
    let mut connections = None;
    for (index, value) in resource_monitors.into_iter().enumerate() {
        if let Some(most) = most_connections(&value).within(format_args!("resource_monitors[{index}]"))? {
            connections = Some(most);
            continue;
        }
        let monitor = monitor(value).within(format_args!("resource_monitors[{index}]"))?;
        if monitors.iter().any(|other| other.name == monitor.name) {
            return Err(Refused::new(format!("resource_monitors[{index}].name"), "is there twice"));
        }
        monitors.push(monitor);
    }
    let actions = actions.into_iter().enumerate();
    let actions = actions.map(|(index, value)| follow(value, &monitors).within(format_args!("actions[{index}]")));
    let actions = actions.collect::<Converted<Vec<_>>>()?;
    let interval = maybe_duration(refresh_interval, "refresh_interval")?.unwrap_or(INTERVAL).max(SHORTEST);
    Ok(Overload { interval, monitors, actions, connections })
}

/// The limit of connections, if that is what the monitor is about. No action follows from it.
fn most_connections(value: &ResourceMonitor) -> Converted<Option<u64>> {
    let ResourceMonitor { name: _, config_type } = value;
    let Some(resource_monitor::ConfigType::TypedConfig(any)) = config_type else { return Ok(None) };
    match optional::<DownstreamConnectionsConfig>(any).within("typed_config")? {
        None => Ok(None),
        Some(DownstreamConnectionsConfig { max_active_downstream_connections: most }) => match u64::try_from(most) {
            Ok(most @ 1..) => Ok(Some(most)),
            _ => Err(Refused::new("typed_config.max_active_downstream_connections", "is not above zero")),
        },
    }
}

fn monitor(value: ResourceMonitor) -> Converted<Monitor> {
    let ResourceMonitor { name, config_type } = value;
    let Some(resource_monitor::ConfigType::TypedConfig(any)) = config_type else {
        return Err(Refused::new("typed_config", "is missing"));
    };
    let resource = if let Some(value) = optional::<FixedHeapConfig>(&any).within("typed_config")? {
        let FixedHeapConfig { max_heap_size_bytes, max_heap_size_bytes_runtime } = value;
        refuse_set(&max_heap_size_bytes_runtime, "typed_config.max_heap_size_bytes_runtime")?;
        if max_heap_size_bytes == 0 {
            return Err(Refused::new("typed_config.max_heap_size_bytes", "is not above zero"));
        }
        Resource::Heap(max_heap_size_bytes)
    } else if let Some(CgroupMemoryConfig { max_memory_bytes }) = optional(&any).within("typed_config")? {
        Resource::Cgroup((max_memory_bytes > 0).then_some(max_memory_bytes))
    } else {
        return Err(unknown_type(&any).within("typed_config"));
    };
    Ok(Monitor { name: name.into(), resource })
}

fn follow(value: OverloadAction, monitors: &[Monitor]) -> Converted<Follow> {
    let OverloadAction { name, triggers, typed_config } = value;
    refuse!(typed_config);
    let Some(action) = Action::ALL.into_iter().find(|action| action.name() == name) else {
        let known = Action::ALL.map(Action::name).join(", ");
        return Err(Refused::new("name", format!("`{name}` is not supported by this proxy; use one of {known}")));
    };
    if triggers.is_empty() || triggers.len() > MOST {
        return Err(Refused::new("triggers", format!("are not between 1 and {MOST}")));
    }
    let triggers = triggers.into_iter().enumerate();
    let triggers = triggers.map(|(index, value)| trigger(value, monitors).within(format_args!("triggers[{index}]")));
    Ok(Follow { action, triggers: triggers.collect::<Converted<_>>()? })
}

fn trigger(value: TriggerMessage, monitors: &[Monitor]) -> Converted<Trigger> {
    let TriggerMessage { name, trigger_oneof } = value;
    let unknown = || Refused::new("name", format!("`{name}` is none of the resource_monitors"));
    let monitor = monitors.iter().position(|monitor| *monitor.name == *name).ok_or_else(unknown)?;
    let share = |value: f64, field: &str| match (0.0..=1.0).contains(&value) {
        true => Ok(value),
        false => Err(Refused::new(field, format!("{value} is not between 0 and 1"))),
    };
    let (from, to) = match trigger_oneof {
        Some(trigger::TriggerOneof::Threshold(ThresholdTrigger { value })) => {
            let value = share(value, "threshold.value")?;
            (value, value)
        }
        Some(trigger::TriggerOneof::Scaled(ScaledTrigger { scaling_threshold, saturation_threshold })) => {
            let from = share(scaling_threshold, "scaled.scaling_threshold")?;
            let to = share(saturation_threshold, "scaled.saturation_threshold")?;
            if from >= to {
                return Err(Refused::new("scaled.scaling_threshold", "is not below saturation_threshold"));
            }
            (from, to)
        }
        None => return Err(Refused::new("trigger_oneof", "is missing")),
    };
    Ok(Trigger { monitor, from, to })
}
