//! All tensors of a foreign model by their own names, and which of them ours has taken.

use std::collections::{BTreeMap, BTreeSet};

use super::refuse;
use super::tensor::{Mapped, Values, View};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::format::{TensorSpec, tensor_specs};

/// The tensors of a foreign model.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    values: BTreeMap<String, Values>,
    taken: BTreeSet<String>,
}

/// Where a foreign model has a tensor of ours.
pub(super) struct Want {
    pub name: String,
    /// Of the whole foreign tensor, outermost dimension first.
    pub shape: Vec<usize>,
    pub view: View,
}

/// A name of ours by what it names.
pub(super) enum Name<'a> {
    /// A part of a layer, such as `self_attn.q_proj.weight`.
    Layer(usize, &'a str),
    /// Anything else.
    Other(&'a str),
}

impl<'a> Name<'a> {
    /// `name`: of one of [`tensor_specs`].
    pub fn new(name: &'a str) -> Name<'a> {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| {
            let (n, part) = rest.split_once('.')?;
            Some(Name::Layer(n.parse().ok()?, part))
        });
        layer.unwrap_or(Name::Other(name))
    }
}

impl Tensors {
    /// Adds a tensor.
    ///
    /// # Errors
    /// A name that is there already.
    pub fn insert(&mut self, name: String, values: Values) -> Result<()> {
        if self.values.contains_key(&name) {
            return Err(refuse(&name, "it twice", "each tensor once"));
        }
        self.values.insert(name, values);
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<&Values> {
        self.values.get(name)
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// A tensor that must be there.
    ///
    /// # Errors
    /// That it is not.
    pub fn require(&self, name: &str) -> Result<&Values> {
        self.get(name).ok_or_else(|| refuse(name, "nothing", "a tensor of this name"))
    }

    /// Leaves out tensors that say nothing about the model.
    pub fn ignore(&mut self, is_ignored: impl Fn(&str) -> bool) {
        self.values.retain(|name, _| !is_ignored(name));
    }

    /// Takes a prefix away from the names that have it.
    ///
    /// # Errors
    /// Two tensors that have one name then.
    pub fn strip_prefix(&mut self, prefix: &str) -> Result<()> {
        for (name, values) in std::mem::take(&mut self.values) {
            let name = name.strip_prefix(prefix).map_or(name.clone(), str::to_owned);
            self.insert(name, values)?;
        }
        Ok(())
    }

    /// How many layers there are: one more than the largest number behind `prefix`.
    pub fn n_layer(&self, prefix: &str) -> usize {
        let number = |name: &String| {
            let (number, _) = name.strip_prefix(prefix)?.split_once('.')?;
            number.parse::<u32>().ok()
        };
        self.values.keys().filter_map(number).max().map_or(0, |n| n as usize + 1)
    }

    /// Whether a model's layers have a part in all of them, or in none.
    ///
    /// # Errors
    /// Naming the first that is missing where others are there. `name` gives the name of a part's tensor
    /// in a layer.
    pub fn all_or_none(&self, n_layer: usize, names: &[&dyn Fn(usize) -> String]) -> Result<bool> {
        let all = || (0..n_layer).flat_map(|n| names.iter().map(move |name| name(n)));
        let Some(there) = all().find(|name| self.has(name)) else { return Ok(false) };
        match all().find(|name| !self.has(name)) {
            Some(missing) => Err(refuse(&missing, "nothing", format!("it, as {there} is there"))),
            None => Ok(true),
        }
    }

    /// Whether the output projection is the embedding: where it is not there, or is the same bytes.
    pub fn is_tied(&mut self, head: &str, embedding: &str) -> bool {
        let Some(found) = self.get(head) else { return true };
        let same = self.get(embedding).is_some_and(|embedding| found.is_same(embedding));
        if same {
            self.taken.insert(head.to_owned());
        }
        same
    }

    /// The tensors of a model of ours.
    ///
    /// # Errors
    /// An invalid configuration; a tensor that is missing, has another shape, or is left over.
    pub fn map(
        mut self,
        config: &ModelConfig,
        want: &dyn Fn(&TensorSpec) -> Result<Want>,
    ) -> Result<BTreeMap<String, Mapped>> {
        config.validate()?;
        // A layer has at least four matrices, so a hostile number of them ends before names are made.
        if config.n_layer > self.values.len() {
            return Err(refuse(
                "n_layer",
                config.n_layer.to_string(),
                format!("no more layers than the file's {} tensors make", self.values.len()),
            ));
        }
        let mut mapped = BTreeMap::new();
        for spec in tensor_specs(config) {
            let Want { name, shape, view } = want(&spec)?;
            let values = self.require(&name)?.clone();
            if values.shape() != shape {
                return Err(refuse(
                    &name,
                    format!("shape {:?}", values.shape()),
                    format!("{shape:?} from the configuration"),
                ));
            }
            self.taken.insert(name);
            mapped.insert(spec.name, Mapped { values, view });
        }
        match self.values.keys().find(|name| !self.taken.contains(*name)) {
            Some(name) => Err(refuse(name, "it", "no such tensor in this configuration")),
            None => Ok(mapped),
        }
    }
}
