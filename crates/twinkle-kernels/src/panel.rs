//! The inner loop of the matrix products: one panel of columns, AVX512-BF16.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_mask_storeu_epi16,
    _mm256_maskz_loadu_epi16, _mm512_add_epi16, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh,
    _mm512_dpbf16_ps, _mm512_maskz_loadu_epi16, _mm512_permutex2var_epi16, _mm512_set_epi16, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::cell::RefCell;

use half::bf16;

use crate::product::Right;

/// Columns of the result that are computed together: four vectors of 16.
pub(crate) const PANEL: usize = 64;
/// How many numbers ahead of a row's load its memory is asked for.
const AHEAD: usize = 256;
/// Pairs of the inner dimension that are multiplied at once, so that their part of a panel fits into the first-level cache.
const PAIR_BLOCK: usize = 160;

/// The right side of a product, `inner × columns`, and the panel of its columns that is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel<'a> {
    pub(crate) right: Right<'a>,
    pub(crate) inner: usize,
    /// From one row of the right side's memory to the next.
    pub(crate) stride: usize,
    /// The panel's first column.
    pub(crate) first: usize,
    /// How many columns it has, at most [`PANEL`].
    pub(crate) width: usize,
}

/// What a thread keeps between panels.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Packed panels: per pair of the inner dimension up to four vectors of 16 columns.
    pub(crate) packed: Vec<__m512i>,
    /// The fp32 sums `[rows][vectors]`.
    pub(crate) sums: Vec<__m512>,
    /// Left rows of an odd inner dimension, padded to pairs.
    pub(crate) padded: Vec<bf16>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Scratch {
    /// This thread's scratch memory. `work` must not ask for it again.
    pub(crate) fn with<T>(work: impl FnOnce(&mut Self) -> T) -> T {
        SCRATCH.with_borrow_mut(work)
    }

    /// Sets the first `count` sums to zero.
    #[target_feature(enable = "avx512f")]
    pub(crate) fn clear(&mut self, count: usize) {
        self.sums.clear();
        self.sums.resize(count, _mm512_setzero_ps());
    }
}

impl Panel<'_> {
    /// Vectors of 16 columns.
    pub(crate) fn vectors(&self) -> usize {
        self.width.div_ceil(16)
    }

    /// Pairs of the inner dimension, the last one filled up with a zero.
    pub(crate) fn pairs(&self) -> usize {
        self.inner.div_ceil(2)
    }

    /// Packs the panel behind what `packed` holds already.
    ///
    /// # Safety
    /// The processor must have AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(crate) unsafe fn pack_whole(&self, packed: &mut Vec<__m512i>) {
        let start = packed.len();
        packed.resize(start + self.pairs() * self.vectors(), _mm512_setzero_si512());
        // SAFETY: the caller vouches for the processor.
        unsafe { self.pack(&mut packed[start..]) };
    }

    /// Adds `left · right` to `sums`, `[rows][vectors]`; `left` is row-major `[rows, inner]`, `packed` the packed panel.
    ///
    /// # Safety
    /// The processor must have AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(crate) unsafe fn add(&self, left: &[bf16], packed: &[__m512i], sums: &mut [__m512], padded: &mut Vec<bf16>) {
        if self.inner == 0 {
            return;
        }
        let rows = left.len() / self.inner;
        let (left, stride) = if self.inner.is_multiple_of(2) {
            (left, self.inner)
        } else {
            padded.clear();
            for row in left.chunks_exact(self.inner) {
                padded.extend_from_slice(row);
                padded.push(bf16::ZERO);
            }
            (&padded[..], self.inner + 1)
        };
        // SAFETY: the caller vouches for the processor.
        unsafe { add_rows(rows, (left, stride), self.pairs(), packed, self.vectors(), sums) };
    }

    /// Packs the panel: `[pair][vector][column][2]`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn pack(&self, packed: &mut [__m512i]) {
        let (vectors, inner, count) = (self.vectors(), self.inner, self.pairs());
        match self.right {
            Right::Transposed(weight) => {
                for vector in 0..vectors {
                    let columns = (self.width - 16 * vector).min(16);
                    let mut at = 0;
                    while at < count {
                        let valid = (inner - 2 * at).min(32);
                        let mask = if valid == 32 { u32::MAX } else { (1_u32 << valid) - 1 };
                        let mut block = [_mm512_setzero_si512(); 16];
                        for (column, block) in block.iter_mut().enumerate().take(columns) {
                            let place = (self.first + 16 * vector + column) * self.stride + 2 * at;
                            // The rows are streams too many for the processor to foresee; asking for what is not
                            // there is harmless.
                            _mm_prefetch::<_MM_HINT_T0>(weight.as_ptr().wrapping_add(place + AHEAD).cast());
                            // SAFETY: `valid` numbers from `place` on lie in the row.
                            *block = unsafe { _mm512_maskz_loadu_epi16(mask, weight.as_ptr().add(place).cast()) };
                        }
                        let block = transpose(&block);
                        for (offset, block) in block.iter().enumerate().take(16.min(count - at)) {
                            packed[(at + offset) * vectors + vector] = *block;
                        }
                        at += 16;
                    }
                }
            }
            Right::Plain(weight) => {
                // Lanes 0.. of two rows, interleaved.
                let low = _mm512_set_epi16(
                    47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3,
                    34, 2, 33, 1, 32, 0,
                );
                let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
                for offset in 0..count {
                    let k = 2 * offset;
                    for half in 0..vectors.div_ceil(2) {
                        let columns = (self.width - 32 * half).min(32);
                        let mask = if columns == 32 { u32::MAX } else { (1_u32 << columns) - 1 };
                        let place = k * self.stride + self.first + 32 * half;
                        for row in [8, 9] {
                            let place = place + row * self.stride;
                            _mm_prefetch::<_MM_HINT_T0>(weight.as_ptr().wrapping_add(place).cast());
                        }
                        // SAFETY: `columns` numbers from `place` on lie in the row, and in the next if there is one.
                        let (even, odd) = unsafe {
                            let even = _mm512_maskz_loadu_epi16(mask, weight.as_ptr().add(place).cast());
                            let odd = if k + 1 < inner {
                                let place = place + self.stride;
                                _mm512_maskz_loadu_epi16(mask, weight.as_ptr().add(place).cast())
                            } else {
                                _mm512_setzero_si512()
                            };
                            (even, odd)
                        };
                        let at = offset * vectors + 2 * half;
                        packed[at] = _mm512_permutex2var_epi16(even, low, odd);
                        if 2 * half + 1 < vectors {
                            packed[at + 1] = _mm512_permutex2var_epi16(even, high, odd);
                        }
                    }
                }
            }
        }
    }
}

/// Adds to `sums`, `[rows][vectors]`, the product of rows and a packed panel, both of `pairs` pairs.
///
/// # Safety
/// The processor must have AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn add_rows(
    rows: usize,
    (left, stride): (&[bf16], usize),
    pairs: usize,
    packed: &[__m512i],
    vectors: usize,
    sums: &mut [__m512],
) {
    if rows == 0 || pairs == 0 {
        return;
    }
    assert!(left.len() >= (rows - 1) * stride + 2 * pairs, "{rows} rows of {pairs} pairs");
    assert!(packed.len() >= pairs * vectors && sums.len() >= rows * vectors, "a panel of {rows} rows");
    // Blocks of about the same size, so that one fits into the first-level cache for all rows.
    let block = pairs.div_ceil(pairs.div_ceil(PAIR_BLOCK));
    let mut pair = 0;
    while pair < pairs {
        let count = block.min(pairs - pair);
        // SAFETY: rows, panel and sums were checked above.
        unsafe {
            let (left, packed) = (left.as_ptr().add(2 * pair), packed.as_ptr().add(pair * vectors));
            let sums = sums.as_mut_ptr();
            match vectors {
                1 => rows_1(rows, count, left, stride, packed, sums),
                2 => rows_2(rows, count, left, stride, packed, sums),
                3 => rows_3(rows, count, left, stride, packed, sums),
                _ => rows_4(rows, count, left, stride, packed, sums),
            }
        }
        pair += count;
    }
}

/// 16 numbers from `place` on, or the `count` that there are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn load(from: &[bf16], place: usize, count: usize) -> __m512 {
    let from = &from[place..place + count];
    // SAFETY: the mask leaves out what lies behind `count`.
    widen(unsafe { _mm256_maskz_loadu_epi16(mask(count), from.as_ptr().cast()) })
}

/// Rounds `count` numbers to `place`.
///
/// # Safety
/// `place` must be valid for writing `count` numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn store(values: __m512, place: *mut bf16, count: usize) {
    // SAFETY: the mask leaves out what lies behind `count`.
    unsafe { _mm256_mask_storeu_epi16(place.cast(), mask(count), narrow(values)) };
}

fn mask(count: usize) -> u16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

#[target_feature(enable = "avx512f")]
fn widen(values: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values)))
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn narrow(values: __m512) -> __m256i {
    // SAFETY: the two types are the same 256 bits.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) }
}

/// Transposes 16 × 16 words of 32 bits.
#[target_feature(enable = "avx512f")]
fn transpose(rows: &[__m512i; 16]) -> [__m512i; 16] {
    let mut a = *rows;
    for i in (0..16).step_by(2) {
        a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut b = a;
    for i in (0..16).step_by(4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    let mut c = b;
    for i in [0, 1, 2, 3, 8, 9, 10, 11] {
        c[i] = _mm512_shuffle_i32x4::<0x88>(b[i], b[i + 4]);
        c[i + 4] = _mm512_shuffle_i32x4::<0xdd>(b[i], b[i + 4]);
    }
    let mut d = c;
    for i in 0..8 {
        d[i] = _mm512_shuffle_i32x4::<0x88>(c[i], c[i + 8]);
        d[i + 8] = _mm512_shuffle_i32x4::<0xdd>(c[i], c[i + 8]);
    }
    d
}

/// `sums[row][vector] += Σ left[row][pair] · packed[pair][vector]` for `M` rows of `V` vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn tile<const M: usize, const V: usize>(
    pairs: usize,
    left: *const bf16,
    stride: usize,
    packed: *const __m512i,
    sums: *mut __m512,
) {
    // SAFETY: the caller hands M rows of at least `pairs` pairs, a panel of as many, and M × V sums.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); V]; M];
        for (row, sum) in sum.iter_mut().enumerate() {
            for (vector, sum) in sum.iter_mut().enumerate() {
                *sum = sums.add(row * V + vector).read();
            }
        }
        let rows: [*const bf16; M] = std::array::from_fn(|row| left.add(row * stride));
        for pair in 0..pairs {
            let right: [__m512bh; V] =
                std::array::from_fn(|vector| std::mem::transmute(packed.add(pair * V + vector).read()));
            for (row, sum) in rows.iter().zip(&mut sum) {
                let value = _mm512_set1_epi32(row.add(2 * pair).cast::<i32>().read_unaligned());
                let value: __m512bh = std::mem::transmute(value);
                for (sum, right) in sum.iter_mut().zip(right) {
                    *sum = _mm512_dpbf16_ps(*sum, value, right);
                }
            }
        }
        for (row, sum) in sum.iter().enumerate() {
            for (vector, sum) in sum.iter().enumerate() {
                sums.add(row * V + vector).write(*sum);
            }
        }
    }
}

/// Takes rows in tiles of the size that fills the registers; the rest in a smaller tile.
macro_rules! rows_of {
    ($name:ident, $vectors:literal, $largest:literal, $($rest:literal)*) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
        unsafe fn $name(
            rows: usize,
            pairs: usize,
            left: *const bf16,
            stride: usize,
            packed: *const __m512i,
            sums: *mut __m512,
        ) {
            let mut row = 0;
            while row < rows {
                let count = (rows - row).min($largest);
                // SAFETY: `count` of the caller's rows start here.
                unsafe {
                    let (left, sums) = (left.add(row * stride), sums.add(row * $vectors));
                    match count {
                        $($rest => tile::<$rest, $vectors>(pairs, left, stride, packed, sums),)*
                        _ => tile::<$largest, $vectors>(pairs, left, stride, packed, sums),
                    }
                }
                row += count;
            }
        }
    };
}
rows_of!(rows_1, 1, 16, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
rows_of!(rows_2, 2, 12, 1 2 3 4 5 6 7 8 9 10 11);
rows_of!(rows_3, 3, 8, 1 2 3 4 5 6 7);
rows_of!(rows_4, 4, 6, 1 2 3 4 5);
