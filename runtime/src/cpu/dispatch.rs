//! Chooses the instruction set once and sends each kernel to the version compiled for it.
//!
//! The versions of a kernel are one function, over another [`Simd`](super::simd::Simd) or compiled with other target features:
//! no result depends on the choice.
#![allow(unsafe_code)]

use std::ops::Range;

use half::bf16;

use super::attention::{self, Bias, KvElement, Mixture, Page};
use super::blocks::{self, Quantised};
use super::columns::Columns;
use super::products::{self, Rows, Weight};
use super::scalar;
use super::simd::Portable;
use crate::config::Ffn;
use crate::quant::q4::Q4;
use crate::quant::q8::Q8;

/// An instruction set that this machine has; there is no other way to make one than to detect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Scalar,
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl Isa {
    /// The specification itself, for tests and for comparison.
    pub const SCALAR: Isa = Isa(Kind::Scalar);

    /// Every instruction set that this machine has, the best one last.
    pub fn available() -> Vec<Isa> {
        let mut kinds = vec![Kind::Scalar, Kind::Portable];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            kinds.push(Kind::Avx2);
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                kinds.push(Kind::Avx512);
                if is_x86_feature_detected!("avx512vnni") {
                    kinds.push(Kind::Avx512Vnni);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            kinds.push(Kind::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                kinds.push(Kind::NeonDot);
            }
        }
        kinds.into_iter().map(Isa).collect()
    }

    /// The best instruction set of this machine.
    pub fn detect() -> Isa {
        Isa::available().pop().unwrap_or(Isa::SCALAR)
    }

    /// Its name, such as `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => "neon-dotprod",
        }
    }
}

/// Whether [`matmul_fast`] has instructions of its own here.
pub fn has_fast(isa: Isa) -> bool {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 | Kind::Avx512Vnni => is_x86_feature_detected!("avx512bf16"),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => false,
        #[cfg(target_arch = "aarch64")]
        Kind::Neon | Kind::NeonDot => false,
        Kind::Scalar | Kind::Portable => false,
    }
}

/// [`scalar::matmul`] for bf16 with activations rounded to bf16, where the machine has instructions for it
/// ([`has_fast`]); false where it has not, and then nothing was done.
pub fn matmul_fast(
    isa: Isa,
    out: &mut Columns<'_>,
    add: bool,
    x: &[f32],
    n_rows: usize,
    rows: Rows<'_, bf16>,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if has_fast(isa) {
        // SAFETY: just detected, as were the others for an `Isa` of this kind.
        unsafe { super::avx512::matmul_bf16(out, add, x, n_rows, rows) }
        return true;
    }
    let _ = (isa, out, add, x, n_rows, rows);
    false
}

/// Makes `pub fn name(isa, arguments)` which runs `simd` for `isa`, with `s` the instruction set, R by T the
/// rows of weights and activations of a block of float products, and G and T8 those of products of 8 bits;
/// or `scalar` for the specification.
macro_rules! kernel {
    (@version $name:ident [$($e:ident: $bound:ident)?] [$($arg:ident: $type:ty),*] $features:literal, $new:expr, $s:ident,
     [$r:literal, $t:literal, $g:literal, $t8:literal], $simd:expr) => {
        #[target_feature(enable = $features)]
        #[allow(clippy::too_many_arguments)]
        fn $name $(<$e: $bound>)? ($($arg: $type),*) {
            #[allow(dead_code)]
            const R: usize = $r;
            #[allow(dead_code)]
            const T: usize = $t;
            #[allow(dead_code)]
            const G: usize = $g;
            #[allow(dead_code)]
            const T8: usize = $t8;
            #[allow(unused_variables)]
            // SAFETY: `Isa`s of this kind are made only by `available`, which has detected the features.
            let $s = unsafe { $new };
            $simd
        }
    };
    ($(#[$doc:meta])* $name:ident $(<$e:ident: $bound:ident>)? ($($arg:ident: $type:ty),* $(,)?),
     scalar: $scalar:expr, $s:ident => $simd:expr) => {
        kernel! { @whole [$(#[$doc])*] $name [$($e: $bound)?] [$($arg: $type),*] $scalar, $s, $simd }
    };
    // One body for every instruction set: the loop is so plain that it needs no other form.
    ($(#[$doc:meta])* $name:ident ($($arg:ident: $type:ty),* $(,)?), $body:expr) => {
        kernel! { @whole [$(#[$doc])*] $name [] [$($arg: $type),*] $body, _s, $body }
    };
    (@whole [$(#[$doc:meta])*] $name:ident [$($e:ident: $bound:ident)?] [$($arg:ident: $type:ty),*]
     $scalar:expr, $s:ident, $simd:expr) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub fn $name $(<$e: $bound>)? (isa: Isa, $($arg: $type),*) {
            #[allow(clippy::too_many_arguments)]
            fn portable $(<$e: $bound>)? ($($arg: $type),*) {
                #[allow(dead_code)]
                const R: usize = 2;
                #[allow(dead_code)]
                const T: usize = 1;
                #[allow(dead_code)]
                const G: usize = 1;
                #[allow(dead_code)]
                const T8: usize = 1;
                #[allow(unused_variables)]
                let $s = Portable;
                $simd
            }
            #[cfg(target_arch = "x86_64")]
            kernel! { @version avx2 [$($e: $bound)?] [$($arg: $type),*] "avx2,fma,f16c",
                super::avx2::Avx2::new(), $s, [3, 2, 1, 4], $simd }
            #[cfg(target_arch = "x86_64")]
            kernel! { @version avx512 [$($e: $bound)?] [$($arg: $type),*]
                "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl",
                super::avx512::Avx512::<false>::new(), $s, [4, 6, 2, 4], $simd }
            #[cfg(target_arch = "x86_64")]
            kernel! { @version avx512_vnni [$($e: $bound)?] [$($arg: $type),*]
                "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
                super::avx512::Avx512::<true>::new(), $s, [4, 6, 4, 8], $simd }
            #[cfg(target_arch = "aarch64")]
            kernel! { @version neon [$($e: $bound)?] [$($arg: $type),*] "neon",
                super::neon::Neon::<false>::new(), $s, [2, 3, 1, 2], $simd }
            #[cfg(target_arch = "aarch64")]
            kernel! { @version neon_dot [$($e: $bound)?] [$($arg: $type),*] "neon,dotprod",
                super::neon::Neon::<true>::new(), $s, [2, 3, 1, 3], $simd }
            match isa.0 {
                Kind::Scalar => $scalar,
                Kind::Portable => portable $(::<$e>)? ($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: this kind is made only by `available`, which has detected the features.
                Kind::Avx2 => unsafe { avx2 $(::<$e>)? ($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Kind::Avx512 => unsafe { avx512 $(::<$e>)? ($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Kind::Avx512Vnni => unsafe { avx512_vnni $(::<$e>)? ($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: as above.
                Kind::Neon => unsafe { neon $(::<$e>)? ($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: as above.
                Kind::NeonDot => unsafe { neon_dot $(::<$e>)? ($($arg),*) },
            }
        }
    };
}

kernel! {
    /// [`scalar::matmul`]; adds for `add`. `panel` holds [`products::PANEL`] rows of weights.
    matmul<E: Weight>(
        out: &mut Columns<'_>,
        add: bool,
        x: &[f32],
        n_rows: usize,
        rows: Rows<'_, E>,
        panel: &mut [f32],
    ),
    scalar: scalar::matmul(out, add, x, n_rows, rows),
    s => match n_rows {
        1 => products::one(s, out, add, x, rows),
        _ => products::many::<_, E, R, T>(s, out, add, x, n_rows, rows, panel),
    }
}

kernel! {
    /// [`scalar::matmul_q8`]; adds for `add`.
    matmul_q8(
        out: &mut Columns<'_>,
        add: bool,
        first: usize,
        x: Quantised<'_>,
        n_rows: usize,
        w: Q8<'_>,
        bias: Option<&[f32]>,
    ),
    scalar: scalar::matmul_q8(out, add, first, x, n_rows, w, bias),
    s => blocks::matmul::<_, _, G, T8>(s, out, add, first, x, n_rows, w, bias)
}

kernel! {
    /// [`scalar::matmul_q4`]; adds for `add`.
    matmul_q4(
        out: &mut Columns<'_>,
        add: bool,
        first: usize,
        x: Quantised<'_>,
        n_rows: usize,
        w: Q4<'_>,
        bias: Option<&[f32]>,
    ),
    scalar: scalar::matmul_q4(out, add, first, x, n_rows, w, bias),
    s => blocks::matmul::<_, _, G, T8>(s, out, add, first, x, n_rows, w, bias)
}

kernel! {
    /// [`scalar::quantise`]
    quantise(q: &mut [[i8; crate::quant::BLOCK]], scales: &mut [blocks::BlockScale], x: &[f32]),
    scalar::quantise(q, scales, x)
}

kernel! {
    /// [`attention::scalar`]
    attend<E: KvElement>(
        mixture: &mut Mixture<'_>,
        q: &[f32],
        page: Page<'_, E>,
        slots: Range<usize>,
        bias: Bias,
    ),
    scalar: attention::scalar(mixture, q, page, slots, bias),
    s => attention::page(s, mixture, q, page, slots, bias)
}

kernel! {
    /// [`scalar::norm`]
    norm(
        out: &mut [f32],
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        eps: f32,
        subtract_mean: bool,
    ),
    scalar::norm(out, x, weight, bias, eps, subtract_mean)
}

kernel! {
    /// [`scalar::norm`] without mean and bias, where the numbers lie.
    norm_in_place(x: &mut [f32], weight: &[f32], eps: f32),
    scalar::norm_in_place(x, weight, eps)
}

kernel! {
    /// [`scalar::rotate`]
    rotate(x: &mut [f32], rotation: &[f32]),
    scalar::rotate(x, rotation)
}

kernel! {
    /// logits = cap * tanh(logits / cap)
    softcap(logits: &mut [f32], cap: f32),
    logits.iter_mut().for_each(|logit| *logit = scalar::softcap(*logit, cap))
}

kernel! {
    /// up = act(up), or act(gate) * up for SwiGLU
    activate(up: &mut [f32], gate: &[f32], ffn: Ffn),
    match ffn {
        Ffn::Classic => up.iter_mut().for_each(|up| *up = scalar::relu(*up)),
        Ffn::Gelu => up.iter_mut().for_each(|up| *up = scalar::gelu(*up)),
        Ffn::GeluTanh => up.iter_mut().for_each(|up| *up = scalar::gelu_tanh(*up)),
        Ffn::Relu2 => up.iter_mut().for_each(|up| *up = scalar::relu2(*up)),
        Ffn::Swiglu => {
            up.iter_mut().zip(gate).for_each(|(up, gate)| *up *= scalar::silu(*gate));
        }
    }
}
