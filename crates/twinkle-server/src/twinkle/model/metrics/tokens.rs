//! Metrics of single tokens and texts, by the names of their classes.

use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::IGNORED_LABEL;

use super::Metric;
use super::embedding::Embedding;
use super::policy::{Clipping, Policy};
use super::preference::Preference;
use crate::twinkle::model::arguments::Arguments;

/// Most positions with a large divergence that one forward may add.
const MOST_RECORDS: u64 = 100;

/// The metric `class` with its settings.
pub(super) fn build(class: &str, settings: Map<String, Value>) -> Result<Box<dyn Metric>> {
    let mut settings = Arguments::new(class, settings);
    if let Some(index) = settings.any("ignore_index").filter(|index| index.as_i64() != Some(IGNORED_LABEL)) {
        return Err(Error::unsupported(format!("`ignore_index` is {index}, but labels are ignored by -100 here")));
    }
    let metric: Box<dyn Metric> = match class {
        "DPOMetric" => Box::new(Preference::new(settings.number("beta")?.unwrap_or(0.1))),
        "EmbeddingMetric" => Box::new(Embedding::default()),
        _ => {
            let clipping = match class {
                "GSPOMetric" => Clipping::Sequence,
                "CISPOMetric" => Clipping::Unconditional,
                _ => Clipping::Token,
            };
            let epsilon = settings.number("epsilon")?.unwrap_or(0.2);
            let records = settings.count("top_k_kl")?.unwrap_or(0);
            if records > MOST_RECORDS {
                return Err(Error::invalid(format!("`top_k_kl` is {records}, but must be at most {MOST_RECORDS}")));
            }
            Box::new(Policy::new(
                clipping,
                settings.number("temperature")?.unwrap_or(1.0),
                (epsilon, settings.number("epsilon_high")?.unwrap_or(epsilon)),
                records as usize,
            ))
        }
    };
    settings.end()?;
    Ok(metric)
}
