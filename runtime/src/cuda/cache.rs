//! Keys and values of a session on the device: pages as on the CPU, and a table of their addresses that
//! the kernels read.

use std::ops::Range;
use std::sync::Arc;

use super::driver::Context;
use super::memory::{Memory, bytes_of, bytes_of_mut};
use crate::alloc::{reserve, zeros};
use crate::error::Result;
use crate::kv_cache::{KvShape, PAGE};

/// Floats between the rows of a page: 16 bytes are loaded at once.
pub fn head_ld(head_dim: usize) -> usize {
    head_dim.next_multiple_of(4)
}

/// Keys and values of one session.
pub struct CudaCache {
    context: Arc<Context>,
    shape: KvShape,
    /// Allocated when a position first reaches them, shared with forks until one of them writes.
    /// Each: (n_layer, n_kv_head, 2, PAGE, head_ld)
    pages: Vec<Arc<Memory>>,
    /// Their addresses, with room for more. Another table when there is no room: what a file claims to
    /// be its context length costs nothing.
    table: Option<Memory>,
    /// Whether the table is behind.
    stale: bool,
}

impl CudaCache {
    /// An empty one.
    pub fn new(context: &Arc<Context>, shape: &KvShape) -> CudaCache {
        let context = Arc::clone(context);
        CudaCache { context, shape: shape.clone(), pages: Vec::new(), table: None, stale: false }
    }

    /// Address of the table.
    pub fn table(&self) -> u64 {
        self.table.as_ref().map_or(0, Memory::address)
    }

    /// Slots of the ring.
    pub fn slots(&self) -> usize {
        self.shape.slots
    }

    /// Floats of a page.
    fn page_len(&self) -> usize {
        let KvShape { n_layer, n_kv_head, head_dim, .. } = self.shape;
        n_layer * n_kv_head * 2 * PAGE * head_ld(head_dim)
    }

    fn page(&self) -> Result<Memory> {
        Memory::zeros(&self.context, "keys and values in GPU memory", 4 * self.page_len())
    }

    /// Makes sure of memory of its own for `rows` positions from `pos` on.
    pub fn reserve(&mut self, pos: usize, rows: usize) -> Result<()> {
        let reached = pos.saturating_add(rows).min(self.shape.slots);
        while self.pages.len() * PAGE < reached {
            reserve(&mut self.pages, 1, "keys and values")?;
            let page = Arc::new(self.page()?);
            self.pages.push(page);
            self.stale = true;
        }
        // Here and not while storing, because here it may fail.
        let n_pages = self.shape.slots / PAGE;
        for page in (pos / PAGE..pos.saturating_add(rows).div_ceil(PAGE)).take(n_pages) {
            let page = page % n_pages;
            if Arc::get_mut(&mut self.pages[page]).is_none() {
                let own = self.page()?;
                own.copy(&self.pages[page])?;
                self.pages[page] = Arc::new(own);
                self.stale = true;
            }
        }
        self.update_table()
    }

    fn update_table(&mut self) -> Result<()> {
        if !self.stale {
            return Ok(());
        }
        let needed = self.pages.len();
        let room = self.table.as_ref().map_or(0, |table| table.bytes() / 8);
        if room < needed {
            let room = needed.next_power_of_two().max(16).min(self.shape.slots / PAGE);
            self.table =
                Some(Memory::zeros(&self.context, "keys and values in GPU memory", 8 * room)?);
        }
        let mut addresses = zeros_u64(needed)?;
        for (address, page) in addresses.iter_mut().zip(&self.pages) {
            *address = page.address();
        }
        if let Some(table) = &self.table {
            table.write(0, bytes_of(&addresses))?;
        }
        self.stale = false;
        Ok(())
    }

    /// A second cache that shares the pages.
    pub fn fork(&self) -> Result<CudaCache> {
        let mut pages = Vec::new();
        reserve(&mut pages, self.pages.len(), "keys and values")?;
        pages.extend(self.pages.iter().cloned());
        let mut fork =
            CudaCache { pages, stale: true, ..CudaCache::new(&self.context, &self.shape) };
        fork.update_table()?;
        Ok(fork)
    }

    /// Bytes of keys and values, and how many of them are shared.
    pub fn bytes(&self) -> (usize, usize) {
        let page = 4 * self.page_len();
        let shared = self.pages.iter().filter(|page| Arc::strong_count(page) > 1).count();
        (self.pages.len() * page, shared * page)
    }

    /// Copies positions to the host. `out`: (positions, n_layer, n_kv_head, 2, head_dim)
    pub fn read(&self, out: &mut [f32], positions: Range<usize>) -> Result<()> {
        let width = self.shape.head_dim;
        let mut copy = zeros("a page of keys and values", self.page_len())?;
        let mut held = None;
        for (out, pos) in out.chunks_exact_mut(self.shape.position_len()).zip(positions) {
            let (page, slot) = self.shape.locate(pos);
            if held != Some(page) {
                self.pages[page].read(0, bytes_of_mut(&mut copy))?;
                held = Some(page);
            }
            let rows = copy.chunks_exact(PAGE * head_ld(width));
            for (out, rows) in out.chunks_exact_mut(width).zip(rows) {
                out.copy_from_slice(&rows[slot * head_ld(width)..][..width]);
            }
        }
        Ok(())
    }

    /// The reverse of `read`, for positions that are reserved.
    pub fn write(&mut self, positions: Range<usize>, values: &[f32]) -> Result<()> {
        let width = self.shape.head_dim;
        let mut copy = zeros("a page of keys and values", self.page_len())?;
        let mut held = None;
        for (values, pos) in values.chunks_exact(self.shape.position_len()).zip(positions) {
            let (page, slot) = self.shape.locate(pos);
            if held != Some(page) {
                if let Some(held) = held {
                    self.pages[held].write(0, bytes_of(&copy))?;
                }
                self.pages[page].read(0, bytes_of_mut(&mut copy))?;
                held = Some(page);
            }
            let rows = copy.chunks_exact_mut(PAGE * head_ld(width));
            for (values, rows) in values.chunks_exact(width).zip(rows) {
                rows[slot * head_ld(width)..][..width].copy_from_slice(values);
            }
        }
        match held {
            Some(held) => self.pages[held].write(0, bytes_of(&copy)),
            None => Ok(()),
        }
    }
}

fn zeros_u64(len: usize) -> Result<Vec<u64>> {
    let mut values = Vec::new();
    reserve(&mut values, len, "keys and values")?;
    values.resize(len, 0);
    Ok(values)
}
