//! Metrics of tools: calls of injected tools, and selections of the client's own.

use std::time::Duration;

use keybridge_telemetry::{BoundedFamily, label_value};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// The metrics of the tools of one data path.
#[derive(Debug)]
pub(crate) struct ToolMetrics {
    invocations: BoundedFamily<ToolLabels, Counter>,
    failures: BoundedFamily<ToolLabels, Counter>,
    seconds: Family<ServerLabels, Histogram, fn() -> Histogram>,
    selections: BoundedFamily<SelectionLabels, Counter>,
}

/// Upper bounds of the histogram of tool calls, in seconds.
const SECONDS: [f64; 10] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

impl Default for ToolMetrics {
    fn default() -> Self {
        Self {
            invocations: BoundedFamily::default(),
            failures: BoundedFamily::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            selections: BoundedFamily::default(),
        }
    }
}

/// An injected tool that was called for a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ToolLabels {
    pub(crate) provider: String,
    pub(crate) model: String,
    pub(crate) server: String,
    pub(crate) name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    server: String,
}

/// One of the client's tools that a model selected.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SelectionLabels {
    provider: String,
    model: String,
    name: String,
}

impl ToolMetrics {
    /// Counts a call of an injected tool.
    pub(crate) fn count_invocation(
        &self,
        labels: &ToolLabels,
        succeeded: bool,
        duration: Duration,
    ) {
        self.invocations.get_or_create(labels).inc();
        if !succeeded {
            self.failures.get_or_create(labels).inc();
        }
        let server = ServerLabels { server: labels.server.clone() };
        self.seconds.get_or_create(&server).observe(duration.as_secs_f64());
    }

    /// Counts a selection of one of the client's tools by a model.
    pub(crate) fn count_selection(&self, provider: &str, model: &str, name: &str) {
        let labels = SelectionLabels {
            provider: provider.to_owned(),
            model: label_value(model),
            name: label_value(name),
        };
        self.selections.get_or_create(&labels).inc();
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "injected_tool_invocations",
            "Calls of injected tools",
            self.invocations.clone(),
        );
        registry.register(
            "injected_tool_failures",
            "Calls of injected tools that failed",
            self.failures.clone(),
        );
        registry.register(
            "injected_tool_seconds",
            "How long calls of injected tools took",
            self.seconds.clone(),
        );
        registry.register(
            "non_injected_tool_selections",
            "Calls that models made of tools which the bridge did not inject",
            self.selections.clone(),
        );
    }
}
