//! Keys and values of one session on the CPU.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use half::{bf16, f16};

use super::attention::{KvElement, Page};
use super::scalar::LANES;
use crate::alloc::reserve;
use crate::error::{Error, Result};
use crate::kv_cache::{KvShape, PAGE};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// As they are computed.
    #[default]
    F32,
    /// Half precision: half the memory, and an error of about 5e-4.
    F16,
    /// 8 bits with a scale for each head and position: about a quarter of the memory, and an error of
    /// about 4e-3 of the largest number.
    Q8,
}

impl KvDtype {
    /// Every kind of storage.
    pub const ALL: &[KvDtype] = &[KvDtype::F32, KvDtype::F16, KvDtype::Q8];

    /// `f32`, `f16` or `q8`.
    pub fn name(self) -> &'static str {
        match self {
            KvDtype::F32 => "f32",
            KvDtype::F16 => "f16",
            KvDtype::Q8 => "q8",
        }
    }
}

impl FromStr for KvDtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<KvDtype> {
        let found = KvDtype::ALL.iter().find(|dtype| dtype.name() == text);
        found.copied().ok_or_else(|| Error::Argument {
            name: "kv_dtype",
            found: format!("{text:?}"),
            expected: "f32, f16 or q8".to_owned(),
        })
    }
}

/// Keys and values of one session.
#[derive(Debug)]
pub struct CpuCache {
    layout: Layout,
    /// Allocated when a position first reaches them, shared with forks until one of them writes.
    pages: Pages,
}

/// Where things lie in a page.
#[derive(Clone, Debug)]
struct Layout {
    shape: KvShape,
    /// head_dim up to a multiple of [`LANES`].
    width: usize,
}

impl Layout {
    /// Elements of the keys and values of one layer and head: keys (head_dim, PAGE), so that a score reads
    /// many positions at once, then values (PAGE, width).
    fn head_len(&self) -> usize {
        (self.shape.head_dim + self.width) * PAGE
    }

    fn heads(&self) -> usize {
        self.shape.n_layer * self.shape.n_kv_head
    }

    fn head(&self, layer: usize, kv_head: usize) -> usize {
        layer * self.shape.n_kv_head + kv_head
    }
}

/// [`PAGE`] positions of all layers and heads.
#[derive(Clone, Debug)]
struct Stored<E> {
    /// (n_layer, n_kv_head, ..), each as [`Layout::head_len`] says.
    elements: Vec<E>,
    /// (n_layer, n_kv_head, 2, PAGE), for 8 bits.
    scales: Vec<bf16>,
}

#[derive(Debug)]
enum Pages {
    F32(Vec<Arc<Stored<f32>>>),
    F16(Vec<Arc<Stored<f16>>>),
    Q8(Vec<Arc<Stored<i8>>>),
}

/// Does the same with pages of any element type.
macro_rules! pages {
    ($pages:expr, $name:ident => $body:expr) => {
        match $pages {
            Pages::F32($name) => $body,
            Pages::F16($name) => $body,
            Pages::Q8($name) => $body,
        }
    };
}

impl<E: Cell> Stored<E> {
    fn zeros(layout: &Layout) -> Result<Stored<E>> {
        const WHAT: &str = "keys and values";
        let (mut elements, mut scales) = (Vec::new(), Vec::new());
        let len = layout.heads() * layout.head_len();
        reserve(&mut elements, len, WHAT)?;
        elements.resize(len, E::ZERO);
        if E::SCALED {
            let len = layout.heads() * 2 * PAGE;
            reserve(&mut scales, len, WHAT)?;
            scales.resize(len, bf16::ZERO);
        }
        Ok(Stored { elements, scales })
    }

    fn copied(&self, layout: &Layout) -> Result<Stored<E>> {
        let mut copy = Stored::zeros(layout)?;
        copy.elements.copy_from_slice(&self.elements);
        copy.scales.copy_from_slice(&self.scales);
        Ok(copy)
    }

    /// Stores a key and a value. `k`, `v`: (head_dim)
    fn write(&mut self, layout: &Layout, head: usize, slot: usize, k: &[f32], v: &[f32]) {
        let elements = &mut self.elements[head * layout.head_len()..][..layout.head_len()];
        let (keys, values) = elements.split_at_mut(layout.shape.head_dim * PAGE);
        let inverse = E::scale(k, self.scales.get_mut(head * 2 * PAGE + slot));
        for (out, k) in keys[slot..].iter_mut().step_by(PAGE).zip(k) {
            *out = E::from_f32(*k, inverse);
        }
        let inverse = E::scale(v, self.scales.get_mut((head * 2 + 1) * PAGE + slot));
        for (out, v) in values[slot * layout.width..].iter_mut().zip(v) {
            *out = E::from_f32(*v, inverse);
        }
    }

    /// The reverse of `write`.
    fn read(&self, layout: &Layout, head: usize, slot: usize, k: &mut [f32], v: &mut [f32]) {
        let Page { k: keys, v: values, k_scales, v_scales } = self.page(layout, head);
        let scale = k_scales.get(slot).map_or(1.0, |scale| scale.to_f32());
        for (out, k) in k.iter_mut().zip(keys[slot..].iter().step_by(PAGE)) {
            *out = k.to_f32() * scale;
        }
        let scale = v_scales.get(slot).map_or(1.0, |scale| scale.to_f32());
        for (out, v) in v.iter_mut().zip(&values[slot * layout.width..]) {
            *out = v.to_f32() * scale;
        }
    }

    fn page(&self, layout: &Layout, head: usize) -> Page<'_, E> {
        let elements = &self.elements[head * layout.head_len()..][..layout.head_len()];
        let (k, v) = elements.split_at(layout.shape.head_dim * PAGE);
        let (k_scales, v_scales) = if E::SCALED {
            self.scales[head * 2 * PAGE..][..2 * PAGE].split_at(PAGE)
        } else {
            (&[][..], &[][..])
        };
        Page { k, v, k_scales, v_scales }
    }
}

/// What a stored number is made of.
trait Cell: KvElement {
    const ZERO: Self;
    /// Sets the scale of some numbers, if they have one, and returns what they are multiplied with.
    fn scale(values: &[f32], scale: Option<&mut bf16>) -> f32;
    fn from_f32(value: f32, inverse: f32) -> Self;
}

impl Cell for f32 {
    const ZERO: f32 = 0.0;

    fn scale(_values: &[f32], _scale: Option<&mut bf16>) -> f32 {
        1.0
    }

    fn from_f32(value: f32, _inverse: f32) -> f32 {
        value
    }
}

impl Cell for f16 {
    const ZERO: f16 = f16::ZERO;

    fn scale(_values: &[f32], _scale: Option<&mut bf16>) -> f32 {
        1.0
    }

    fn from_f32(value: f32, _inverse: f32) -> f16 {
        // Not `f16::from_f32`, which the half crate compiles differently from machine to machine where a
        // number is none.
        if value.is_nan() { f16::NAN } else { f16::from_f32(value) }
    }
}

impl Cell for i8 {
    const ZERO: i8 = 0;

    /// Eight bits of fraction, so that scale times integer is exact and a saved session that is restored
    /// has the same integers again.
    fn scale(values: &[f32], scale: Option<&mut bf16>) -> f32 {
        let max = values.iter().fold(0, |max, x| u32::max(max, x.to_bits() & 0x7fff_ffff));
        let max = f32::from_bits(max);
        let rounded = if !max.is_finite() {
            bf16::NAN
        } else if max < 254.0 * f32::MIN_POSITIVE {
            bf16::ZERO
        } else {
            bf16::from_f32_const(max / 127.0)
        };
        if let Some(scale) = scale {
            *scale = rounded;
        }
        let rounded = rounded.to_f32();
        if rounded > 0.0 { 1.0 / rounded } else { 0.0 }
    }

    fn from_f32(value: f32, inverse: f32) -> i8 {
        // A cast of what is not finite would be 0 here and something else there.
        (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8
    }
}

impl CpuCache {
    /// For no positions yet.
    pub(super) fn new(shape: &KvShape, dtype: KvDtype) -> CpuCache {
        let width = shape.head_dim.next_multiple_of(LANES);
        let pages = match dtype {
            KvDtype::F32 => Pages::F32(Vec::new()),
            KvDtype::F16 => Pages::F16(Vec::new()),
            KvDtype::Q8 => Pages::Q8(Vec::new()),
        };
        CpuCache { layout: Layout { shape: shape.clone(), width }, pages }
    }

    /// Makes sure that `rows` positions from `pos` on have memory of their own.
    pub(super) fn reserve(&mut self, pos: usize, rows: usize) -> Result<()> {
        fn reserve<E: Cell>(
            pages: &mut Vec<Arc<Stored<E>>>,
            layout: &Layout,
            pos: usize,
            rows: usize,
        ) -> Result<()> {
            let reached = pos.saturating_add(rows).min(layout.shape.slots);
            while pages.len() * PAGE < reached {
                pages.push(Arc::new(Stored::zeros(layout)?));
            }
            // Here and not while storing, because here it may fail.
            let n_pages = layout.shape.slots / PAGE;
            for page in (pos / PAGE..pos.saturating_add(rows).div_ceil(PAGE)).take(n_pages) {
                let page = &mut pages[page % n_pages];
                if Arc::get_mut(page).is_none() {
                    *page = Arc::new(page.copied(layout)?);
                }
            }
            Ok(())
        }
        pages!(&mut self.pages, pages => reserve(pages, &self.layout, pos, rows))
    }

    /// A second cache that shares all pages.
    pub(super) fn fork(&self) -> CpuCache {
        let pages = match &self.pages {
            Pages::F32(pages) => Pages::F32(pages.clone()),
            Pages::F16(pages) => Pages::F16(pages.clone()),
            Pages::Q8(pages) => Pages::Q8(pages.clone()),
        };
        CpuCache { layout: self.layout.clone(), pages }
    }

    /// Bytes of all pages, and of those that are shared.
    pub(super) fn bytes(&self) -> (usize, usize) {
        fn bytes<E>(pages: &[Arc<Stored<E>>]) -> (usize, usize) {
            let page =
                |page: &Stored<E>| size_of_val(&page.elements[..]) + size_of_val(&page.scales[..]);
            let all = pages.iter().map(|shared| page(shared)).sum();
            let shared = pages.iter().filter(|page| Arc::strong_count(page) > 1);
            (all, shared.map(|shared| page(shared)).sum())
        }
        pages!(&self.pages, pages => bytes(pages))
    }

    /// Puts keys and values of a layer into the slot of a position. `k`, `v`: (n_kv_head, head_dim)
    pub(super) fn store(&mut self, layer: usize, pos: usize, k: &[f32], v: &[f32]) {
        let (page, slot) = self.layout.shape.locate(pos);
        let (layout, head_dim) = (&self.layout, self.layout.shape.head_dim);
        pages!(&mut self.pages, pages => {
            // `reserve` has made the page our own, so nothing is copied.
            let page = Arc::make_mut(&mut pages[page]);
            for (head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
                page.write(layout, layout.head(layer, head), slot, k, v);
            }
        });
    }

    /// Copies keys and values of positions out. `out`: (positions, n_layer, n_kv_head, 2, head_dim)
    pub(super) fn read(&self, out: &mut [f32], positions: Range<usize>) {
        let (layout, head_dim) = (&self.layout, self.layout.shape.head_dim);
        for (out, pos) in out.chunks_exact_mut(layout.shape.position_len()).zip(positions) {
            let (page, slot) = layout.shape.locate(pos);
            for (head, out) in out.chunks_exact_mut(2 * head_dim).enumerate() {
                let (k, v) = out.split_at_mut(head_dim);
                pages!(&self.pages, pages => pages[page].read(layout, head, slot, k, v));
            }
        }
    }

    /// The reverse of `read`.
    pub(super) fn write(&mut self, positions: Range<usize>, values: &[f32]) {
        let (layout, head_dim) = (&self.layout, self.layout.shape.head_dim);
        for (values, pos) in values.chunks_exact(layout.shape.position_len()).zip(positions) {
            let (page, slot) = layout.shape.locate(pos);
            for (head, values) in values.chunks_exact(2 * head_dim).enumerate() {
                let (k, v) = values.split_at(head_dim);
                pages!(&mut self.pages, pages => {
                    Arc::make_mut(&mut pages[page]).write(layout, head, slot, k, v);
                });
            }
        }
    }

    /// Calls the function of the cache's element type with the pages that hold the positions
    /// `first..=last` for a layer and head, in order: each with its slots and its first slot's position.
    pub(super) fn visit(
        &self,
        (layer, kv_head): (usize, usize),
        (first, last): (usize, usize),
        visitor: &mut impl Visitor,
    ) {
        let (layout, shape) = (&self.layout, &self.layout.shape);
        let head = layout.head(layer, kv_head);
        let mut pos = first;
        while pos <= last {
            let (page, slot) = shape.locate(pos);
            let len = (PAGE - slot).min(last + 1 - pos);
            let slots = slot..slot + len;
            pages!(&self.pages, pages => {
                visitor.visit(pages[page].page(layout, head), slots, pos - slot);
            });
            pos += len;
        }
    }

    /// Columns that values are stored in.
    pub(super) fn width(&self) -> usize {
        self.layout.width
    }
}

/// Does something with each page, whatever its elements are.
pub(super) trait Visitor {
    /// The positions `slots` of a page whose first slot has, or would have, the position `start`.
    fn visit<E: KvElement>(&mut self, page: Page<'_, E>, slots: Range<usize>, start: usize);
}
