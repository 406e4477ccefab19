//! Where a session's keys and values lie, the same on every backend.
//!
//! Positions are counted from the start of the session and never repeat; position p lies in slot
//! p % slots, so a long session overwrites what has left its window and copies nothing. Slots come in
//! pages that are allocated when a position first reaches them: what a file claims to be its
//! context length costs nothing until somebody uses it.

use crate::config::ModelConfig;

/// Slots of one page.
pub const PAGE: usize = 64;

/// Rows of one session in one forward pass that every ring has room for beyond the window. A backend
/// of larger passes has a larger ring; what it holds beyond this one's is not saved.
pub const LEAST_ROWS: usize = 64;

/// Geometry of the keys and values of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers, each with keys and values of its own.
    pub n_layer: usize,
    /// Heads of keys and values.
    pub n_kv_head: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Slots of the ring, a multiple of [`PAGE`].
    pub slots: usize,
}

impl KvShape {
    /// A ring for a window of `config.max_seq_len` positions and passes of up to `rows` rows. It has
    /// room for a whole pass beyond the window, so storing a pass's last row never overwrites what its
    /// first row sees.
    pub fn new(config: &ModelConfig, rows: usize) -> KvShape {
        // A window is fed in one pass at most, so a small one needs no larger ring.
        let rows = rows.min(config.max_seq_len).max(LEAST_ROWS);
        KvShape {
            n_layer: config.n_layer,
            n_kv_head: config.n_kv_head,
            head_dim: config.head_dim,
            slots: (config.max_seq_len + rows - 1).next_multiple_of(PAGE),
        }
    }

    /// Floats of one page: keys and values of all layers and heads for [`PAGE`] positions.
    pub fn page_len(&self) -> usize {
        self.n_layer * self.n_kv_head * 2 * PAGE * self.head_dim
    }

    /// Floats of one position: keys and values of all layers and heads.
    pub fn position_len(&self) -> usize {
        self.n_layer * self.n_kv_head * 2 * self.head_dim
    }

    /// Page and row in the page of a position.
    pub fn locate(&self, pos: usize) -> (usize, usize) {
        let slot = pos % self.slots;
        (slot / PAGE, slot % PAGE)
    }

    /// Start of the keys of one layer and head within a page, `(PAGE, head_dim)`; the values follow
    /// them. All keys of a head lie together so that scores read them in one run.
    pub fn keys(&self, layer: usize, kv_head: usize) -> usize {
        (layer * self.n_kv_head + kv_head) * 2 * PAGE * self.head_dim
    }

    /// Start of the values, `(PAGE, head_dim)`.
    pub fn values(&self, layer: usize, kv_head: usize) -> usize {
        self.keys(layer, kv_head) + PAGE * self.head_dim
    }
}
