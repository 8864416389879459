//! Metric families whose labels come from outside.

use std::{
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hashlink::LruCache;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric},
};

/// A metric family of at most [`MAX_SERIES`] series: past that, a new series takes the place of the
/// one that was not used for the longest time.
///
/// A counter that is evicted starts at zero when it is used again, which Prometheus takes for a
/// restart.
pub struct BoundedFamily<S, M> {
    series: Arc<Mutex<LruCache<S, M>>>,
}

/// Most label sets of one family.
const MAX_SERIES: usize = 1_000;
/// Longest value of a label from outside, in bytes.
pub const MAX_LABEL_BYTES: usize = 200;

/// A value from outside as a label, cut to [`MAX_LABEL_BYTES`].
pub fn label_value(value: &str) -> String {
    label_text(value).to_owned()
}

/// The beginning of a value that is long enough for a label or a log line.
pub fn label_text(value: &str) -> &str {
    value.get(..value.floor_char_boundary(MAX_LABEL_BYTES)).unwrap_or(value)
}

impl<S: Hash + Eq, M> BoundedFamily<S, M> {
    fn series(&self) -> MutexGuard<'_, LruCache<S, M>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Clone + Hash + Eq, M: Clone + Default> BoundedFamily<S, M> {
    /// The metric with these labels, which is made if it is not there.
    pub fn get_or_create(&self, labels: &S) -> M {
        let mut series = self.series();
        if let Some(metric) = series.get(labels) {
            return metric.clone();
        }
        let metric = M::default();
        series.insert(labels.clone(), metric.clone());
        metric
    }

    /// Removes a series.
    pub fn remove(&self, labels: &S) {
        self.series().remove(labels);
    }
}

impl<S: Hash + Eq, M> Default for BoundedFamily<S, M> {
    fn default() -> Self {
        Self { series: Arc::new(Mutex::new(LruCache::new(MAX_SERIES))) }
    }
}

impl<S, M> Clone for BoundedFamily<S, M> {
    fn clone(&self) -> Self {
        Self { series: Arc::clone(&self.series) }
    }
}

impl<S, M> fmt::Debug for BoundedFamily<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundedFamily").finish_non_exhaustive()
    }
}

impl<S, M: TypedMetric> TypedMetric for BoundedFamily<S, M> {
    const TYPE: MetricType = M::TYPE;
}

impl<S, M> EncodeMetric for BoundedFamily<S, M>
where
    S: Hash + Eq + EncodeLabelSet,
    M: EncodeMetric + TypedMetric,
{
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, metric) in self.series().iter() {
            metric.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, metrics::counter::Counter, registry::Registry};

    use super::{BoundedFamily, MAX_LABEL_BYTES, MAX_SERIES, label_value};

    type Labels = [(&'static str, String); 1];

    fn model(name: &str) -> Labels {
        [("model", name.to_owned())]
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        assert_eq!(label_value("gpt"), "gpt");
        let long = label_value(&format!("x{}", "é".repeat(MAX_LABEL_BYTES)));
        assert_eq!(long, format!("x{}", "é".repeat(99)));
    }

    #[test]
    fn invented_names_do_not_push_out_a_name_that_is_in_use() {
        let family = BoundedFamily::<Labels, Counter>::default();
        let mut registry = Registry::default();
        registry.register("calls", "Calls", family.clone());
        for invented in 0..MAX_SERIES * 2 {
            family.get_or_create(&model(&format!("invented-{invented}"))).inc();
            family.get_or_create(&model("real")).inc();
        }
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        assert_eq!(page.matches("calls_total{").count(), MAX_SERIES);
        assert!(page.contains(&format!(r#"{{model="real"}} {}"#, MAX_SERIES * 2)), "{page}");
        assert!(page.contains(&format!("invented-{}", MAX_SERIES * 2 - 1)));
        assert!(!page.contains(r#""invented-0""#));
        family.remove(&model("real"));
        page.clear();
        text::encode(&mut page, &registry).unwrap();
        assert!(!page.contains("real"));
    }
}
