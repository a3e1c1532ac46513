//! A tensor that threads may share.

use tch::Tensor;

/// An immutable tensor: frozen weights, published adapters.
///
/// `tch::Tensor` is `Send` but not `Sync`, because tensors can be changed in place. A frozen one is handed out by
/// shared reference only, and tch's in-place operations need `&mut`, so safe code that does not make an alias
/// (`shallow_clone`, a view) and write through it cannot change it. Never do that.
#[derive(Debug)]
pub struct Frozen(Tensor);

#[expect(unsafe_code, reason = "the promise of immutability is what this type is for")]
// SAFETY: libtorch allows any number of threads to read one tensor at once: its reference counts are atomic and reading
// touches nothing else. Nothing writes to a frozen tensor, by the rule above.
unsafe impl Sync for Frozen {}

impl Frozen {
    /// Freezes a tensor; it is detached from any autograd graph first.
    #[must_use]
    pub fn new(tensor: Tensor) -> Self {
        if tensor.requires_grad() { Self(tensor.detach()) } else { Self(tensor) }
    }

    /// The tensor, for reading.
    #[must_use = "a frozen tensor is for reading"]
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn many_threads_read_the_same_numbers() {
        let frozen = Arc::new(Frozen::new(Tensor::arange(1000, (tch::Kind::Double, tch::Device::Cpu))));
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let frozen = Arc::clone(&frozen);
                thread::spawn(move || frozen.tensor().sum(tch::Kind::Double).double_value(&[]))
            })
            .collect();
        for reader in readers {
            let sum = reader.join().unwrap();
            assert!((sum - 499_500.0).abs() < 1e-6, "{sum}");
        }
    }
}
