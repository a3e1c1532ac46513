//! Where each parameter lies in a flat vector.

use std::ops::Range;

use twinkle_nn::AdapterLayout;

/// One parameter of a flat vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterShape {
    /// Where it starts.
    pub start: i64,
    /// Its dimensions: one for a vector, two for a matrix, three for a stack of matrices.
    pub dimensions: Vec<i64>,
    /// Whether weight decay is for it: not for norms and biases.
    pub decays: bool,
}

impl ParameterShape {
    /// Where it lies.
    #[must_use]
    pub fn range(&self) -> Range<i64> {
        self.start..self.start + self.dimensions.iter().product::<i64>()
    }
}

/// The factors of an adapter, all of which decay.
#[must_use]
pub fn of_adapter(layout: &AdapterLayout) -> Vec<ParameterShape> {
    let factor = |range: Range<usize>, dimensions: &[usize]| ParameterShape {
        start: range.start as i64,
        dimensions: dimensions.iter().map(|size| *size as i64).collect(),
        decays: true,
    };
    let factors = layout
        .modules()
        .iter()
        .flat_map(|module| [factor(module.a_range(), &module.a_shape()), factor(module.b_range(), &module.b_shape())]);
    factors.collect()
}

/// Neighbours that decay alike, as one.
pub(crate) fn stretches(shapes: &[ParameterShape]) -> impl Iterator<Item = (Range<i64>, bool)> {
    shapes.chunk_by(|left, right| left.decays == right.decays).filter_map(|alike| {
        let (first, last) = (alike.first()?, alike.last()?);
        Some((first.start..last.range().end, first.decays))
    })
}
