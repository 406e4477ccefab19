//! `teeny-run`: arguments and printing only.
fn main() {}
