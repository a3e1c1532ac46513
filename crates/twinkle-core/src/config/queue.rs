//! `queue_config` and `task_queue`: what one tenant may send.

use serde::Serialize;

use super::limits::Limits;
use super::section::Section;

/// What one tenant may send to one application.
///
/// A limit of 0 is off. Rates are token buckets (GCRA): one window's worth may come at once, then it refills
/// continuously.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueueConfig {
    /// Whether any limit holds.
    pub enabled: bool,
    /// Requests per window.
    pub rps_limit: f64,
    /// Input tokens per window.
    pub tps_limit: f64,
    /// Length of the window, in seconds.
    pub window_seconds: f64,
    /// Most input tokens of one request.
    pub max_input_tokens: u64,
    /// Most seconds a request waits for its turn.
    pub queue_timeout: f64,
    /// Most seconds a request runs; 0 for no limit.
    pub execution_timeout: f64,
    /// Idle tenants are forgotten after this many windows.
    pub token_cleanup_multiplier: f64,
    /// Seconds between two sweeps of idle tenants.
    pub token_cleanup_interval: f64,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            rps_limit: 100.0,
            tps_limit: 16_000.0,
            window_seconds: 1.0,
            max_input_tokens: 16_000,
            queue_timeout: 300.0,
            execution_timeout: 120.0,
            token_cleanup_multiplier: 10.0,
            token_cleanup_interval: 60.0,
        }
    }
}

impl QueueConfig {
    /// No limits.
    #[must_use]
    pub fn off() -> Self {
        Self { enabled: false, ..Self::default() }
    }

    /// What the section says over `defaults`.
    pub(super) fn read(section: Option<Section<'_>>, defaults: &Self) -> Self {
        let mut config = defaults.clone();
        let Some(mut section) = section else { return config };
        if let Some(enabled) = section.boolean("enabled") {
            config.enabled = enabled.value;
        }
        let numbers = [
            ("rps_limit", Limits::FROM_ZERO, &mut config.rps_limit),
            ("tps_limit", Limits::FROM_ZERO, &mut config.tps_limit),
            ("window_seconds", Limits::SOME_SECONDS, &mut config.window_seconds),
            ("queue_timeout", Limits::SECONDS, &mut config.queue_timeout),
            ("execution_timeout", Limits::SECONDS, &mut config.execution_timeout),
            ("token_cleanup_multiplier", Limits::FROM_ZERO, &mut config.token_cleanup_multiplier),
            ("token_cleanup_interval", Limits::SECONDS, &mut config.token_cleanup_interval),
        ];
        for (key, limits, value) in numbers {
            section.set_number(key, limits, value);
        }
        if let Some(most) = section.integer("max_input_tokens", 1..) {
            config.max_input_tokens = most.value;
        }
        section.finish();
        config
    }
}
