//! One body of code, compiled for several generations of processors; the one that runs is chosen at run time.

/// Defines functions whose body is compiled for AVX-512, for AVX2 and for any processor.
///
/// The bodies are plain arithmetic, number by number, without fused operations: every generation gives the same bits.
macro_rules! multiversion {
    ($($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$attribute])*
            $visibility fn $name($($argument: $kind),*) {
                #[inline(always)]
                fn body($($argument: $kind),*) $body

                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
                    fn avx512($($argument: $kind),*) {
                        body($($argument),*);
                    }
                    #[target_feature(enable = "avx2")]
                    fn avx2($($argument: $kind),*) {
                        body($($argument),*);
                    }
                    match $crate::features::level() {
                        // SAFETY: the processor has what the function is compiled for.
                        $crate::features::Level::Avx512 => return unsafe { avx512($($argument),*) },
                        // SAFETY: as above.
                        $crate::features::Level::Avx2 => return unsafe { avx2($($argument),*) },
                        $crate::features::Level::Any => {}
                    }
                }
                body($($argument),*);
            }
        )*
    };
}

pub(crate) use multiversion;

/// What a processor's vector unit can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "there is only one level"))]
pub(crate) enum Level {
    Avx512,
    Avx2,
    Any,
}

/// libtorch's own variable: the most of the processor that may be used (`default`, `avx2`, `avx512`).
#[cfg(target_arch = "x86_64")]
const LIMIT_VARIABLE: &str = "ATEN_CPU_CAPABILITY";

/// What this processor can do, and may do here; the same for as long as the program runs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn level() -> Level {
    static LEVEL: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
    *LEVEL.get_or_init(|| {
        use std::arch::is_x86_feature_detected as has;
        let limit = std::env::var(LIMIT_VARIABLE).unwrap_or_default();
        let is_below = |names: &[&str]| names.contains(&limit.as_str());
        if has!("avx512f")
            && has!("avx512bw")
            && has!("avx512vl")
            && has!("avx512dq")
            && !is_below(&["default", "avx2"])
        {
            Level::Avx512
        } else if has!("avx2") && !is_below(&["default"]) {
            Level::Avx2
        } else {
            Level::Any
        }
    })
}

/// Whether `vdpbf16ps` is there, so that [`crate::multiply`] and [`crate::accumulate_outer`] are fast.
#[must_use]
pub fn has_bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // Every processor with AMX-BF16 has AVX512-BF16 too.
        level() == Level::Avx512 && std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}
