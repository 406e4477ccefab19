//! All parameters of a model as one flat tensor, and views of it under their names.
//!
//! One leaf makes the optimizer a handful of operations whatever the number of tensors, and the
//! gradient of all parameters one tensor. Tensors of two or more dimensions come first, so that
//! weight decay, which applies to them only, is an operation on the head of the flat tensor.

use std::collections::HashMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};
use teeny_runtime::format::TensorSpec;

/// Standard deviation of freshly drawn weights, as in GPT-2.
const INIT_STD: f64 = 0.02;

/// Flat parameters with their layout.
pub struct Params {
    /// Every parameter, `(n_params)` f32, a leaf that gathers gradients.
    pub theta: Tensor,
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
    blocks: Vec<Block>,
    block_sizes: Vec<i64>,
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

impl Params {
    /// Zeroed parameters for `specs`; see [`Params::init`].
    pub fn new(specs: Vec<TensorSpec>, device: Device) -> Params {
        let (matrices, vectors): (Vec<_>, Vec<_>) =
            specs.into_iter().partition(|spec| spec.shape.len() >= 2);
        let n_decay = matrices.iter().map(TensorSpec::len).sum::<usize>() as i64;
        let mut entries = Vec::new();
        let mut index = HashMap::new();
        let mut blocks: Vec<Block> = Vec::new();
        let mut offset = 0;
        for spec in matrices.into_iter().chain(vectors) {
            let shape: Vec<i64> = spec.shape.iter().map(|n| *n as i64).collect();
            match blocks.last_mut() {
                Some(block) if joins(&block.name, &spec.name) => block.shape[0] += shape[0],
                Some(_) | None => blocks.push(Block { name: spec.name.clone(), shape }),
            }
            index.insert(spec.name.clone(), entries.len());
            let len = spec.len() as i64;
            entries.push(Entry { spec, offset });
            offset += len;
        }
        let block_sizes = blocks.iter().map(|block| block.shape.iter().product()).collect();
        let theta = Tensor::zeros([offset], (Kind::Float, device)).set_requires_grad(true);
        Params { theta, entries, index, blocks, block_sizes, n_decay }
    }

    /// Draws fresh parameters from libtorch's generator: weights normal with deviation 0.02, those
    /// that add to the residual stream smaller by `1/sqrt(2 n_layer)` so that its variance does not
    /// grow with depth, norms one, biases zero. The same seed gives the same values on any device.
    pub fn init(&mut self, n_layer: usize) {
        let parts: Vec<Tensor> = self.entries.iter().map(|e| initial(&e.spec, n_layer)).collect();
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

    /// The blocks as views that gradients flow through, in layout order.
    pub fn views(&self) -> Vec<Tensor> {
        let parts = self.theta.split_with_sizes(&self.block_sizes, 0);
        parts.iter().zip(&self.blocks).map(|(part, block)| part.view(&block.shape[..])).collect()
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

fn initial(spec: &TensorSpec, n_layer: usize) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let len = [spec.len() as i64];
    if spec.shape.len() >= 2 {
        let residual =
            spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
        let std = if residual { INIT_STD / (2.0 * n_layer as f64).sqrt() } else { INIT_STD };
        return Tensor::randn(len, options) * std;
    }
    let is_norm = spec.name.contains("norm.weight");
    if is_norm { Tensor::ones(len, options) } else { Tensor::zeros(len, options) }
}
