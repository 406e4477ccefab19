//! What differs from pass to pass, in one piece of device memory that is written before each; the
//! recorded passes; and what comes back.

use std::ops::Range;
use std::sync::Arc;

use super::cache::{CudaCache, head_ld};
use super::driver::Context;
use super::launch::{
    Address, Draw, Encoding, KvLayout, LINEAR_ROWS, MATMUL_SCRATCH, MAX_SPLITS, Row, SampleArgs,
};
use super::memory::{Memory, Pinned, Plain, bytes_of, bytes_of_mut};
use super::stream::{Graph, Stream};
use super::{CudaBuffer, ld, u};
use crate::alloc::reserve;
use crate::backend::{LogitRows, PassInputs, PassShape, Span};
use crate::config::PositionalEncoding;
use crate::error::Result;
use crate::kv_cache::PAGE;
use crate::position::alibi_slopes;

/// Bytes of device memory that attention's partial sums may take.
const PARTIAL_BYTES: usize = 64 << 20;
/// Bytes on the way to the host that are fetched without a copy in between.
const STAGING_BYTES: usize = 1 << 20;

/// What a pass needs beside activations. Made once, used for every pass of its activations.
pub struct CudaPass {
    // The first to be dropped: it waits for work that uses the rest.
    pub stream: Arc<Stream>,
    pub graphs: Graphs,
    /// What is written before each pass, on both sides, as [`Layout`] says.
    record: Memory,
    host: Pinned,
    /// Sums of attention's splits. (decode_rows, n_head, splits, head_ld + 2)
    pub partial: Memory,
    /// Splits that are done. (decode_rows, n_kv_head)
    pub arrived: Memory,
    /// Sums of the parts of a product of many rows.
    pub matmul_partial: Memory,
    /// Parts that are done.
    pub matmul_arrived: Memory,
    /// Most rows of one launch of decode attention, for which there is room in `partial`.
    pub decode_rows: usize,
    /// Pages of positions in a split: one, unless the window is large.
    pub split_pages: usize,
    slopes: Memory, // (n_head)
    drawn: Memory,  // (steps, rows)
    /// Results on their way to the host.
    staging: Pinned,
    shape: PassShape,
    kv: KvLayout,
    /// Whether work has begun that was not waited for.
    busy: bool,
    current: Current,
}

/// The pass that has begun.
#[derive(Clone, Debug, Default)]
struct Current {
    rows: usize,
    wanted: usize,
    /// Whether wanted rows are not simply all rows.
    picks: bool,
    draws: bool,
    /// Splits of the row with the most.
    splits: usize,
    layout: Layout,
    attention: Vec<AttentionSpan>,
}

/// Rows that attention treats alike.
#[derive(Clone, Debug)]
pub struct AttentionSpan {
    pub rows: Range<usize>,
    /// Many consecutive positions of one session.
    pub one_session: bool,
}

/// Offsets into the record, in bytes. They depend on the numbers of rows only, so that recorded passes
/// find everything where it was.
#[derive(Clone, Debug, Default)]
struct Layout {
    step: usize,
    arrived: usize,
    rows: usize,
    pick: usize,
    draws: usize,
    encoding: usize,
}

impl Layout {
    fn new(rows: usize, picks: usize, draws: usize) -> Layout {
        let after = |offset: usize, bytes: usize| (offset + bytes).next_multiple_of(16);
        let first = 16;
        let pick = after(first, rows * size_of::<Row>());
        let draw = after(pick, picks * size_of::<u32>());
        let encoding = after(draw, draws * size_of::<Draw>());
        Layout { step: 0, arrived: 4, rows: first, pick, draws: draw, encoding }
    }
}

/// What must be equal for a recorded pass to be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    rows: usize,
    splits: usize,
    draws: bool,
}

/// Recorded passes.
#[derive(Default)]
pub struct Graphs {
    recorded: Vec<(Key, Graph)>,
    /// Keys that came by once, newest last.
    seen: Vec<Key>,
    refused: bool,
}

impl Graphs {
    /// Most that are kept: batch sizes in use, times the steps in which splits grow.
    const MOST: usize = 32;

    pub fn find(&self, key: Key) -> Option<&Graph> {
        self.recorded.iter().find(|(known, _)| *known == key).map(|(_, graph)| graph)
    }

    /// Whether the key has come by before; from now on it has.
    pub fn seen(&mut self, key: Key) -> bool {
        if self.refused || self.seen.contains(&key) {
            return !self.refused;
        }
        if self.seen.len() == Graphs::MOST {
            self.seen.remove(0);
        }
        self.seen.push(key);
        false
    }

    pub fn keep(&mut self, key: Key, graph: Graph) -> &Graph {
        if self.recorded.len() == Graphs::MOST {
            self.recorded.remove(0);
        }
        self.recorded.push((key, graph));
        &self.recorded[self.recorded.len() - 1].1
    }

    /// Records no more.
    pub fn refuse(&mut self) {
        self.refused = true;
    }
}

impl CudaPass {
    pub fn new(context: &Arc<Context>, shape: &PassShape) -> Result<CudaPass> {
        let c = &shape.config;
        let what = "activations in GPU memory";
        let pages = window_pages(c.max_seq_len);
        let split_pages = pages.div_ceil(MAX_SPLITS);
        let splits = pages.div_ceil(split_pages);
        let partial_row = 4 * c.n_head * splits * (head_ld(c.head_dim) + 2);
        let decode_rows = (PARTIAL_BYTES / partial_row).clamp(1, shape.rows);
        let layout = Layout::new(shape.rows, shape.rows, shape.rows);
        let record = layout.encoding + 4 * shape.rows * shape.encoding;
        let slopes = match c.positional_encoding {
            PositionalEncoding::Alibi => alibi_slopes(c.n_head),
            PositionalEncoding::None
            | PositionalEncoding::Sinusoidal
            | PositionalEncoding::Learned
            | PositionalEncoding::LearnedSinusoidal
            | PositionalEncoding::Rope => vec![0.0; c.n_head],
        };
        let slope_memory = Memory::zeros(context, what, 4 * slopes.len())?;
        slope_memory.write(0, bytes_of(&slopes))?;
        let results = 4 * (ld(c.vocab_size) + ld(c.n_embd)) * shape.logit_rows;
        let mut attention = Vec::new();
        reserve(&mut attention, shape.rows, "activations")?;
        Ok(CudaPass {
            stream: Arc::new(Stream::new(context)?),
            graphs: Graphs::default(),
            record: Memory::zeros(context, what, record)?,
            host: Pinned::zeros(context, "activations", record)?,
            partial: Memory::zeros(context, what, decode_rows * partial_row)?,
            arrived: Memory::zeros(context, what, 4 * decode_rows * c.n_kv_head)?,
            matmul_partial: Memory::zeros(context, what, MATMUL_SCRATCH.0)?,
            matmul_arrived: Memory::zeros(context, what, MATMUL_SCRATCH.1)?,
            decode_rows,
            split_pages,
            slopes: slope_memory,
            drawn: Memory::zeros(context, what, 4 * shape.rows)?,
            staging: Pinned::zeros(context, "results", results.min(STAGING_BYTES))?,
            kv: KvLayout {
                slots: 0,
                layer: 0,
                n_kv_head: u(c.n_kv_head),
                head_dim: u(c.head_dim),
                head_ld: u(head_ld(c.head_dim)),
            },
            shape: shape.clone(),
            busy: false,
            current: Current { attention, ..Current::default() },
        })
    }

    /// Writes tokens, positions and all else that is new, and starts bringing it to the device.
    pub fn begin(&mut self, inputs: &PassInputs<'_>, spans: &[Span<'_, CudaCache>]) -> Result<()> {
        self.wait()?;
        let rows = inputs.tokens.len();
        let single = spans.len() == rows;
        let picks = inputs.logit_rows == LogitRows::Last && !single;
        let wanted = if picks { spans.len() } else { rows };
        let layout = Layout::new(rows, if picks { wanted } else { 0 }, inputs.draws.len());
        let host = self.host.bytes_mut();
        put(host, 0, &[0u32; 4]);
        put(host, layout.encoding, inputs.encoding);

        self.current.attention.clear();
        let (mut row, mut most_pages) = (0, 1);
        for (i, span) in spans.iter().enumerate() {
            self.kv.slots = u(span.cache.slots());
            for (pos, token) in (span.pos..).zip(&inputs.tokens[row..row + span.rows]) {
                let (table, slot) = (span.cache.table(), u(pos % span.cache.slots()));
                let record = Row { pos: pos as u64, table, token: *token, slot };
                put(host, layout.rows + (pos - span.pos + row) * size_of::<Row>(), &[record]);
            }
            let last = span.pos + span.rows - 1 + (inputs.steps - 1);
            let window = self.shape.config.max_seq_len;
            // The oldest page that any step sees, as wide as any step's window can be.
            let pages = last / PAGE - (span.pos + 1).saturating_sub(window) / PAGE + 1;
            most_pages = most_pages.max(pages.min(window_pages(window)));
            let rows = row..row + span.rows;
            row = rows.end;
            if picks {
                put(host, layout.pick + i * size_of::<u32>(), &[u(row - 1)]);
            }
            let one_session = rows.len() > LINEAR_ROWS;
            match self.current.attention.last_mut() {
                Some(before) if !before.one_session && !one_session => before.rows.end = row,
                _ => self.current.attention.push(AttentionSpan { rows, one_session }),
            }
        }
        for (i, draw) in inputs.draws.iter().enumerate() {
            put(host, layout.draws + i * size_of::<Draw>(), &[Draw::from(draw)]);
        }
        // Few sizes, so that few passes are recorded.
        let splits =
            most_pages.div_ceil(self.split_pages).next_power_of_two().min(self.max_splits());
        let bytes = layout.encoding + size_of_val(inputs.encoding);
        self.current = Current {
            rows,
            wanted,
            picks,
            draws: !inputs.draws.is_empty(),
            splits,
            layout,
            attention: std::mem::take(&mut self.current.attention),
        };
        self.busy = true;
        self.stream.upload(&self.record, &self.host, bytes)
    }

    fn max_splits(&self) -> usize {
        window_pages(self.shape.config.max_seq_len).div_ceil(self.split_pages)
    }

    /// What must be equal for this pass to be repeated; none if it is of a kind that is not.
    pub fn repeatable(&self) -> Option<Key> {
        let c = &self.current;
        let decodes = c.attention.iter().all(|span| !span.one_session) && !c.picks;
        decodes.then_some(Key { rows: c.rows, splits: c.splits, draws: c.draws })
    }

    /// Rows of the pass.
    pub fn n_rows(&self) -> usize {
        self.current.rows
    }

    /// Rows that logits are wanted for.
    pub fn n_wanted(&self) -> usize {
        self.current.wanted
    }

    /// Splits of the row with the most, or a few more.
    pub fn splits(&self) -> usize {
        self.current.splits
    }

    /// Rows that attention treats alike.
    pub fn attention_spans(&self) -> &[AttentionSpan] {
        &self.current.attention
    }

    fn at(&self, offset: usize) -> Address {
        self.record.address() + offset as u64
    }

    /// The rows' records.
    pub fn rows(&self) -> Address {
        self.row(0)
    }

    /// A row's record.
    pub fn row(&self, row: usize) -> Address {
        self.at(self.current.layout.rows + row * size_of::<Row>())
    }

    /// Which rows are wanted; 0 for all.
    pub fn pick(&self) -> Address {
        if self.current.picks { self.at(self.current.layout.pick) } else { 0 }
    }

    /// Slopes of the heads' linear biases.
    pub fn slopes(&self) -> Address {
        self.slopes.address()
    }

    /// The rows' positional encodings.
    pub fn encoding(&self) -> Encoding {
        Encoding {
            values: self.at(self.current.layout.encoding),
            step: self.at(self.current.layout.step),
            width: u(self.shape.encoding),
            rows: u(self.current.rows),
        }
    }

    /// Where a layer's keys and values lie in a page.
    pub fn kv(&self, layer: usize) -> KvLayout {
        KvLayout { layer: u(layer), ..self.kv }
    }

    /// Arguments of the kernel that draws.
    pub fn sample_args(&self, logits: Address, ld: u32, vocab_size: usize) -> SampleArgs {
        let layout = &self.current.layout;
        SampleArgs {
            logits,
            ld,
            vocab_size: u(vocab_size),
            n_rows: u(self.current.rows),
            rows: self.rows(),
            draws: self.at(layout.draws),
            drawn: self.drawn.address(),
            step: self.at(layout.step),
            arrived: self.at(layout.arrived),
            slots: self.kv.slots,
        }
    }

    /// Waits for all that has begun.
    fn wait(&mut self) -> Result<()> {
        if self.busy {
            self.stream.wait()?;
            self.busy = false;
        }
        Ok(())
    }

    /// Waits, and brings rows of activations to the host, each from a first row on.
    pub fn read(&mut self, parts: &mut [(&mut [f32], &CudaBuffer, usize)]) -> Result<()> {
        let padded = |len: usize, from: &CudaBuffer| 4 * len / from.width * ld(from.width);
        let bytes: usize = parts.iter().map(|(out, from, _)| padded(out.len(), from)).sum();
        if bytes > self.staging.bytes().len() {
            self.wait()?;
            for (out, from, first) in parts {
                for (row, out) in out.chunks_exact_mut(from.width).enumerate() {
                    let offset = 4 * (*first + row) * ld(from.width);
                    from.memory.read(offset, bytes_of_mut(out))?;
                }
            }
            return Ok(());
        }
        let mut offset = 0;
        for (out, from, first) in parts.iter() {
            let bytes = padded(out.len(), from);
            if bytes > 0 {
                let from_offset = 4 * first * ld(from.width);
                self.stream.download(
                    &mut self.staging,
                    offset,
                    &from.memory,
                    from_offset,
                    bytes,
                )?;
            }
            offset += bytes;
        }
        self.busy = true;
        self.wait()?;
        let mut staged = self.staging.bytes();
        for (out, from, _) in parts {
            for out in out.chunks_exact_mut(from.width) {
                let (row, rest) = staged.split_at(4 * ld(from.width));
                bytes_of_mut(out).copy_from_slice(&row[..4 * from.width]);
                staged = rest;
            }
        }
        Ok(())
    }

    /// Waits, and brings drawn tokens to the host. (steps, rows)
    pub fn read_drawn(&mut self, tokens: &mut [u32]) -> Result<()> {
        let bytes = bytes_of_mut(tokens);
        for (i, piece) in bytes.chunks_mut(self.staging.bytes().len()).enumerate() {
            let at = i * self.staging.bytes().len();
            self.stream.download(&mut self.staging, 0, &self.drawn, at, piece.len())?;
            self.busy = true;
            self.wait()?;
            piece.copy_from_slice(&self.staging.bytes()[..piece.len()]);
        }
        Ok(())
    }
}

/// Most pages that hold positions of a window: one that begins with the last position of a page has but
/// one of them there.
fn window_pages(window: usize) -> usize {
    (window + PAGE - 2) / PAGE + 1
}

/// Writes values at an offset.
fn put<T: Plain>(to: &mut [u8], offset: usize, values: &[T]) {
    let bytes = bytes_of(values);
    to[offset..offset + bytes.len()].copy_from_slice(bytes);
}
