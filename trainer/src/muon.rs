//! The direction of Muon (Keller Jordan, 2024, <https://kellerjordan.github.io/posts/muon/>): a
//! matrix's momentum, made nearly orthogonal by Newton–Schulz steps.
//!
//! All matrices of one shape go through the products as one stack. Query, key and value, and gate and
//! up, are one tensor each to the model but matrices of their own here.

use tch::{Kind, Tensor};

use crate::params::{Params, Region};

/// Newton–Schulz steps.
const N_STEPS: usize = 5;
/// Coefficients of a step: the odd polynomial `a x + b x³ + c x⁵` whose repetition takes singular
/// values from (0, 1] to about 1 soonest.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Keeps a matrix of zeros from being divided by zero.
const EPS: f64 = 1e-7;

/// Makes the matrices of the layers orthogonal, stack by stack.
pub struct Orthogonalizer {
    groups: Vec<Vec<Part>>,
    kind: Kind,
}

/// Matrices of one name in all layers, a band of rows of a region.
struct Part {
    region: Region,
    start: i64,
    rows: i64,
}

impl Part {
    /// `(n, rows, columns)`, a view.
    fn of(&self, flat: &Tensor) -> Tensor {
        let stack = self.region.of(flat);
        if self.region.rows.iter().all(|rows| *rows == self.rows) {
            // All tensors of the region at once.
            return stack.view([-1, self.rows, self.region.columns]);
        }
        stack.narrow(1, self.start, self.rows)
    }

    fn is_tall(&self) -> bool {
        self.rows > self.region.columns
    }

    /// Rows and columns in the orientation that costs less.
    fn shape(&self) -> [i64; 2] {
        let columns = self.region.columns;
        [self.rows.min(columns), self.rows.max(columns)]
    }
}

impl Orthogonalizer {
    /// For the layout of `params`; the products are computed in `kind`, bf16 as published or f32.
    pub fn new(params: &Params, kind: Kind) -> Orthogonalizer {
        let mut groups: Vec<Vec<Part>> = Vec::new();
        for region in params.regions() {
            let equal = region.rows.iter().all(|rows| *rows == region.rows[0]);
            let mut start = 0;
            for rows in region.rows.iter().take(if equal { 1 } else { region.rows.len() }) {
                let part = Part { region: region.clone(), start, rows: *rows };
                start += rows;
                match groups.iter_mut().find(|group| group[0].shape() == part.shape()) {
                    Some(group) => group.push(part),
                    None => groups.push(vec![part]),
                }
            }
        }
        Orthogonalizer { groups, kind }
    }

    /// Replaces each matrix in `flat`, `(n_matrix)` f32, by the nearly orthogonal one with its
    /// singular vectors, times `sqrt(max(1, rows / columns))`.
    pub fn apply(&self, flat: &Tensor) {
        for group in &self.groups {
            let wide: Vec<Tensor> = group
                .iter()
                .map(|part| {
                    let stack = part.of(flat).to_kind(self.kind);
                    if part.is_tall() { stack.transpose(1, 2) } else { stack }
                })
                .collect();
            let sizes: Vec<i64> = wide.iter().map(|stack| stack.size()[0]).collect();
            let all = newton_schulz(&Tensor::cat(&wide, 0));
            for (part, found) in group.iter().zip(all.split_with_sizes(&sizes[..], 0)) {
                let found = if part.is_tall() { found.transpose(1, 2) } else { found };
                let scale = (part.rows as f64 / part.region.columns as f64).max(1.0).sqrt();
                part.of(flat).copy_(&(found.to_kind(Kind::Float) * scale));
            }
        }
    }
}

/// `x`: `(n, rows, columns)`, no more rows than columns.
fn newton_schulz(x: &Tensor) -> Tensor {
    let [a, b, c] = COEFFICIENTS;
    let norm = x.norm_scalaropt_dim(2, [1i64, 2], true);
    let mut x = x / (norm + EPS);
    for _ in 0..N_STEPS {
        let product = x.bmm(&x.transpose(1, 2));
        let polynomial = product.baddbmm(&product, &product, b, c);
        x = x.baddbmm(&polynomial, &x, a, 1.0);
    }
    x
}
