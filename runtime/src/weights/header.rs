//! The header of a model file, which nobody vouches for: everything that it says is checked here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as FileDtype, Metadata, TensorInfo};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::memory::{Bytes, Place, Tensor};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::format::{self, Dtype, Part, SCALE_SUFFIX, TABLES_VERSION, TensorSpec};
use crate::tokenizer::tables::names;
use crate::tokenizer::{Table, TableDtype};

pub(super) fn damaged(what: &str, found: impl Into<String>, expected: String) -> Error {
    Error::Format { what: what.to_owned(), found: found.into(), expected }
}

/// What [`read_header`] expects of a file of ours.
pub(super) const EXPECTED: &str = "a safetensors file as teeny-train writes";

/// Parses and checks the header of a safetensors file; returns where the tensor data begins. `expected`
/// names the file in errors.
pub(crate) fn read_header(bytes: &[u8], expected: &str) -> Result<(usize, Metadata)> {
    if bytes.get(8).is_some_and(|byte| *byte != b'{') {
        return Err(damaged(
            "header",
            format!("first byte {:#04x}", bytes[8]),
            format!("'{{': {expected}"),
        ));
    }
    let (length, header) = SafeTensors::read_metadata(bytes).map_err(|e| {
        damaged("header", format!("{} bytes, {e}", bytes.len()), expected.to_owned())
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
    let mut tensors = BTreeMap::new();
    let mut n_parts = 0;
    for spec in format::tensor_specs(config) {
        let found = infos.get(&spec.name).map(|info| info.dtype);
        let dtype = element_type(&spec, found)?;
        let stored = dtype.stored(&spec.shape);
        let part = |name: &str, part: &Part| check_part(bytes, data_start, &infos, name, part);
        let values = part(&spec.name, &stored.values)?;
        let scales = match &stored.scales {
            Some(scales) => part(&format!("{}{SCALE_SUFFIX}", spec.name), scales)?,
            None => 0..0,
        };
        n_parts += 1 + usize::from(stored.scales.is_some());
        let TensorSpec { name, shape } = spec;
        let tensor = Tensor::new(Arc::clone(bytes), Place { values, scales }, shape, dtype);
        tensors.insert(name, tensor);
    }
    n_parts += infos.keys().filter(|name| is_table(name)).count();
    if n_parts < infos.len()
        && let Some((name, expected)) = infos.keys().find_map(|name| superfluous(name, &tensors))
    {
        return Err(damaged(name, "it", expected.to_owned()));
    }
    Ok(tensors)
}

/// The tables of the tokenizer; what may be in them and which must be there is for it to say.
pub(super) fn tables<'a>(
    bytes: &'a [u8],
    data_start: usize,
    header: &'a Metadata,
) -> Result<Vec<Table<'a>>> {
    let mut tables = Vec::new();
    for name in names::ALL {
        let Some(info) = header.info(name) else { continue };
        // The list of element types is safetensors' own; we take three of them.
        #[allow(clippy::wildcard_enum_match_arm)]
        let dtype = match info.dtype {
            FileDtype::U8 => TableDtype::U8,
            FileDtype::U32 => TableDtype::U32,
            FileDtype::F32 => TableDtype::F32,
            other => return Err(damaged(name, other.to_string(), "U8, U32 or F32".to_owned())),
        };
        let (start, end) = info.data_offsets;
        // As in `check_part`, these sums do not overflow.
        let content = bytes.get(data_start + start..data_start + end).unwrap_or_default();
        tables.push(Table { name, dtype, shape: info.shape.clone(), bytes: content.into() });
    }
    Ok(tables)
}

fn is_table(name: &str) -> bool {
    names::ALL.contains(&name)
}

/// The element type of a tensor, by what the header says that its numbers are.
fn element_type(spec: &TensorSpec, found: Option<FileDtype>) -> Result<Dtype> {
    let Some(found) = found else {
        return Err(damaged(&spec.name, "nothing", format!("a tensor of shape {:?}", spec.shape)));
    };
    // The list of element types is safetensors' own; we take five of them.
    #[allow(clippy::wildcard_enum_match_arm)]
    match found {
        FileDtype::F32 => Ok(Dtype::F32),
        FileDtype::F16 => Ok(Dtype::F16),
        FileDtype::BF16 => Ok(Dtype::Bf16),
        FileDtype::I8 if spec.is_quantisable() => Ok(Dtype::Q8),
        FileDtype::U8 if spec.is_quantisable() => Ok(Dtype::Q4),
        other => {
            let blocks = if spec.is_quantisable() { ", or I8 or U8 in blocks" } else { "" };
            let expected = format!("F32, F16 or BF16{blocks}");
            Err(damaged(&spec.name, other.to_string(), expected))
        }
    }
}

/// Checks type, shape and alignment of one tensor of the header; returns where it lies.
fn check_part(
    bytes: &Bytes,
    data_start: usize,
    infos: &HashMap<String, &TensorInfo>,
    name: &str,
    part: &Part,
) -> Result<Range<usize>> {
    let Some(info) = infos.get(name) else {
        let expected = format!("a tensor of type {} and shape {:?}", part.dtype, part.shape);
        return Err(damaged(name, "nothing", expected));
    };
    if info.shape != part.shape {
        return Err(damaged(
            name,
            format!("shape {:?}", info.shape),
            format!("{:?} from the configuration in the file", part.shape),
        ));
    }
    if info.dtype != part.dtype {
        return Err(damaged(name, info.dtype.to_string(), part.dtype.to_string()));
    }
    // `read_metadata` has checked that offsets lie within the file and agree with shape and
    // element type, so neither these sums nor the product of the shape overflow.
    let (start, end) = info.data_offsets;
    let place = data_start + start..data_start + end;
    let address = bytes.get().as_ptr() as usize + place.start;
    if !address.is_multiple_of(part.alignment()) {
        return Err(damaged(
            name,
            format!("data at byte {}", place.start),
            format!("a multiple of {}", part.alignment()),
        ));
    }
    Ok(place)
}

/// What is wrong with a name that no tensor of the configuration accounts for.
fn superfluous<'a>(
    name: &'a str,
    tensors: &BTreeMap<String, Tensor>,
) -> Option<(&'a str, &'static str)> {
    if tensors.contains_key(name) || is_table(name) {
        return None;
    }
    match name.strip_suffix(SCALE_SUFFIX).and_then(|weight| tensors.get(weight)) {
        Some(weight) if weight.dtype().is_quantised() => None,
        Some(_) => Some((name, "no scales of a tensor that is not in blocks")),
        None => Some((name, "no such tensor in this configuration")),
    }
}

/// Programs that know only earlier versions would take blocks for something else, and a tokenizer with
/// tables for none.
pub(super) fn check_version(
    version: &str,
    tensors: &BTreeMap<String, Tensor>,
    tables: &[Table<'_>],
) -> Result<()> {
    if let Some(table) = tables.first()
        && version < TABLES_VERSION
    {
        return Err(damaged(
            "metadata key format_version",
            format!("{version:?}"),
            format!("{TABLES_VERSION:?} with {}", table.name),
        ));
    }
    let quantised = tensors.iter().find(|(_, tensor)| tensor.dtype().is_quantised());
    match quantised {
        Some((name, tensor)) if version < "3" => Err(damaged(
            "metadata key format_version",
            format!("{version:?}"),
            format!("\"3\" with tensors in blocks, as {name} in {}", tensor.dtype().name()),
        )),
        Some(_) | None => Ok(()),
    }
}
