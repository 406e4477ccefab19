//! The header of a model file, which nobody vouches for: everything that it says is checked here.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as FileDtype, Metadata};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::memory::{Bytes, Tensor};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::format::{self, Dtype, TensorSpec};

pub(super) fn damaged(what: &str, found: impl Into<String>, expected: String) -> Error {
    Error::Format { what: what.to_owned(), found: found.into(), expected }
}

/// Parses and checks the header; returns where the tensor data begins.
pub(super) fn read_header(bytes: &[u8]) -> Result<(usize, Metadata)> {
    const EXPECTED: &str = "a safetensors file as teeny-train writes";
    if bytes.get(8).is_some_and(|byte| *byte != b'{') {
        return Err(damaged(
            "header",
            format!("first byte {:#04x}", bytes[8]),
            format!("'{{': {EXPECTED}"),
        ));
    }
    let (length, header) = SafeTensors::read_metadata(bytes).map_err(|e| {
        damaged("header", format!("{} bytes, {e}", bytes.len()), EXPECTED.to_owned())
    })?;
    // `read_metadata` has checked that 8 + length lies within the file and is UTF-8 JSON.
    let data_start = 8 + length;
    let json = String::from_utf8_lossy(&bytes[8..data_start]);
    let checked =
        serde_json::Deserializer::from_str(&json).deserialize_map(UniqueKeys { depth: 0 });
    if let Err(e) = checked {
        return Err(damaged("header", e.to_string(), "each name once".to_owned()));
    }
    Ok((data_start, header))
}

/// Visits a JSON object and the object under its `__metadata__`; fails when a key comes twice,
/// which a map would silently merge.
struct UniqueKeys {
    depth: usize,
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if self.depth == 0 && key == "__metadata__" {
                map.next_value_seed(UniqueKeys { depth: 1 })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            if let Some(twice) = seen.replace(key) {
                return Err(serde::de::Error::custom(format!("the name {twice:?} twice")));
            }
        }
        Ok(())
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for UniqueKeys {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

/// Every tensor that the configuration calls for, with its shape checked, and no other.
pub(super) fn check_tensors(
    bytes: &Arc<Bytes>,
    data_start: usize,
    header: &Metadata,
    config: &ModelConfig,
) -> Result<BTreeMap<String, Tensor>> {
    let infos = header.tensors();
    // A layer has at least six matrices, so a hostile n_layer ends here, before names are made.
    if config.n_layer > infos.len() {
        return Err(damaged(
            "n_layer",
            config.n_layer.to_string(),
            format!("no more layers than the file's {} tensors make", infos.len()),
        ));
    }
    let specs = format::tensor_specs(config);
    let mut tensors = BTreeMap::new();
    for TensorSpec { name, shape } in specs {
        let Some(info) = infos.get(&name) else {
            return Err(damaged(&name, "nothing", format!("a tensor of shape {shape:?}")));
        };
        if info.shape != shape {
            return Err(damaged(
                &name,
                format!("shape {:?}", info.shape),
                format!("{shape:?} from the configuration in the file"),
            ));
        }
        // The list of element types is safetensors' own; we take three of them.
        #[allow(clippy::wildcard_enum_match_arm)]
        let dtype = match info.dtype {
            FileDtype::F32 => Dtype::F32,
            FileDtype::F16 => Dtype::F16,
            FileDtype::BF16 => Dtype::Bf16,
            other => return Err(damaged(&name, other.to_string(), "F32, F16 or BF16".to_owned())),
        };
        // `read_metadata` has checked that offsets lie within the file and agree with shape and
        // element type, so neither this sum nor the product of the shape overflows.
        let offset = data_start + info.data_offsets.0;
        let address = bytes.get().as_ptr() as usize + offset;
        if !address.is_multiple_of(dtype.size()) {
            return Err(damaged(
                &name,
                format!("data at byte {offset}"),
                format!("a multiple of {}", dtype.size()),
            ));
        }
        tensors.insert(name, Tensor::new(Arc::clone(bytes), offset, shape, dtype));
    }
    if let Some(name) = infos.keys().find(|name| !tensors.contains_key(*name)) {
        return Err(damaged(name, "it", "no such tensor in this configuration".to_owned()));
    }
    Ok(tensors)
}
