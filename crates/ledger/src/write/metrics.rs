//! What the ledger shows to Prometheus.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Bounds of the commit's histogram, in seconds.
const BOUNDS: [f64; 12] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// The ledger's metrics; clones share their values.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) queue_depth: Gauge,
    pub(crate) commit_seconds: Histogram,
    pub(crate) commits: Counter,
    pub(crate) records: Counter,
    pub(crate) spooled_records: Gauge,
    pub(crate) spooled_bytes: Gauge,
    pub(crate) outage: Gauge,
    pub(crate) retention_refused: Gauge,
    pub(crate) retention_removed: Counter,
    pub(crate) set_aside: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            queue_depth: Gauge::default(),
            commit_seconds: Histogram::new(BOUNDS),
            commits: Counter::default(),
            records: Counter::default(),
            spooled_records: Gauge::default(),
            spooled_bytes: Gauge::default(),
            outage: Gauge::default(),
            retention_refused: Gauge::default(),
            retention_removed: Counter::default(),
            set_aside: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers all of them below `<prefix>_ledger`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let ledger = registry.sub_registry_with_prefix("ledger");
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
            ledger.register(name, help, gauge.clone());
        };
        gauge("queue_depth", "Writes that wait for a commit", &self.queue_depth);
        gauge(
            "spooled_records",
            "Writes that wait in the spool for the store",
            &self.spooled_records,
        );
        gauge("spooled_bytes", "Size of the spool's files", &self.spooled_bytes);
        gauge("outage", "1 while the store is down", &self.outage);
        gauge(
            "retention_refused",
            "1 while retention is not applied because the clock is not plausible",
            &self.retention_refused,
        );
        ledger.register("commit_seconds", "Time of a commit", self.commit_seconds.clone());
        let help = "Writes that the store refused, in files beside the spool";
        ledger.register("set_aside", help, self.set_aside.clone());
        ledger.register("commits", "Commits to the store", self.commits.clone());
        ledger.register("records", "Interceptions opened or recorded whole", self.records.clone());
        ledger.register(
            "retention_removed",
            "Interceptions removed by retention",
            self.retention_removed.clone(),
        );
    }
}
