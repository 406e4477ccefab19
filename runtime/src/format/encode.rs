//! Numbers to the bytes of a file.

use half::{bf16, f16};

use super::dtype::{Dtype, Unit};
use crate::error::Error;
use crate::quant::{BLOCK, ROWS, q4, q8};

/// Little-endian bytes of the values in `dtype`, rounded to nearest even; blocks as their modules say.
/// `values`: numbers of a matrix with so many columns, as many units as `out` and `scales` hold.
/// Returns a number that the type cannot hold, if there is one.
pub(crate) fn encode(
    values: &[f32],
    columns: usize,
    dtype: Dtype,
    out: &mut [u8],
    scales: &mut [u8],
) -> Option<f32> {
    let unit = dtype.stored(&[ROWS, columns]).unit;
    match dtype {
        Dtype::F32 => plain(values, out, |v| (v.to_le_bytes(), true)),
        Dtype::F16 => plain(values, out, |v| {
            let half = f16::from_f32(v);
            (half.to_le_bytes(), !half.is_infinite() || v.is_infinite())
        }),
        Dtype::Bf16 => plain(values, out, |v| {
            let half = bf16::from_f32(v);
            (half.to_le_bytes(), !half.is_infinite() || v.is_infinite())
        }),
        Dtype::Q8 => {
            let zeros = ([0; q8::BYTES], [f16::ZERO; ROWS]);
            blocks(values, columns, unit, out, scales, |rows, out, scales| {
                let (mut q, mut s) = zeros;
                let refused = rows.enumerate().fold(None, |refused, (lane, row)| {
                    q8::write_row(row, lane, &mut q, &mut s).or(refused)
                });
                out.iter_mut().zip(q).for_each(|(out, q)| *out = q as u8);
                write_scales(&s, scales);
                refused
            })
        }
        Dtype::Q4 => {
            let zeros = ([0; q4::BYTES], [f16::ZERO; 2 * ROWS]);
            blocks(values, columns, unit, out, scales, |rows, out, scales| {
                let (mut q, mut s) = zeros;
                let refused = rows.enumerate().fold(None, |refused, (lane, row)| {
                    q4::write_row(row, lane, &mut q, &mut s).or(refused)
                });
                out.copy_from_slice(&q);
                write_scales(&s, scales);
                refused
            })
        }
    }
}

/// What is wrong with a number that [`encode`] has returned.
pub(crate) fn refused(value: f32, name: &str, dtype: Dtype) -> Error {
    Error::Argument {
        name: "dtype",
        found: format!("{}, which has no {value:e} as in {name}", dtype.name()),
        expected: "an element type that holds every number of the model".into(),
    }
}

fn plain<const N: usize>(
    values: &[f32],
    out: &mut [u8],
    bytes: impl Fn(f32) -> ([u8; N], bool),
) -> Option<f32> {
    let mut refused = None;
    for (out, value) in out.chunks_exact_mut(N).zip(values) {
        let (bytes, fits) = bytes(*value);
        out.copy_from_slice(&bytes);
        if !fits {
            refused = Some(*value);
        }
    }
    refused
}

/// Calls `write` for each block of columns of each group of rows: with the block's part of every row,
/// and with the bytes and scales that are the block's.
fn blocks(
    values: &[f32],
    columns: usize,
    unit: Unit,
    out: &mut [u8],
    scales: &mut [u8],
    write: impl Fn(&mut dyn Iterator<Item = &[f32]>, &mut [u8], &mut [u8]) -> Option<f32>,
) -> Option<f32> {
    let mut refused = None;
    let n = columns.div_ceil(BLOCK);
    let out = out.chunks_exact_mut(unit.bytes / n);
    let mut places = out.zip(scales.chunks_exact_mut(unit.scale_bytes / n));
    for group in values.chunks(unit.values) {
        for from in (0..columns).step_by(BLOCK) {
            let Some((out, scales)) = places.next() else { return refused };
            let rows = group.chunks(columns);
            let mut rows = rows.map(|row| &row[from..columns.min(from + BLOCK)]);
            refused = write(&mut rows, out, scales).or(refused);
        }
    }
    refused
}

fn write_scales(scales: &[f16], out: &mut [u8]) {
    for (out, scale) in out.chunks_exact_mut(2).zip(scales) {
        out.copy_from_slice(&scale.to_le_bytes());
    }
}
