//! Chooses the instruction set once and sends each kernel to the version compiled for it.
//!
//! The versions of a kernel are one function of [`kernels`] or
//! [`scalar`], compiled with other target features: no result depends on the choice.
#![allow(unsafe_code)]

use super::kernels;
use super::scalar::{self, Element};
use crate::config::Ffn;

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
}

impl Isa {
    /// The specification itself, for tests and for comparison.
    pub const SCALAR: Isa = Isa(Kind::Scalar);

    /// Every instruction set that this machine has, the best one last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut isas = vec![Isa::SCALAR, Isa(Kind::Portable)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            isas.push(Isa(Kind::Avx2));
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                isas.push(Isa(Kind::Avx512));
            }
        }
        isas
    }

    /// The best instruction set of this machine.
    pub fn detect() -> Isa {
        Isa::available().pop().unwrap_or(Isa::SCALAR)
    }

    /// Its name, such as `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            // 64-bit Arm always has NEON, so there the portable code is compiled to it.
            Kind::Portable if cfg!(target_arch = "aarch64") => "neon",
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }
}

/// Makes `pub fn name(isa, arguments)` which runs the body given for `isa`.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident $(<$e:ident>)? ($($arg:ident: $type:ty),* $(,)?),
     scalar: $scalar:expr, portable: $portable:expr, avx2: $avx2:expr, avx512: $avx512:expr) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub fn $name $(<$e: Element>)? (isa: Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$e: Element>)? ($($arg: $type),*) {
                $avx2
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512 $(<$e: Element>)? ($($arg: $type),*) {
                $avx512
            }
            match isa.0 {
                Kind::Scalar => $scalar,
                Kind::Portable => $portable,
                #[cfg(target_arch = "x86_64")]
                // SAFETY: this kind is made only by `available`, which has detected the features.
                Kind::Avx2 => unsafe { avx2 $(::<$e>)? ($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Kind::Avx512 => unsafe { avx512 $(::<$e>)? ($($arg),*) },
            }
        }
    };
    // One body for every instruction set: the loop is so plain that it needs no other form.
    ($(#[$doc:meta])* $name:ident ($($args:tt)*), $body:expr) => {
        kernel! { $(#[$doc])* $name ($($args)*),
            scalar: $body, portable: $body, avx2: $body, avx512: $body }
    };
}

kernel! {
    /// [`scalar::matmul`], in the blocks that ran fastest.
    matmul<E>(out: &mut [f32], x: &[f32], w: &[E], bias: Option<&[f32]>, rows: usize),
    scalar: scalar::matmul(out, x, w, bias, rows),
    portable: kernels::matmul::<E, 2, 1>(out, x, w, bias, rows),
    avx2: if rows == 1 {
        kernels::matmul::<E, 4, 1>(out, x, w, bias, rows)
    } else {
        kernels::matmul::<E, 2, 2>(out, x, w, bias, rows)
    },
    avx512: if rows == 1 {
        kernels::matmul::<E, 4, 1>(out, x, w, bias, rows)
    } else {
        kernels::matmul::<E, 2, 2>(out, x, w, bias, rows)
    }
}

kernel! {
    /// [`scalar::score`]
    score(scores: &mut [f32], q: &[f32], k: &[f32], scale: f32, slope: f32, distance: usize),
    scalar: scalar::score(scores, q, k, scale, slope, distance),
    portable: kernels::score(scores, q, k, scale, slope, distance),
    avx2: kernels::score(scores, q, k, scale, slope, distance),
    avx512: kernels::score(scores, q, k, scale, slope, distance)
}

kernel! {
    /// [`scalar::softmax`]
    softmax(scores: &mut [f32]),
    scalar::softmax(scores)
}

kernel! {
    /// [`scalar::mix`]
    mix(out: &mut [f32], weights: &[f32], v: &[f32]),
    scalar::mix(out, weights, v)
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
        Ffn::Relu2 => up.iter_mut().for_each(|up| *up = scalar::relu2(*up)),
        Ffn::Swiglu => {
            up.iter_mut().zip(gate).for_each(|(up, gate)| *up *= scalar::silu(*gate));
        }
    }
}
