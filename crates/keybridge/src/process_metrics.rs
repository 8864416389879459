//! Metrics of the process: its clients' connections and its memory, read when they are asked for.

use std::fmt;

use keybridge_bridge::Bridge;
use keybridge_net::listener::Connections;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::resident;

/// The sources of the metrics.
#[derive(Debug)]
pub(crate) struct ProcessMetrics {
    pub(crate) bridge: Bridge,
    pub(crate) connections: Connections,
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, bytes: usize| {
            let value = ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            value.encode(encoder)
        };
        gauge("connections_open", "Open client connections", self.connections.open())?;
        let body_memory = self.bridge.body_memory();
        gauge("body_memory_bytes", "Memory reserved for request bodies", body_memory)?;
        if let Some(resident) = resident::bytes() {
            gauge("resident_memory_bytes", "Resident memory of the process", resident)?;
        }
        let (name, help) =
            ("connections_refused", "Connections over a limit, and requests of proxies");
        let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, count) in [
            ("total", self.connections.refused_in_total()),
            ("address", self.connections.refused_per_address()),
        ] {
            ConstCounter::new(count).encode(encoder.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}
