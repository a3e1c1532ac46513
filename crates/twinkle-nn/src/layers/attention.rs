//! Grouped-query attention (Ainslie et al. 2023), one sequence at a time.
//!
//! Queries `[rows, n_h, d]`, keys and values `[rows, n_kv, d]` stay as the projections made them: the heads are moved by
//! strides, and a key head is shown to its group of query heads by a stride of 0, so nothing is copied or repeated.

use tch::{Device, Kind, Tensor};
use twinkle_kernels::{Attended, HeadShape, Sequence};

use super::native;
use crate::torch::{TorchResult, to_floats};

/// The attention's dimensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Query heads per key head.
    pub(crate) group: i64,
    /// Key and value heads.
    pub(crate) kv: i64,
    /// Width of a head.
    pub(crate) dim: i64,
}

/// What backward needs besides queries, keys, values and the output: per sequence the log-sum-exp, if the kernel gave one.
pub(crate) type LogSumExp = Option<Tensor>;

impl Heads {
    /// Queries `[n, n_h, d]` as `[n_kv, group, n, d]`.
    fn queries(self, q: &Tensor) -> TorchResult<Tensor> {
        q.f_view([q.size()[0], self.kv, self.group, self.dim])?.f_permute([1, 2, 0, 3])
    }

    /// Keys or values `[n, n_kv, d]` as `[n_kv, group, n, d]`, each key head shown to its whole group.
    fn keys(self, k: &Tensor) -> TorchResult<Tensor> {
        let rows = k.size()[0];
        k.f_permute([1, 0, 2])?.f_unsqueeze(1)?.f_expand([self.kv, self.group, rows, self.dim], false)
    }

    /// Causal attention of one whole sequence; writes `[n, n_h · d]` into `out`.
    pub(crate) fn causal(self, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor) -> TorchResult<LogSumExp> {
        if self.is_native(q) {
            return self.native(q, k, v, out).map(Some);
        }
        let (q, k, v) = (self.queries(q)?, self.keys(k)?, self.keys(v)?);
        let (result, lse) = attend(&q, &k, &v, true, None)?;
        self.store(&result, out)?;
        Ok(lse)
    }

    /// Attention of `n` new rows that follow `past` cached ones; keys and values hold both.
    pub(crate) fn continued(self, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor) -> TorchResult<()> {
        if self.is_native(q) {
            let _ = self.native(q, k, v, out)?;
            return Ok(());
        }
        let (new, all) = (q.size()[0], k.size()[0]);
        if new == all {
            self.causal(q, k, v, out)?;
            return Ok(());
        }
        if new == 1 {
            return self.single(q, k, v, out);
        }
        // Row i sees the keys up to all − new + i.
        let mask = Tensor::f_full([new, all], f64::NEG_INFINITY, (Kind::Float, q.device()))?
            .f_triu(all - new + 1)?
            .f_to_kind(q.kind())?
            .f_view([1, 1, new, all])?;
        let (result, _) = attend(&self.queries(q)?, &self.keys(k)?, &self.keys(v)?, false, Some(&mask))?;
        self.store(&result, out)
    }

    /// Attention of one new row over all cached keys: the group's query heads are the rows of one small product.
    fn single(self, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor) -> TorchResult<()> {
        let q = q.f_view([1, self.kv, self.group, self.dim])?;
        let (k, v) = (k.f_permute([1, 0, 2])?.f_unsqueeze(0)?, v.f_permute([1, 0, 2])?.f_unsqueeze(0)?);
        let (result, _) = attend(&q, &k, &v, false, None)?;
        let mut out = out.f_view([1, self.kv, self.group, self.dim])?;
        out.f_copy_(&result)
    }

    fn store(self, result: &Tensor, out: &Tensor) -> TorchResult<()> {
        let mut out = out.f_view([out.size()[0], self.kv, self.group, self.dim])?.f_permute([1, 2, 0, 3])?;
        out.f_copy_(result)
    }

    /// The gradients of q `[n, n_h, d]`, k and v `[n, n_kv, d]` of [`Heads::causal`], written into `dq`, `dk`, `dv`.
    pub(crate) fn causal_backward(
        self,
        saved: &Saved,
        d_out: &Tensor,
        into: (&Tensor, &Tensor, &Tensor),
    ) -> TorchResult<()> {
        if self.is_native(saved.q) {
            return self.native_backward(saved, d_out, into);
        }
        let (q, k, v) = (self.queries(saved.q)?, self.keys(saved.k)?, self.keys(saved.v)?);
        let rows = d_out.size()[0];
        let d_out = d_out.f_view([rows, self.kv, self.group, self.dim])?.f_permute([1, 2, 0, 3])?;
        let (dq, dk, dv) = match saved.lse {
            Some(lse) => {
                let out = saved.out.f_view([rows, self.kv, self.group, self.dim])?.f_permute([1, 2, 0, 3])?;
                Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward::<&Tensor>(
                    &d_out, &q, &k, &v, &out, lse, 0.0, true, None, None,
                )?
            }
            None => recomputed_backward(&q, &k, &v, &d_out)?,
        };
        let (into_q, into_k, into_v) = into;
        into_q.f_view([rows, self.kv, self.group, self.dim])?.f_permute([1, 2, 0, 3])?.f_copy_(&dq)?;
        // A key head serves its whole group, so its gradient is the sum over the group.
        for (into, gradient) in [(into_k, dk), (into_v, dv)] {
            let summed = gradient.f_sum_dim_intlist(1_i64, false, Kind::Float)?;
            into.f_permute([1, 0, 2])?.f_copy_(&summed)?;
        }
        Ok(())
    }

    /// Whether our own kernel computes it: then a row has the same bits in training, in a prompt and in a step.
    fn is_native(self, q: &Tensor) -> bool {
        native::multiplies(q) && self.dim % 2 == 0
    }

    fn shape(self) -> HeadShape {
        HeadShape { kv: self.kv as usize, group: self.group as usize, dim: self.dim as usize }
    }

    /// Attention of the last rows of one sequence; returns the log-sum-exp, fp32 `[n, n_h]`.
    fn native(self, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor) -> TorchResult<Tensor> {
        let (q, k, v) = (q.f_contiguous()?, k.f_contiguous()?, v.f_contiguous()?);
        let sequence = Sequence { q: native::numbers(&q)?, k: native::numbers(&k)?, v: native::numbers(&v)? };
        let mut log_sum_exp = vec![0.0; (q.size()[0] * self.kv * self.group) as usize];
        let mut out = out.shallow_clone();
        twinkle_kernels::attention(&[sequence], self.shape(), native::numbers_mut(&mut out)?, &mut log_sum_exp);
        Tensor::f_from_slice(&log_sum_exp)
    }

    fn native_backward(
        self,
        saved: &Saved,
        d_out: &Tensor,
        (dq, dk, dv): (&Tensor, &Tensor, &Tensor),
    ) -> TorchResult<()> {
        let Some(lse) = saved.lse else {
            return Err(tch::TchError::Torch("attention kept no log-sum-exp".to_owned()));
        };
        let (q, k, v) = (saved.q.f_contiguous()?, saved.k.f_contiguous()?, saved.v.f_contiguous()?);
        let (out, d_out, log_sum_exp) = (saved.out.f_contiguous()?, d_out.f_contiguous()?, to_floats(lse)?);
        let attended = Attended {
            sequence: Sequence { q: native::numbers(&q)?, k: native::numbers(&k)?, v: native::numbers(&v)? },
            out: native::numbers(&out)?,
            log_sum_exp: &log_sum_exp,
            d_out: native::numbers(&d_out)?,
        };
        let (mut dq, mut dk, mut dv) = (dq.shallow_clone(), dk.shallow_clone(), dv.shallow_clone());
        twinkle_kernels::attention_backward(
            &[attended],
            self.shape(),
            native::numbers_mut(&mut dq)?,
            native::numbers_mut(&mut dk)?,
            native::numbers_mut(&mut dv)?,
        );
        Ok(())
    }
}

/// One sequence's part of what the forward pass kept.
pub(crate) struct Saved<'a> {
    pub(crate) q: &'a Tensor,
    pub(crate) k: &'a Tensor,
    pub(crate) v: &'a Tensor,
    pub(crate) out: &'a Tensor,
    pub(crate) lse: Option<&'a Tensor>,
}

/// softmax(q kᵀ / √d) v over `[batch, heads, rows, d]`.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool, mask: Option<&Tensor>) -> TorchResult<(Tensor, LogSumExp)> {
    if q.device() == Device::Cpu {
        let (out, lse) =
            Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, mask, None)?;
        return Ok((out, Some(lse)));
    }
    let out = Tensor::f_scaled_dot_product_attention(q, k, v, mask, 0.0, causal, None, false)?;
    Ok((out, None))
}

/// Attention's gradients where no backward of its own is bound: the forward again, recorded, and libtorch's autograd.
fn recomputed_backward(q: &Tensor, k: &Tensor, v: &Tensor, d_out: &Tensor) -> TorchResult<(Tensor, Tensor, Tensor)> {
    let leaf = |tensor: &Tensor| tensor.f_detach().map(|tensor| tensor.set_requires_grad(true));
    let (q, k, v) = (leaf(q)?, leaf(k)?, leaf(v)?);
    let out = tch::with_grad(|| attend(&q, &k, &v, true, None))?.0;
    let found = twinkle_torch::gradients(&[&out], &[d_out], &[&q, &k, &v], false)
        .map_err(|error| tch::TchError::Torch(error.to_string()))?;
    let mut found = found.into_iter().flatten();
    match (found.next(), found.next(), found.next()) {
        (Some(dq), Some(dk), Some(dv)) => Ok((dq, dk, dv)),
        _ => Err(tch::TchError::Torch("attention has no gradient".to_owned())),
    }
}
