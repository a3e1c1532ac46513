//! What takes back the gradients that an operation has added so far.

use tch::Kind;
use twinkle_nn::Gradients;

/// The gradients of a run before an operation, or before the first of several in one pass.
///
/// Gradients are added in place, datum by datum, so that one operation and many give the same bits.
#[derive(Debug)]
pub struct Undo(Option<Gradients>);

impl Undo {
    /// Remembers `gradients`. Nothing is copied when there are none yet, as after every optimizer step.
    #[must_use]
    pub fn of(gradients: &Gradients) -> Self {
        let flat = gradients.flat();
        let is_zero = flat.min().double_value(&[]) == 0.0 && flat.max().double_value(&[]) == 0.0;
        Self((!is_zero).then(|| gradients.copy()))
    }

    /// Bytes of the copy.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |gradients| gradients.flat().numel() as u64 * Kind::Float.elt_size_in_bytes() as u64)
    }

    /// Puts back what was there.
    pub fn restore(self, gradients: &mut Gradients) {
        match self.0 {
            Some(before) => *gradients = before,
            None => gradients.zero(),
        }
    }
}
