//! The kinds of metrics. Each is a `static` of the table in [`super::metrics`] and is silent until installed.

use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::metrics as otel;
use opentelemetry::metrics::Meter;

use super::labels::Labels;
use super::metrics::METRICS;

/// Which meter a metric belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `twinkle-server`: what the node does.
    Server,
    /// `twinkle.server.resource`: what it uses of its machine.
    Resource,
}

impl Scope {
    /// The meter's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Server => "twinkle-server",
            Self::Resource => "twinkle.server.resource",
        }
    }
}

/// What the table says about a metric.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Its name; Prometheus shows it with `_` for every `.`.
    pub name: &'static str,
    /// Its unit, as UCUM writes it: `s`, `By`, `{request}`, or `1` for a share.
    pub unit: &'static str,
    /// What it says.
    pub text: &'static str,
    /// Its meter.
    pub scope: Scope,
    /// When it appears, if not from the start.
    pub appears: &'static str,
}

/// A row of the table.
pub trait Metric: Sync {
    /// What the table says about it.
    fn description(&self) -> &Description;

    /// `counter`, `histogram`, `up-down counter` or `gauge`.
    fn kind(&self) -> &'static str;

    /// The names of its labels.
    fn labels(&self) -> &'static [&'static str];

    /// Makes it record with instruments of `meter`. Only the first call counts.
    fn install(&self, meter: &Meter);
}

/// Makes all metrics record with the meters that `meter` gives for each scope. Only the first call counts.
pub fn install(meter: impl Fn(Scope) -> Meter) {
    let (server, resource) = (meter(Scope::Server), meter(Scope::Resource));
    for metric in METRICS {
        metric.install(match metric.description().scope {
            Scope::Server => &server,
            Scope::Resource => &resource,
        });
    }
}

/// Declares a kind of metric: a description, and an instrument once it is installed.
macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $instrument:ty, |$meter:ident, $description:ident| $build:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<L> {
            description: Description,
            instrument: OnceLock<$instrument>,
            labels: PhantomData<fn(L)>,
        }

        impl<L: Labels> $name<L> {
            pub(super) const fn new(description: Description) -> Self {
                Self { description, instrument: OnceLock::new(), labels: PhantomData }
            }
        }

        impl<L: Labels> Metric for $name<L> {
            fn description(&self) -> &Description {
                &self.description
            }

            fn kind(&self) -> &'static str {
                $kind
            }

            fn labels(&self) -> &'static [&'static str] {
                L::NAMES
            }

            fn install(&self, $meter: &Meter) {
                let $description = &self.description;
                self.instrument.get_or_init(|| $build);
            }
        }
    };
}

kind! {
    /// A sum that only grows.
    Counter, "counter", otel::Counter<u64>,
    |meter, about| meter.u64_counter(about.name).with_unit(about.unit).with_description(about.text).build()
}

impl<L: Labels> Counter<L> {
    /// Adds `amount`; 0 makes the series appear.
    pub fn add(&self, amount: u64, labels: L) {
        if let Some(counter) = self.instrument.get() {
            counter.add(amount, labels.attributes().as_ref());
        }
    }
}

kind! {
    /// A sum that grows and shrinks.
    UpDown, "up-down counter", otel::UpDownCounter<i64>,
    |meter, about| meter.i64_up_down_counter(about.name).with_unit(about.unit).with_description(about.text).build()
}

impl<L: Labels> UpDown<L> {
    /// Adds `amount`, which may be negative.
    pub fn add(&self, amount: i64, labels: L) {
        if let Some(counter) = self.instrument.get() {
            counter.add(amount, labels.attributes().as_ref());
        }
    }
}

impl<L: Labels + Clone> UpDown<L> {
    /// Counts one until the returned guard is dropped.
    pub fn hold(&'static self, labels: L) -> Held<L> {
        self.add(1, labels.clone());
        Held { counter: self, labels }
    }
}

/// One that is counted; see [`UpDown::hold`].
#[derive(Debug)]
pub struct Held<L: Labels + Clone + 'static> {
    counter: &'static UpDown<L>,
    labels: L,
}

impl<L: Labels + Clone> Drop for Held<L> {
    fn drop(&mut self) {
        self.counter.add(-1, self.labels.clone());
    }
}

kind! {
    /// The latest whole number.
    Gauge, "gauge", otel::Gauge<u64>,
    |meter, about| meter.u64_gauge(about.name).with_unit(about.unit).with_description(about.text).build()
}

impl<L: Labels> Gauge<L> {
    /// What it is now.
    pub fn set(&self, value: u64, labels: L) {
        if let Some(gauge) = self.instrument.get() {
            gauge.record(value, labels.attributes().as_ref());
        }
    }
}

kind! {
    /// The latest share, between 0 and 1.
    Share, "gauge", otel::Gauge<f64>,
    |meter, about| meter.f64_gauge(about.name).with_unit(about.unit).with_description(about.text).build()
}

impl<L: Labels> Share<L> {
    /// What it is now.
    pub fn set(&self, value: f64, labels: L) {
        if let Some(gauge) = self.instrument.get() {
            gauge.record(value, labels.attributes().as_ref());
        }
    }
}

/// Bounds of durations, in seconds: from a heartbeat to a long pass.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

kind! {
    /// How durations are spread, in seconds.
    Durations, "histogram", otel::Histogram<f64>,
    |meter, about| meter
        .f64_histogram(about.name)
        .with_unit(about.unit)
        .with_description(about.text)
        .with_boundaries(SECONDS.to_vec())
        .build()
}

impl<L: Labels> Durations<L> {
    /// One that took this long.
    pub fn record(&self, duration: Duration, labels: L) {
        if let Some(histogram) = self.instrument.get() {
            histogram.record(duration.as_secs_f64(), labels.attributes().as_ref());
        }
    }
}

/// Bounds of sizes: powers of two for small groups, powers of four beyond.
const SIZES: [f64; 18] = [
    1.0,
    2.0,
    4.0,
    8.0,
    16.0,
    32.0,
    64.0,
    128.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    1_048_576.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
];

kind! {
    /// How sizes are spread, in the metric's unit.
    Sizes, "histogram", otel::Histogram<u64>,
    |meter, about| meter
        .u64_histogram(about.name)
        .with_unit(about.unit)
        .with_description(about.text)
        .with_boundaries(SIZES.to_vec())
        .build()
}

impl<L: Labels> Sizes<L> {
    /// One of this size.
    pub fn record(&self, size: u64, labels: L) {
        if let Some(histogram) = self.instrument.get() {
            histogram.record(size, labels.attributes().as_ref());
        }
    }
}
