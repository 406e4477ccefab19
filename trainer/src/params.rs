//! All parameters of a model as one flat tensor, and views of it under their names.
//!
//! One leaf makes the optimizer a handful of operations whatever the number of tensors, and the
//! gradient of all parameters one tensor. What is treated alike lies together:
//!
//! ```text
//! │ matrices of the layers, by kind │ embeddings, output layer │ biases, norms │
//! │◄──────────── Muon ─────────────►│                          │               │
//! │◄────────────────────── weight decay ──────────────────────►│               │
//! ```

use std::collections::HashMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};
use teeny_runtime::format::{TensorSpec, names};

/// Flat parameters with their layout.
pub struct Params {
    /// Every parameter, `(n_params)` f32, a leaf that gathers gradients.
    pub theta: Tensor,
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
    blocks: Vec<Block>,
    regions: Vec<Region>,
    n_matrix: i64,
    n_decay: i64,
}

/// One tensor of the exported file and where it lies in the flat tensor.
struct Entry {
    spec: TensorSpec,
    offset: i64,
}

/// Neighbouring tensors that the model uses as one: the projections to query, key and value, or
/// gate and up, are one matrix product.
struct Block {
    /// Name of its first tensor.
    name: String,
    shape: Vec<i64>,
}

/// The blocks of one kind in all layers, one after the other: a stack of equal matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins in the flat tensor.
    pub offset: i64,
    /// Number of matrices, one a layer.
    pub n: i64,
    /// Rows of each of the tensors that a matrix consists of: those of query, key and value, say.
    pub rows: Vec<i64>,
    /// Columns.
    pub columns: i64,
}

impl Region {
    /// The region of a tensor of the layout as `(n, sum of rows, columns)`.
    pub fn of(&self, flat: &Tensor) -> Tensor {
        let rows: i64 = self.rows.iter().sum();
        flat.narrow(0, self.offset, self.n * rows * self.columns).view([self.n, rows, self.columns])
    }
}

/// Views of all blocks, see [`Params::views`].
pub struct Views {
    full: Vec<Tensor>,
    /// Those of two or more dimensions, if they differ.
    rounded: Option<Vec<Tensor>>,
}

impl Views {
    /// A block as f32.
    pub fn exact(&self, block: usize) -> &Tensor {
        &self.full[block]
    }

    /// A block of two or more dimensions in the kind that products use.
    pub fn matrix(&self, block: usize) -> &Tensor {
        self.rounded.as_ref().map_or(&self.full[block], |rounded| &rounded[block])
    }
}

/// How fresh parameters are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Init {
    /// Standard deviation of the weights; GPT-2's is 0.02.
    pub std: f64,
    /// Whether the layers' output projections and the output layer begin at zero, so that the model
    /// begins as the embedding of its input and every token as likely as the others
    /// (arXiv:2203.03466).
    pub zero: bool,
}

impl Params {
    /// Zeroed parameters for `specs`; see [`Params::init`].
    pub fn new(specs: Vec<TensorSpec>, device: Device) -> Params {
        let (matrices, vectors): (Vec<_>, Vec<_>) =
            specs.into_iter().partition(|spec| spec.shape.len() >= 2);
        let (mut layers, others): (Vec<_>, Vec<_>) =
            matrices.into_iter().partition(|spec| spec.name.contains(LAYERS));
        // Stable: within a kind they stay in the order of the layers, and query, key and value, as
        // well as gate and up, are of one kind.
        layers.sort_by_key(|spec| kind_of(&spec.name));
        let len = |specs: &[TensorSpec]| specs.iter().map(TensorSpec::len).sum::<usize>() as i64;
        let n_matrix = len(&layers);
        let n_decay = n_matrix + len(&others);
        let mut entries = Vec::new();
        let mut index = HashMap::new();
        let mut blocks: Vec<Block> = Vec::new();
        let mut regions: Vec<Region> = Vec::new();
        let mut kind = None;
        let mut offset = 0;
        for spec in layers.into_iter().chain(others).chain(vectors) {
            let shape: Vec<i64> = spec.shape.iter().map(|n| *n as i64).collect();
            let continues = blocks.last().is_some_and(|block| joins(&block.name, &spec.name));
            match blocks.last_mut() {
                Some(block) if continues => block.shape[0] += shape[0],
                Some(_) | None => {
                    blocks.push(Block { name: spec.name.clone(), shape: shape.clone() })
                }
            }
            if offset < n_matrix {
                let this = kind_of(&spec.name);
                match regions.last_mut() {
                    Some(region) if kind == Some(this) => {
                        if !continues {
                            region.n += 1;
                        } else if region.n == 1 {
                            region.rows.push(shape[0]);
                        }
                    }
                    Some(_) | None => {
                        regions.push(Region {
                            offset,
                            n: 1,
                            rows: vec![shape[0]],
                            columns: shape[1],
                        });
                    }
                }
                kind = Some(this);
            }
            index.insert(spec.name.clone(), entries.len());
            let len = spec.len() as i64;
            entries.push(Entry { spec, offset });
            offset += len;
        }
        let theta = Tensor::zeros([offset], (Kind::Float, device)).set_requires_grad(true);
        Params { theta, entries, index, blocks, regions, n_matrix, n_decay }
    }

    /// Draws fresh parameters from libtorch's generator: weights normal, those that add to the
    /// residual stream smaller by `1/sqrt(2 n_layer)` so that its variance does not grow with depth,
    /// norms one, biases zero. The same seed gives the same values on any device.
    pub fn init(&mut self, n_layer: usize, init: Init) {
        let parts: Vec<Tensor> =
            self.entries.iter().map(|e| initial(&e.spec, n_layer, init)).collect();
        self.set_flat(&Tensor::cat(&parts, 0));
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.theta.numel()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the head of the flat tensor that weight decay applies to.
    pub fn n_decay(&self) -> i64 {
        self.n_decay
    }

    /// Position among [`Params::views`] of the block that begins with the tensor `name`.
    pub fn block(&self, name: &str) -> Option<usize> {
        self.blocks.iter().position(|block| block.name == name)
    }

    /// Length of the head of the flat tensor that holds the matrices of the layers.
    pub fn n_matrix(&self) -> i64 {
        self.n_matrix
    }

    /// The matrices of the layers as stacks, in layout order: all of the first
    /// [`n_matrix`](Self::n_matrix) elements.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The blocks as views that gradients flow through, in layout order: those of two or more
    /// dimensions as `matrices` (a rounded copy takes less time in products), the others as f32.
    pub fn views(&self, matrices: Kind) -> Views {
        let split = |flat: &Tensor, blocks: &[Block]| -> Vec<Tensor> {
            let sizes: Vec<i64> = blocks.iter().map(|b| b.shape.iter().product()).collect();
            let parts = flat.split_with_sizes(&sizes, 0);
            parts.iter().zip(blocks).map(|(part, block)| part.view(&block.shape[..])).collect()
        };
        let full = split(&self.theta, &self.blocks);
        let rounded = (matrices != Kind::Float).then(|| {
            let n = self.blocks.iter().filter(|block| block.shape.len() >= 2).count();
            split(&self.theta.narrow(0, 0, self.n_decay).to_kind(matrices), &self.blocks[..n])
        });
        Views { full, rounded }
    }

    /// Name, shape and place in the flat tensor of every tensor, in layout order.
    pub fn entries(&self) -> impl Iterator<Item = (&TensorSpec, Range<usize>)> {
        self.entries.iter().map(|e| {
            let start = e.offset as usize;
            (&e.spec, start..start + e.spec.len())
        })
    }

    /// Place in the flat tensor of one tensor.
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        let entry = &self.entries[*self.index.get(name)?];
        let start = entry.offset as usize;
        Some(start..start + entry.spec.len())
    }

    /// A copy of the flat tensor on the CPU.
    pub fn to_vec(&self) -> Vec<f32> {
        flat_to_vec(&self.theta)
    }

    /// Replaces every parameter. `flat`: `(n_params)` f32, any device.
    pub fn set_flat(&mut self, flat: &Tensor) {
        tch::no_grad(|| self.theta.copy_(flat));
    }
}

/// Elements of a flat f32 tensor of any device.
pub fn flat_to_vec(flat: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; flat.numel()];
    flat.detach().to_device(Device::Cpu).copy_data(&mut values, flat.numel());
    values
}

/// Whether tensor `name` continues the block whose first tensor is `block`.
fn joins(block: &str, name: &str) -> bool {
    let follows = |first: &str, next: &[&str]| {
        block.contains(first) && next.iter().any(|n| block.replace(first, n) == name)
    };
    follows("q_proj", &["k_proj", "v_proj"]) || follows("gate_proj", &["up_proj"])
}

/// What the names of all tensors of a layer have in common.
const LAYERS: &str = ".layers.";

/// Which of the layer's products a matrix belongs to.
fn kind_of(name: &str) -> u8 {
    let kinds: [&[&str]; 4] =
        [&["q_proj", "k_proj", "v_proj"], &["o_proj"], &["gate_proj", "up_proj"], &["down_proj"]];
    let found = kinds.iter().position(|kind| kind.iter().any(|part| name.contains(part)));
    found.unwrap_or(kinds.len()) as u8
}

fn initial(spec: &TensorSpec, n_layer: usize, init: Init) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let len = [spec.len() as i64];
    if spec.shape.len() >= 2 {
        let residual =
            spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
        if init.zero && (residual || spec.name == format!("{}.weight", names::LM_HEAD)) {
            return Tensor::zeros(len, options);
        }
        let std = if residual { init.std / (2.0 * n_layer as f64).sqrt() } else { init.std };
        return Tensor::randn(len, options) * std;
    }
    let is_norm = spec.name.contains("norm.weight");
    if is_norm { Tensor::ones(len, options) } else { Tensor::zeros(len, options) }
}
