//! Backward with output gradients, and nodes of the autograd graph made of Rust closures.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{TchError, Tensor};

use crate::error::{Error, Result};
use crate::ffi::{self, ErrorText, TensorPointer};

/// The gradients of `inputs`, given those of `outputs`: a vector-Jacobian product.
///
/// `None` where an output does not depend on an input. With `keep_graph` the graph can be walked again.
#[expect(unsafe_code, reason = "calls the shim")]
pub fn gradients(
    outputs: &[&Tensor],
    output_gradients: &[&Tensor],
    inputs: &[&Tensor],
    keep_graph: bool,
) -> Result<Vec<Option<Tensor>>> {
    if outputs.len() != output_gradients.len() {
        return Err(Error::Arguments("there must be one output gradient per output"));
    }
    let (outputs, output_gradients, inputs) = (pointers(outputs), pointers(output_gradients), pointers(inputs));
    let mut results = vec![std::ptr::null_mut(); inputs.len()];
    // SAFETY: every pointer belongs to a tensor borrowed for the length of this call, the counts are those of the
    // vectors, and `results` has room for one pointer per input.
    let text = unsafe {
        ffi::twinkle_gradients(
            outputs.as_ptr(),
            output_gradients.as_ptr(),
            outputs.len(),
            inputs.as_ptr(),
            inputs.len(),
            c_int::from(keep_graph),
            results.as_mut_ptr(),
        )
    };
    ffi::check(text)?;
    Ok(results.into_iter().map(owned).collect())
}

/// What the forward half of a [`custom_function`] returns.
#[derive(Debug)]
pub struct Forward {
    /// The results, freshly made: not one of the inputs or a view of one.
    pub outputs: Vec<Tensor>,
    /// What backward needs. They must not be changed in place until then; libtorch notices if they are.
    pub saved: Vec<Tensor>,
}

/// A function of tensors with a hand-written gradient, as one node of the autograd graph.
///
/// `forward` sees the inputs and runs without recording. `backward` gets the saved tensors and the gradient of each
/// output (`None` is zero), and returns the gradient of each input (`None` is zero). It may run on another thread, and
/// more than once. An error or panic in it becomes the error of the backward call.
#[expect(unsafe_code, reason = "calls the shim")]
pub fn custom_function<F, B>(inputs: &[&Tensor], forward: F, backward: B) -> Result<Vec<Tensor>>
where
    F: FnOnce(&[&Tensor]) -> Result<Forward, TchError>,
    B: Fn(&[Tensor], &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>, TchError> + Send + Sync + 'static,
{
    let forward = tch::no_grad(|| forward(inputs)).map_err(|error| Error::Libtorch(error.to_string()))?;
    let Forward { mut outputs, saved } = forward;
    let closure: BoxedBackward = Box::new(backward);
    let closure = Box::into_raw(Box::new(closure)).cast::<c_void>();

    let input_pointers = pointers(inputs);
    let saved_pointers = pointers(&saved.iter().collect::<Vec<_>>());
    let mut output_pointers: Vec<TensorPointer> = outputs.iter_mut().map(Tensor::as_mut_ptr).collect();
    // SAFETY: the tensors live through the call and the counts are those of the vectors. `closure` is given away: the
    // shim calls `release_closure` on it exactly once, also on failure.
    let text = unsafe {
        ffi::twinkle_attach(
            input_pointers.as_ptr(),
            input_pointers.len(),
            output_pointers.as_mut_ptr(),
            output_pointers.len(),
            saved_pointers.as_ptr(),
            saved_pointers.len(),
            call_backward,
            closure,
            release_closure,
        )
    };
    ffi::check(text)?;
    Ok(outputs)
}

type BoxedBackward = Box<dyn Fn(&[Tensor], &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>, TchError> + Send + Sync>;

/// What C++ calls in backward. Nothing unwinds out of it.
#[expect(unsafe_code, reason = "called from C++")]
extern "C" fn call_backward(
    closure: *mut c_void,
    saved: *const TensorPointer,
    saved_count: usize,
    gradients: *const TensorPointer,
    gradient_count: usize,
    results: *mut TensorPointer,
    result_count: usize,
) -> ErrorText {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the shim passes the pointer from `custom_function`, which lives until `release_closure`.
        let closure = unsafe { &*closure.cast::<BoxedBackward>() };
        // SAFETY: the shim passes arrays of these lengths that live through the call; `results` is not aliased.
        let (saved, gradients, results) = unsafe {
            (
                slice_of(saved, saved_count),
                slice_of(gradients, gradient_count),
                if result_count == 0 { &mut [][..] } else { std::slice::from_raw_parts_mut(results, result_count) },
            )
        };
        let saved: Vec<Tensor> = saved.iter().filter_map(|pointer| aliased(*pointer)).collect();
        let gradients: Vec<Option<Tensor>> = gradients.iter().map(|pointer| aliased(*pointer)).collect();
        let found = tch::no_grad(|| closure(&saved, &gradients)).map_err(|error| error.to_string())?;
        if found.len() != result_count {
            return Err(format!("backward returned {} gradients for {result_count} inputs", found.len()));
        }
        for (place, gradient) in results.iter_mut().zip(&found) {
            if let Some(gradient) = gradient {
                // SAFETY: makes a new handle, owned by the shim, of a live tensor.
                *place = unsafe { torch_sys::at_shallow_clone(gradient.as_ptr().cast_mut()) };
            }
        }
        Ok(())
    }));
    match outcome {
        Ok(Ok(())) => std::ptr::null_mut(),
        Ok(Err(message)) => ffi::error_text(&message),
        Err(panic) => {
            let reason = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            ffi::error_text(&format!("backward panicked: {reason}"))
        }
    }
}

/// What C++ calls when a node is gone.
#[expect(unsafe_code, reason = "takes ownership back from C++")]
extern "C" fn release_closure(closure: *mut c_void) {
    // SAFETY: the pointer came from `Box::into_raw` in `custom_function`, and the shim calls this once.
    let closure = unsafe { Box::from_raw(closure.cast::<BoxedBackward>()) };
    // A panic in a captured value's destructor must not reach C++.
    let _ = catch_unwind(AssertUnwindSafe(move || drop(closure)));
}

fn pointers(tensors: &[&Tensor]) -> Vec<TensorPointer> {
    tensors.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect()
}

#[expect(unsafe_code, reason = "a slice over C++ memory")]
/// # Safety
/// `pointer` must point at `count` live pointers, or `count` be 0.
unsafe fn slice_of<'a>(pointer: *const TensorPointer, count: usize) -> &'a [TensorPointer] {
    if count == 0 {
        return &[];
    }
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(pointer, count) }
}

/// A new handle to a tensor that C++ lends us.
#[expect(unsafe_code, reason = "shares a tensor with C++")]
fn aliased(pointer: TensorPointer) -> Option<Tensor> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: a non-null pointer of the shim is a live tensor; the clone holds its own count.
    Some(unsafe { Tensor::clone_from_ptr(pointer) })
}

/// A tensor that C++ gives us.
#[expect(unsafe_code, reason = "takes ownership from C++")]
fn owned(pointer: TensorPointer) -> Option<Tensor> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: a non-null result of the shim is a new tensor for us to own.
    Some(unsafe { Tensor::from_ptr(pointer) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tch::{Device, Kind};

    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu))
    }

    fn largest(tensor: &Tensor) -> f64 {
        tensor.abs().max().double_value(&[])
    }

    #[test]
    fn gradients_follow_the_output_gradient() {
        let x = random(&[3, 4]).set_requires_grad(true);
        let weight = random(&[5, 4]);
        let y = x.matmul(&weight.tr());
        let dy = random(&[3, 5]);
        let unrelated = random(&[1]).set_requires_grad(true);
        let found = gradients(&[&y], &[&dy], &[&x, &unrelated], false).unwrap();
        let expected = dy.matmul(&weight);
        assert!(largest(&(found[0].as_ref().unwrap() - expected)) < 1e-12);
        assert!(found[1].is_none());
    }

    #[test]
    fn a_wrong_shape_is_an_error_and_not_an_abort() {
        let x = random(&[3]).set_requires_grad(true);
        let y = &x * 2.0;
        let error = gradients(&[&y], &[&random(&[7])], &[&x], false).unwrap_err();
        assert!(matches!(error, Error::Libtorch(_)), "{error}");
        assert!(gradients(&[&y], &[], &[&x], false).is_err());
    }

    /// `y = a · tanh(b)` with its gradient by hand.
    fn tanh_product(a: &Tensor, b: &Tensor) -> Tensor {
        let outputs = custom_function(
            &[a, b],
            |inputs| {
                let t = inputs[1].f_tanh()?;
                let y = inputs[0].f_mul(&t)?;
                Ok(Forward { outputs: vec![y], saved: vec![inputs[0].shallow_clone(), t] })
            },
            |saved, gradients| {
                let Some(dy) = &gradients[0] else { return Ok(vec![None, None]) };
                let slope = saved[1].f_square()?.f_neg()?.f_add_scalar(1.0)?;
                Ok(vec![Some(dy.f_mul(&saved[1])?), Some(dy.f_mul(&saved[0])?.f_mul(&slope)?)])
            },
        );
        outputs.unwrap().remove(0)
    }

    #[test]
    fn a_custom_node_equals_plain_autograd() {
        let (a, b) = (random(&[4, 3]).set_requires_grad(true), random(&[4, 3]).set_requires_grad(true));
        let plain = (&a * b.tanh()).exp().sum(Kind::Double);
        let custom = tanh_product(&a, &b).exp().sum(Kind::Double);
        let one = Tensor::ones_like(&plain);
        let expected = gradients(&[&plain], &[&one], &[&a, &b], false).unwrap();
        let found = gradients(&[&custom], &[&one], &[&a, &b], false).unwrap();
        for (expected, found) in expected.iter().zip(&found) {
            assert!(largest(&(expected.as_ref().unwrap() - found.as_ref().unwrap())) < 1e-12);
        }
    }

    #[test]
    fn an_error_or_a_panic_in_backward_reaches_the_caller() {
        let x = random(&[2]).set_requires_grad(true);
        let run = |backward: fn() -> Result<Vec<Option<Tensor>>, TchError>| {
            let y = custom_function(
                &[&x],
                |inputs| Ok(Forward { outputs: vec![inputs[0].f_add_scalar(1.0)?], saved: vec![] }),
                move |_, _| backward(),
            );
            let y = y.unwrap().remove(0);
            gradients(&[&y], &[&Tensor::ones_like(&y)], &[&x], false).unwrap_err().to_string()
        };
        assert!(run(|| Err(TchError::Shape("no gradient today".to_owned()))).contains("no gradient today"));
        assert!(run(|| panic!("lost my mind")).contains("lost my mind"));
        assert!(run(|| Ok(vec![])).contains("0 gradients for 1 inputs"));
    }

    #[test]
    fn the_closure_is_released_with_the_graph() {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let released = Arc::new(AtomicUsize::new(0));
        for requires_grad in [true, false] {
            let counted = Counted(Arc::clone(&released));
            let x = random(&[2]).set_requires_grad(requires_grad);
            let y = custom_function(
                &[&x],
                |inputs| Ok(Forward { outputs: vec![inputs[0].f_mul_scalar(3.0)?], saved: vec![] }),
                move |_, gradients| {
                    let _alive = &counted;
                    Ok(vec![gradients[0].as_ref().map(|dy| dy * 3.0)])
                },
            );
            drop(y);
        }
        assert_eq!(released.load(Ordering::SeqCst), 2);
    }
}
